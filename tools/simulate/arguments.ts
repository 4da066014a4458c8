import { parseArgs } from "node:util";
import { MAX_LENGTH, WIDTH } from "./workload.ts";

/** What `--help` prints. */
export const usage: string = `bun run simulate [--seed S] [--requests N] [--pages P] [--page-size T] [--out FILE.svg]

Serves a made-up load through the cache's bookkeeping: requests of many lengths that arrive over time, prompts computed in
chunks, preemption when pages run out. Once the requests have nothing in common, once they share system prompts, continue
conversations, and ask for parallel samples and beams. Prints what became of the pages, beside what a contiguous cache of
the same bytes would serve.

  --seed S        a whole number (default: 1); the same seed gives the same load and the same pages
  --requests N    how many (default: 4000)
  --pages P       pages of the cache, at least those of the longest request (default: 2048)
  --page-size T   tokens of a page (default: 64)
  --out FILE.svg  also draw the second load over time`;

/** What the command line asked for. */
export interface SimulateArguments {
  readonly seed: number;
  readonly requests: number;
  readonly pages: number;
  readonly pageSize: number;
  readonly out: string | undefined;
  readonly help: boolean;
}
function whole(text: string, name: string, least: number, most: number): number {
  const n = Number(text);
  if (Number.isSafeInteger(n) && n >= least && n <= most && text.trim() !== "") return n;
  throw new TypeError(`--${name} must be a whole number from ${least} to ${most}; got ${text}`);
}
/** Reads the command line. Throws a TypeError in words for an unknown option or a value that is none. */
export function parseArguments(args: readonly string[]): SimulateArguments {
  const { values } = parseArgs({
    args: [...args],
    options: {
      seed: { type: "string", default: "1" },
      requests: { type: "string", default: "4000" },
      pages: { type: "string", default: "2048" },
      "page-size": { type: "string", default: "64" },
      out: { type: "string" },
      help: { type: "boolean", default: false },
    },
  });
  const pageSize = whole(values["page-size"], "page-size", 1, 4096);
  return {
    seed: whole(values.seed, "seed", 0, 2 ** 31 - 1),
    requests: whole(values.requests, "requests", 1, 1e6),
    pages: whole(values.pages, "pages", Math.ceil((WIDTH * MAX_LENGTH) / pageSize), 1e6),
    pageSize,
    out: values.out,
    help: values.help,
  };
}
