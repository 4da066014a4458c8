import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";

/** What `--help` prints. */
export const usage: string = `bun run bench [FILTER] [--peers] [--threads LIST] [--json FILE]

  FILTER          only benches whose name contains it, as "prefill", "d64" or "decode 32/8 d128 8192"; "cache" also
                  finds decode and appends, which are of the key/value cache
  --peers         also run onnxruntime on the same shapes in the same rounds, and print ratios
  --threads LIST  numbers of threads for both sides, as "1,2" (default: 1 and all cores)
  --json FILE     also write the results as a JSON list`;

/** What the command line asked for. */
export interface BenchArguments {
  readonly filter: string;
  readonly json?: string;
  readonly peers: boolean;
  readonly threads: readonly number[];
  readonly help: boolean;
}

/** Reads the command line. Throws a TypeError in words for an unknown option, a second filter or a bad thread count. */
export function parseArguments(args: readonly string[]): BenchArguments {
  const { values, positionals } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      json: { type: "string" },
      peers: { type: "boolean", default: false },
      threads: { type: "string", default: [...new Set([1, availableParallelism()])].join(",") },
      help: { type: "boolean", default: false },
    },
  });
  if (positionals.length > 1) throw new TypeError(`one FILTER at most; got ${positionals.join(", ")}`);
  const threads = values.threads.split(",").map(Number);
  if (!threads.every((count) => Number.isInteger(count) && count >= 1 && count <= 256)) {
    throw new TypeError(`--threads takes integers from 1 to 256; got "${values.threads}"`);
  }
  return {
    filter: positionals[0] ?? "",
    peers: values.peers,
    threads,
    help: values.help,
    ...(values.json !== undefined && { json: values.json }),
  };
}
