import { existsSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { type FileEntry, FormatError, openSafetensors, type SafetensorsFile } from "@heed/tensor";
import { isJsonObject, type JsonObject } from "./hf-fields.ts";

const CONFIG = "config.json";
const SINGLE = "model.safetensors";
const INDEX = "model.safetensors.index.json";

function readJson(path: string): JsonObject {
  const fail = (why: string): never => {
    throw new FormatError(`[huggingface] ${path} ${why}`, { path });
  };
  const text = readFileSync(path, "utf8");
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    fail(`is not JSON (${(error as Error).message})`);
  }
  return isJsonObject(json) ? json : fail("is not a JSON object");
}
/** Tensor name to the shard that an index says it is in. Throws FormatError. */
function readIndex(path: string): Map<string, string> {
  const fail = (why: string, details: JsonObject): never => {
    throw new FormatError(`[huggingface] ${path} ${why}`, { path, ...details });
  };
  const { weight_map: map } = readJson(path);
  if (!isJsonObject(map)) return fail("has no object weight_map", { weight_map: map });
  const places = new Map<string, string>();
  for (const [name, file] of Object.entries(map)) {
    // A shard lies beside its index: a path would lead out of the folder.
    const isName = typeof file === "string" && file.endsWith(".safetensors") && basename(file) === file;
    if (!isName || file.includes("\\"))
      fail(`places "${name}" in ${JSON.stringify(file)}, which is not the name of a safetensors file`, {
        name,
        file,
      });
    places.set(name, file as string);
  }
  return places;
}

/**
 * A folder as Hugging Face lays models out: config.json, and model.safetensors or its shards with their index. Files
 * are opened when a tensor of theirs is first asked for, and only the tensors that are asked for are read. Dispose
 * it when they are loaded.
 */
export class HFCheckpoint {
  /** The folder, as given. */
  readonly folder: string;
  /** config.json, parsed. */
  readonly config: JsonObject;
  readonly #places: ReadonlyMap<string, string>;
  readonly #files: Map<string, SafetensorsFile> = new Map();

  /** Throws FormatError for files that are not what they claim to be, and the system's own errors. */
  constructor(folder: string) {
    this.folder = folder;
    this.config = readJson(join(folder, CONFIG));
    if (existsSync(join(folder, SINGLE))) {
      this.#places = new Map([...this.#open(SINGLE).entries.keys()].map((name) => [name, SINGLE]));
    } else if (existsSync(join(folder, INDEX))) {
      this.#places = readIndex(join(folder, INDEX));
    } else {
      throw new FormatError(`[huggingface] ${folder} has neither ${SINGLE} nor ${INDEX}`, { folder });
    }
  }
  /** Names of all tensors. */
  get names(): string[] {
    return [...this.#places.keys()];
  }
  /** Whether there is a tensor of that name. */
  has(name: string): boolean {
    return this.#places.has(name);
  }
  /** The file that holds a tensor, opened. Throws FormatError when there is no such tensor, or not in its file. */
  file(name: string): SafetensorsFile {
    const place = this.#places.get(name);
    if (place === undefined)
      throw new FormatError(`[huggingface] ${this.folder} has no tensor "${name}"`, {
        folder: this.folder,
        name,
      });
    const file = this.#open(place);
    if (file.has(name)) return file;
    throw new FormatError(
      `[huggingface] ${INDEX} places "${name}" in ${place}, which has no tensor of that name`,
      { folder: this.folder, name, file: place },
    );
  }
  /** Format and shape of a tensor. Throws as {@link file}. */
  entry(name: string): FileEntry {
    return this.file(name).entries.get(name)!;
  }
  #open(name: string): SafetensorsFile {
    const open = this.#files.get(name) ?? openSafetensors(join(this.folder, name));
    this.#files.set(name, open);
    return open;
  }
  /** Closes the files; tensors live on, mapped ones too. */
  [Symbol.dispose](): void {
    for (const file of this.#files.values()) file[Symbol.dispose]();
    this.#files.clear();
  }
}
