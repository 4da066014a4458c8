/** One bug, as a change to one source file. */
export interface Mutant {
  /** What the code does wrong. */
  readonly bug: string;
  /** Where it comes from: `shipped` by another cache (docs/guides/kvcache-properties.md lists them), or only likely. */
  readonly origin: "shipped" | "likely";
  /** The source, from the root of the repository. */
  readonly file: string;
  /** Text that stands in the file exactly once. */
  readonly text: string;
  /** What stands there instead. */
  readonly becomes: string;
  /** Test files of packages/kvcache/test, without `.test.ts`, one of which should fail. */
  readonly tests: readonly string[];
}

/** The source with the bug in it. Throws an Error when the mutant's text is not there exactly once: the table must follow the source. */
export function mutate(source: string, { bug, file, text, becomes }: Mutant): string {
  const found = source.split(text).length - 1;
  if (found !== 1) throw new Error(`${file} has the text of "${bug}" ${found} times: ${text}`);
  return source.replace(text, () => becomes);
}
