import { ArgumentError } from "@heed/tensor";
import type { PageSource, TransferOptions } from "./page-file-write.ts";
import type { PageFileHeader } from "./page-format.ts";

/** What a tier holds. */
export interface TierStats {
  readonly entries: number;
  readonly bytes: number;
  readonly maxBytes: number;
}
/** A place for pages of sequences that are swapped out. Several caches may share one. */
export interface Tier {
  /**
   * Keeps a copy of the pages. All or nothing. Rejects with OutOfMemoryError when they do not fit, ArgumentError for a key that is in use or
   * not made of 1 to 128 letters, digits, - and _.
   */
  put(key: string, source: PageSource, options?: TransferOptions): Promise<void>;
  /**
   * Gives the pages that were put with this header to `sink`, one after the other, and then forgets them. Rejects with PageFileError when
   * one is damaged or the entry is another or gone, or with what `sink` throws; the entry then stays.
   */
  take(key: string, header: PageFileHeader, sink: PageSink, options?: TransferOptions): Promise<void>;
  /** Forgets an entry, if there is one. */
  drop(key: string): Promise<void>;
  stats(): TierStats;
}
/** Takes the bytes of the `index`-th page; they are the caller's again afterwards. */
export type PageSink = (index: number, bytes: Uint8Array) => void;

/** Throws ArgumentError for what could not be a file's name. */
export function requireKey(key: string): void {
  if (typeof key === "string" && /^[A-Za-z0-9_-]{1,128}$/.test(key)) return;
  throw new ArgumentError("[kvcache] a tier's key is 1 to 128 letters, digits, - and _", { key });
}
/** Throws ArgumentError when an entry has the key already. */
export function requireNewKey(key: string, entries: ReadonlyMap<string, unknown>): void {
  requireKey(key);
  if (entries.has(key)) throw new ArgumentError(`[kvcache] the tier has an entry "${key}" already`, { key });
}
