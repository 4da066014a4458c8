import { parseArgs } from "node:util";

/** What `--help` prints. */
export const usage: string = `bun run conformance DIR [--engine NAME] [--filter TEXT] [--json]

Runs every set of vectors found in DIR or below it (a .json manifest beside a .safetensors file) and compares with
the expected outputs. Exits with 0 if all passed, 1 if a case failed or asks for what the library does not do, 2 if the
command line was wrong.

  DIR            folder of vectors
  --engine NAME  engine to run on: cpu (default), portable, cuda or cuda-emulated
  --filter TEXT  only cases whose "set/case" contains it, as "onnx/attention" or "gqa"
  --json         print the results as JSON instead of a table`;

/** What the command line asked for. */
export interface ConformanceArguments {
  readonly folder: string;
  readonly engine: string;
  readonly filter: string;
  readonly json: boolean;
  readonly help: boolean;
}

/** Reads the command line. Throws a TypeError in words for an unknown option, or unless there is one folder. */
export function parseArguments(args: readonly string[]): ConformanceArguments {
  const { values, positionals } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      engine: { type: "string", default: "cpu" },
      filter: { type: "string", default: "" },
      json: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  const [folder = ""] = positionals;
  if (!values.help && (positionals.length !== 1 || folder === "")) {
    const got =
      positionals.length === 0 ? "none" : positionals.map((text) => JSON.stringify(text)).join(", ");
    throw new TypeError(`one DIR is needed; got ${got}`);
  }
  return { folder, ...values };
}
