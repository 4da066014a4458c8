import { parseArgs } from "node:util";

/** What `--help` prints. */
export const usage: string = `bun run trace FILE [--svg FILE]

Runs a trace that cache.record() has written on a new cache, compares the pages that every command gave, prints what
became of each group's pages, and draws it over time.

  FILE        the trace, a JSON line for each command
  --svg FILE  where the picture goes (default: FILE with .svg behind it)

Ends with 1 when the replay goes another way than the trace, with 2 when the file is no trace.`;

/** What the command line asked for. */
export interface TraceArguments {
  readonly file: string;
  readonly svg: string;
  readonly help: boolean;
}
/** Reads the command line. Throws a TypeError in words for an unknown option or anything but one FILE. */
export function parseArguments(args: readonly string[]): TraceArguments {
  const { values, positionals } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: { svg: { type: "string" }, help: { type: "boolean", default: false } },
  });
  const [file = "", ...more] = positionals;
  if (!values.help && (file === "" || more.length > 0))
    throw new TypeError(`one FILE is needed; got ${positionals.join(", ") || "none"}`);
  return { file, svg: values.svg ?? `${file}.svg`, help: values.help };
}
