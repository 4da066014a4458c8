/** Bytes of a key. */
export const KEY_BYTES = 32;
/** What tells one tree of prefixes from another: named texts and numbers, in a fixed order. */
export type KeyFields = readonly (readonly [tag: string, value: string | number | undefined])[];

function pieces(fields: KeyFields): Uint8Array[] {
  const out: Uint8Array[] = [];
  const put = (text: string): void => {
    // UTF-16 code units: UTF-8 would write every lone surrogate as U+FFFD, and two texts as one
    const bytes = Buffer.from(text, "utf16le");
    out.push(new Uint8Array(Uint32Array.of(bytes.length).buffer), bytes);
  };
  for (const [tag, value] of fields) {
    put(tag);
    put(value === undefined ? "absent" : typeof value);
    if (value !== undefined) put(String(value));
  }
  return out;
}
/**
 * The key of a root: SHA-256 over each field's tag, type and value, each with its length before it, so that no two lists of fields give
 * the same bytes. An absent value differs from an empty one.
 */
export function rootKey(fields: KeyFields): Uint8Array<ArrayBuffer> {
  const hasher = new Bun.SHA256();
  for (const bytes of pieces(fields)) hasher.update(bytes);
  const key = new Uint8Array(KEY_BYTES);
  hasher.digest(key);
  return key;
}
/** Computes keys of blocks: SHA-256 over the parent's key and the block's token ids as little-endian int32. */
export class ChainHasher {
  readonly #message: Uint8Array<ArrayBuffer>;
  readonly #ids: Int32Array<ArrayBuffer>; // the message behind the parent's key
  readonly #key: Uint8Array<ArrayBuffer> = new Uint8Array(KEY_BYTES);
  constructor(blockTokens: number) {
    this.#message = new Uint8Array(KEY_BYTES + 4 * blockTokens);
    this.#ids = new Int32Array(this.#message.buffer, KEY_BYTES);
  }
  /** The key of the block of ids from `at` on. Valid until the next call. */
  key(parent: Uint8Array, ids: ArrayLike<number>, at: number): Uint8Array<ArrayBuffer> {
    this.#message.set(parent);
    for (let i = 0; i < this.#ids.length; i++) this.#ids[i] = ids[at + i]!;
    Bun.SHA256.hash(this.#message, this.#key);
    return this.#key;
  }
}
