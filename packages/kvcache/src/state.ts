import { ArgumentError, DisposedError, type Engine } from "@heed/tensor";
import type { BlockPool } from "./block-pool.ts";
import type { TableMemory } from "./block-table.ts";
import type { CacheLayout, GroupLayout } from "./layout.ts";
import type { PageFileHeader } from "./page-format.ts";
import type { PrefixCursor, PrefixIndex } from "./prefix-index.ts";
import type { Residuals } from "./residual.ts";
import type { PageStorage } from "./storage.ts";
import type { Tier } from "./tiers.ts";
import type { Observer } from "./trace.ts";

/** A group's books: its pages, who has them, and where they lie. */
export interface GroupState {
  readonly layout: GroupLayout;
  readonly pool: BlockPool;
  readonly storage: PageStorage;
  readonly residuals: Residuals | undefined; // of an "int4" group
  readonly sinkPages: number; // pages of the first tokens that stay behind a window
  touched: number; // highest page ever handed out: memory above it was never used
}
/**
 * A sequence's pages in one group by position: ids[0 .. count - 1], of committed tokens and of those of its open step. Entries
 * sinkPages .. from - 1 are the null page: their tokens lie behind the window and the pages went back. from is at least sinkPages.
 */
export interface PageList {
  ids: Int32Array;
  count: number;
  from: number;
  /** Of an "int4" group: entries before it are encoded or dropped; from there on one has to look. */
  sealed: number;
  /** Changes with the entries, and with what tables call them; lists with the same stamp name the same pages, so that tables can tell what they need not copy. */
  stamp: number;
  /** Somebody who holds a fence may still read rows of the last page that a truncation cut off: write to a copy. */
  tailFenced: boolean;
}
/** What sequences and steps know of each other: a step can be cancelled by the sequence that is disposed under it. */
export interface OpenStep {
  readonly tableBytes: number;
  /** Tail pages that copies stand for until the step closes, for each group: the step holds one reference on each. */
  readonly replaced: readonly Replaced[];
  cancel(): void;
}
/** A tail page that a sequence may not write to, in the place of which it has a copy. */
export interface Replaced {
  readonly group: number;
  readonly sequence: SequenceState;
  readonly at: number; // in the sequence's list
  readonly page: number;
}
/** Pages that unfinished work reads, for each group. */
export interface OpenFence {
  readonly pages: readonly Int32Array[];
  /** The residual pages of those that are not encoded. */
  readonly residuals: readonly Int32Array[];
  /** Whether the work has ended. */
  readonly done: (() => boolean) | undefined;
  open: boolean;
}
/** Of a sequence whose pages are elsewhere or under way: nothing can be done with it but `swapIn` and its release. */
export interface Away {
  /** "swapped out" and the like, for errors. */
  readonly what: string;
  readonly length: number; // committed tokens
  /** Forgets what a tier keeps of it. */
  readonly drop: () => void;
  /** Where it lies, once all of it does. */
  readonly back?: { readonly tier: Tier; readonly key: string; readonly header: PageFileHeader } | undefined;
}
/** A sequence's books. */
export interface SequenceState {
  readonly cache: CacheState;
  readonly lists: readonly PageList[]; // per group
  length: number; // committed tokens
  pending: number; // tokens of the open step
  tokenIds: Int32Array | undefined; // of the committed tokens, -1 where unknown; longer than length as it grows by doubling
  prefix: PrefixCursor | undefined; // where its blocks are published, in a cache that keeps prefixes
  step: OpenStep | undefined;
  away: Away | undefined;
  released: boolean;
  lastReserve: number; // number of the last reserve() that named it, to notice one that names it twice
}
/** A cache's books, shared by its handles. */
export interface CacheState {
  readonly engine: Engine;
  readonly layout: CacheLayout;
  readonly groups: readonly GroupState[];
  readonly groupOf: Int32Array; // per layer, its group
  readonly indexOf: Int32Array; // per layer, its index within the group
  readonly sequences: Set<SequenceState>;
  readonly steps: Set<OpenStep>;
  readonly fences: Set<OpenFence>;
  readonly idleTables: TableMemory[];
  readonly prefixes: PrefixIndex | undefined;
  readonly now: () => number; // the clock, in milliseconds
  tokens: number; // committed, over all sequences
  epoch: number; // of the last table built
  stamp: number; // last one given to a page list
  reserves: number; // calls of reserve(), failed ones included
  observer: Observer | undefined; // told of every command that has been done
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
/** The books of a new sequence; `lists` are those of a fork, else it is empty. */
export function newSequence(cache: CacheState, lists?: readonly PageList[]): SequenceState {
  const state: SequenceState = {
    cache,
    lists: lists ?? cache.groups.map(({ sinkPages }) => emptyList(sinkPages)),
    length: 0,
    pending: 0,
    tokenIds: undefined,
    prefix: cache.prefixes?.cursor({}, {}),
    step: undefined,
    away: undefined,
    released: false,
    lastReserve: 0,
  };
  cache.sequences.add(state);
  return state;
}
function emptyList(sinkPages: number): PageList {
  return { ids: new Int32Array(8), count: 0, from: sinkPages, sealed: 0, stamp: 0, tailFenced: false };
}
