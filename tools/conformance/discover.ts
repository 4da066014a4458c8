import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join, relative, sep } from "node:path";
import { loadModelVectors, loadOnnxVectors, loadSdpaVectors } from "@heed/testkit";
import type { ModelCase, OnnxCase, SdpaCase, VectorSet } from "@heed/testkit";

/** A set of vectors with the kind of its cases, told by what the cases carry rather than by the set's name. */
export type ConformanceSet =
  | { readonly kind: "onnx"; readonly name: string; readonly vectors: VectorSet<OnnxCase> }
  | { readonly kind: "sdpa"; readonly name: string; readonly vectors: VectorSet<SdpaCase> }
  | { readonly kind: "models"; readonly name: string; readonly vectors: VectorSet<ModelCase> };

/** A manifest that cannot be run, and why. */
export interface BrokenSet {
  readonly kind: "broken";
  readonly name: string;
  readonly reason: string;
}

/**
 * Every set in `folder` and below, in order of their names: the path of the manifest without its extension. A manifest
 * that cannot be read is a {@link BrokenSet}; a .json file that is not a list of cases and has no .safetensors beside it
 * is none. Throws an Error in words unless `folder` is a folder.
 */
export function discover(folder: string): (ConformanceSet | BrokenSet)[] {
  if (!existsSync(folder) || !statSync(folder).isDirectory()) throw new Error(`"${folder}" is not a folder`);
  const names = readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(".json"))
    .map((entry) => relative(folder, join(entry.parentPath, entry.name)).slice(0, -".json".length));
  return names
    .map((path) => path.split(sep).join("/"))
    .sort()
    .flatMap((name) => open(folder, name) ?? []);
}

function open(folder: string, name: string): ConformanceSet | BrokenSet | undefined {
  const broken = (reason: string): BrokenSet => ({ kind: "broken", name, reason });
  const hasTensors = existsSync(join(folder, `${name}.safetensors`));
  let cases: unknown;
  try {
    cases = JSON.parse(readFileSync(join(folder, `${name}.json`), "utf8"));
  } catch (error) {
    return hasTensors ? broken(`${name}.json is not JSON: ${(error as Error).message}`) : undefined;
  }
  if (!isCases(cases)) {
    return hasTensors ? broken(`${name}.json is not a list of cases with names of their own`) : undefined;
  }
  if (!hasTensors) return broken(`there is no ${name}.safetensors beside ${name}.json`);
  try {
    return (
      load(folder, name, cases) ?? broken("its cases are neither ONNX operators, models nor sdpa problems")
    );
  } catch (error) {
    return broken((error as Error).message);
  }
}

type Fields = Readonly<Record<string, unknown>>;

function isCases(value: unknown): value is readonly Fields[] {
  if (!Array.isArray(value) || value.length === 0) return false;
  const names = value.map((one: Fields | null) => one?.name);
  return names.every((name) => typeof name === "string") && new Set(names).size === names.length;
}

const isRecord = (value: unknown): boolean => typeof value === "object" && value !== null;

function load(folder: string, name: string, cases: readonly Fields[]): ConformanceSet | undefined {
  if (
    cases.every(
      ({ op, attributes, inputs, outputs }) =>
        typeof op === "string" && [attributes, inputs, outputs].every(isRecord),
    )
  ) {
    return { kind: "onnx", name, vectors: loadOnnxVectors(folder, name) };
  }
  if (cases.every(({ params, tensors }) => isRecord(params) && isRecord(tensors))) {
    return { kind: "sdpa", name, vectors: loadSdpaVectors(folder, name) };
  }
  if (
    cases.every(
      ({ model, config, tensors }) => typeof model === "string" && isRecord(config) && isRecord(tensors),
    )
  ) {
    return { kind: "models", name, vectors: loadModelVectors(folder, name) };
  }
  return undefined;
}
