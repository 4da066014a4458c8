import { join } from "node:path";
import { UsageError } from "./options.ts";

/** Bytes to learn from and bytes held out to judge by. */
export interface Corpus {
  readonly train: Uint8Array;
  readonly heldOut: Uint8Array;
  /** What the bytes are, for the report. */
  readonly source: string;
}
const ROOT = join(import.meta.dir, "../..");
/** The shortest text that leaves a few windows to hold out. */
const LEAST_BYTES = 16_384;
/** Held-out bytes: a tenth, capped so that judging stays a small part of the run. */
const MOST_HELD_OUT = 32_768;

const OWN_TEXT = ["README.md", "docs/**/*.md", "docs/**/*.ts", "packages/*/src/**/*.ts", "tools/**/*.ts"];

async function ownText(): Promise<Uint8Array> {
  const paths = OWN_TEXT.flatMap((pattern) => [...new Bun.Glob(pattern).scanSync(ROOT)]).filter(
    (p) => !p.includes("node_modules/"),
  );
  // A hash's order mixes kinds of files, so that what is held out resembles what is learnt.
  const mixed = paths.toSorted((a, b) => (Bun.hash(a) < Bun.hash(b) ? -1 : 1));
  const files = await Promise.all(mixed.map((path) => Bun.file(join(ROOT, path)).bytes()));
  return new Uint8Array(Buffer.concat(files));
}
async function read(path: string): Promise<Uint8Array> {
  try {
    return await Bun.file(path).bytes();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const why =
      code === "ENOENT"
        ? "there is no such file"
        : code === "EISDIR"
          ? "it is a folder"
          : (error as Error).message;
    throw new UsageError(`cannot read the text "${path}": ${why}`);
  }
}
/** Loads the text and splits it. Throws UsageError for a file that is missing, empty or too short. */
export async function loadCorpus(path: string | undefined): Promise<Corpus> {
  const bytes = path === undefined ? await ownText() : await read(path);
  if (path !== undefined && bytes.length === 0) throw new UsageError(`the text "${path}" is empty`);
  if (bytes.length < LEAST_BYTES) {
    throw new UsageError(
      `the text has ${bytes.length} bytes; at least ${LEAST_BYTES} are needed to learn from it and to hold some out`,
    );
  }
  const cut = bytes.length - Math.min(MOST_HELD_OUT, Math.floor(bytes.length / 10));
  return {
    train: bytes.subarray(0, cut),
    heldOut: bytes.subarray(cut),
    source: path ?? "the README, docs and sources of this clone",
  };
}
/** Entropy of the bytes' frequencies, in bits per byte: what a model that ignores order pays. */
export function orderZeroEntropy(bytes: Uint8Array): number {
  const counts = new Float64Array(256);
  for (const b of bytes) counts[b]!++;
  let bits = 0;
  for (const n of counts) if (n > 0) bits -= (n / bytes.length) * Math.log2(n / bytes.length);
  return bits;
}
