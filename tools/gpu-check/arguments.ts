import { parseArgs } from "node:util";

/** Names of the parts, in their order. */
export const PARTS = ["vectors", "suites", "sanitizers", "offsets", "speeds"] as const;
/** A part of the check, as `--parts` names it. */
export type PartName = (typeof PARTS)[number];

/** What `--help` prints. */
export const usage: string = `bun run gpu:check [--out DIR] [--engine NAME] [--quick] [--parts NAMES] [--vectors DIR]

Checks the CUDA engine on this machine's device: conformance vectors, the engine's own suites, compute-sanitizer over a short list,
offsets past 4 GiB, then speeds beside what the device can do at most and beside PyTorch where that is installed. Exits with 0 if
nothing failed, 1 if something did or there is no device, 2 if the command line was wrong.

  --out DIR      write report.json and report.svg there
  --engine NAME  cuda (default); cuda-emulated runs the same parts in small sizes and gives no speeds
  --quick        a few suites, vectors and sizes: seconds, where the whole takes minutes
  --parts NAMES  of ${PARTS.join(", ")}: only these, separated by commas
  --vectors DIR  folder of conformance vectors; default ../shared/conformance`;

/** What the command line asked for. */
export interface CheckArguments {
  readonly out: string | undefined;
  readonly engine: "cuda" | "cuda-emulated";
  readonly quick: boolean;
  readonly parts: readonly PartName[];
  readonly vectors: string;
  readonly help: boolean;
}
function partsOf(list: string): PartName[] {
  const named = list.split(",").map((name) => name.trim());
  const unknown = named.find((name) => !(PARTS as readonly string[]).includes(name));
  if (unknown !== undefined) throw new TypeError(`--parts takes ${PARTS.join(", ")}; got "${unknown}"`);
  return PARTS.filter((name) => named.includes(name));
}
/** Reads the command line. Throws a TypeError in words for an unknown option, engine or part. */
export function parseArguments(args: readonly string[]): CheckArguments {
  const { values } = parseArgs({
    args: [...args],
    options: {
      out: { type: "string" },
      engine: { type: "string", default: "cuda" },
      quick: { type: "boolean", default: false },
      parts: { type: "string", default: PARTS.join(",") },
      vectors: { type: "string", default: "../shared/conformance" },
      help: { type: "boolean", default: false },
    },
  });
  const { engine } = values;
  if (engine !== "cuda" && engine !== "cuda-emulated")
    throw new TypeError(`--engine is cuda or cuda-emulated; got "${engine}"`);
  return { ...values, out: values.out, engine, parts: partsOf(values.parts) };
}
