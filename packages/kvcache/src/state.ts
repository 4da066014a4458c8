import { ArgumentError, DisposedError, type Engine, type FloatDType } from "@heed/tensor";
import type { BlockPool } from "./block-pool.ts";
import type { TableMemory } from "./block-table.ts";
import type { HeldColumns, HeldTensor } from "./held.ts";

/** What a cache stores for each token: sizes and dtype, defaults filled in. */
export interface CacheLayout {
  readonly layers: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly valueHeadDim: number;
  /** Values are the first valueHeadDim numbers of the key rows. */
  readonly valuesInKeys: boolean;
  readonly pageSize: number;
  readonly dtype: FloatDType;
}
/** What sequences and steps know of each other: a step can be cancelled by the sequence that is disposed under it. */
export interface OpenStep {
  readonly tableBytes: number;
  cancel(): void;
}
/** A sequence's books. Pages pageIds[0 .. pageCount - 1] hold its committed tokens and those of its open step. */
export interface SequenceState {
  readonly cache: CacheState;
  pageIds: Int32Array;
  pageCount: number;
  length: number; // committed tokens
  pending: number; // tokens of the open step
  tokenIds: Int32Array | undefined; // of the committed tokens, -1 where unknown; longer than length as it grows by doubling
  step: OpenStep | undefined;
  released: boolean;
  lastReserve: number; // number of the last reserve() that named it, to notice one that names it twice
}
/** A cache's books, shared by its handles. */
export interface CacheState {
  readonly engine: Engine;
  readonly layout: CacheLayout;
  readonly pool: BlockPool;
  readonly kPages: readonly HeldTensor<FloatDType>[]; // per layer [count + 1, Hkv, pageSize, D]
  readonly vPages: readonly (HeldTensor<FloatDType> | HeldColumns<FloatDType>)[]; // per layer [count + 1, Hkv, pageSize, Dv]
  readonly sequences: Set<SequenceState>;
  readonly steps: Set<OpenStep>;
  readonly idleTables: TableMemory[];
  tokens: number; // committed, over all sequences
  epoch: number; // of the last table built
  reserves: number; // calls of reserve(), failed ones included
  disposed: boolean;
}

/** Throws DisposedError when the cache was disposed. */
export function requireLive(cache: CacheState, what: string): void {
  if (!cache.disposed) return;
  throw new DisposedError(`[kvcache.${what}] the cache was disposed; keep it alive until its last use`, {
    what,
  });
}
/** Throws ArgumentError unless `value` is a whole number from min to max. */
export function requireWhole(
  value: unknown,
  min: number,
  max: number,
  what: string,
): asserts value is number {
  if (Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max) return;
  throw new ArgumentError(
    `[kvcache] ${what} must be a whole number from ${min} to ${max}; got ${String(value)}`,
    { what, value, min, max },
  );
}
/** Pages that `tokens` tokens take. */
export function pagesFor(tokens: number, pageSize: number): number {
  return Math.ceil(tokens / pageSize);
}
/** `array` when it holds `length` elements, else a longer copy, at least doubled so that growing costs O(1) an element. */
export function grown(array: Int32Array, length: number): Int32Array {
  if (length <= array.length) return array;
  const longer = new Int32Array(Math.max(length, 2 * array.length, 8));
  longer.set(array);
  return longer;
}
