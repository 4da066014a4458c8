import { ArgumentError, type Engine, getEngine } from "@heed/tensor";
import { checkCache } from "./check.ts";
import { StateError } from "./errors.ts";
import type { EventBatch } from "./events.ts";
import { type Fence, lift, pollFences, raise } from "./fences.ts";
import { FixedTable, type FixedTableOptions } from "./fixed-table.ts";
import { allocateGroups, layerIndex } from "./groups.ts";
import { type CacheLayout, type GroupedCacheOptions, type KvCacheOptions, layoutOf } from "./layout.ts";
import { pageLimits } from "./page-limits.ts";
import type { TransferOptions } from "./page-file-write.ts";
import { type PrefixEntry, PrefixIndex, type PrefixOptions } from "./prefix-index.ts";
import { type LoadedPrefixes, loadPrefixes } from "./prefix-load.ts";
import { closeMatch, type PrefixMatch } from "./prefix-match.ts";
import {
  matchPrefix,
  type MatchOptions,
  type OpenOptions,
  openSequence,
  requirePrefixes,
} from "./prefixes.ts";
import { savePrefixes } from "./prefix-save.ts";
import { closeSequence, requireIdle, requireOpen, requirePresent, Sequence, stateOf } from "./sequence.ts";
import { type CacheState, requireLive, requireWhole, type SequenceState } from "./state.ts";
import { type CacheStats, statsOf } from "./stats.ts";
import { load, type LoadOptions, save, swapIn, swapOut } from "./swap.ts";
import type { Tier } from "./tiers.ts";
import { record, type Recording } from "./trace-record.ts";
import { openStep, sequencesOfStep, Step, type StepRequest } from "./step.ts";

let stateOfCache: (cache: KvCache) => CacheState;
/** The books of a cache; for this package only. */
export function cacheState(cache: KvCache): CacheState {
  return stateOfCache(cache);
}
/**
 * A paged key/value cache (Kwon et al. 2023, arXiv:2309.06180) for layers of one shape, or of several in groups. Each layer has pages
 * [P, Hkv, pageSize, D] of keys and [P, Hkv, pageSize, Dv] of values; a page number means the same tokens in every layer of a group.
 * Attention reads the pages in place through the {@link Step} that `reserve` returns. Pages are allocated in full at the start, so that
 * a step never moves them and fails for lack of pages only; the system commits memory of large blocks when pages are first used. Page 0
 * is the null page, which no sequence gets.
 * Throws ArgumentError, DTypeError, OutOfMemoryError, DeviceError.
 */
export class KvCache {
  readonly layout: CacheLayout;
  readonly #state: CacheState;
  static {
    stateOfCache = (cache) => cache.#state;
  }
  constructor(options: KvCacheOptions | GroupedCacheOptions) {
    const layout = layoutOf(options);
    const limits = pageLimits(options, layout);
    const engine = typeof options.engine === "object" ? options.engine : getEngine(options.engine);
    const prefixOptions = requireOptions(options);
    this.layout = layout;
    const groups = allocateGroups(engine, layout, limits);
    this.#state = {
      engine,
      layout,
      groups,
      prefixes:
        prefixOptions && new PrefixIndex(groups, layout.blockTokens, layout.draftMargin, prefixOptions),
      now: options.now ?? Date.now,
      ...layerIndex(layout),
      sequences: new Set(),
      steps: new Set(),
      fences: new Set(),
      idleTables: [],
      tokens: 0,
      epoch: 0,
      stamp: 0,
      reserves: 0,
      observer: undefined,
      disposed: false,
    };
  }
  /** The engine whose memory holds the pages. */
  get engine(): Engine {
    return this.#state.engine;
  }
  /**
   * A new sequence, empty or with the tokens of a match. In a cache that keeps prefixes its blocks will belong to the namespace and
   * adapter given, or to the match's, and stay by the priority given. Throws ArgumentError, StateError for a match that was used,
   * dropped or invalidated, DisposedError; then nothing has changed.
   */
  open(options: OpenOptions = {}): Sequence {
    requireLive(this.#state, "open");
    const sequence = openSequence(this.#state, options);
    this.#state.observer?.({ op: "open", sequence, options });
    return new Sequence(sequence);
  }
  /**
   * The longest prefix of these ids that is published under the namespace and adapter, by whole blocks (the largest page size), and at most
   * all ids but one, so that something is left to compute. Tokens are compared, not only keys. Its pages stay until the match is used by
   * `open` or disposed. Throws ArgumentError, StateError in a cache that keeps no prefixes, DisposedError.
   */
  match(ids: ArrayLike<number>, options: MatchOptions = {}): PrefixMatch {
    requireLive(this.#state, "match");
    return matchPrefix(this.#state, ids, options);
  }
  /**
   * Makes what was computed with an adapter, or without one given everything, unfindable: its weights have changed. Sequences go on, but
   * publish nothing any more. Throws StateError in a cache that keeps no prefixes, DisposedError.
   */
  invalidate({ adapter }: { readonly adapter?: string | undefined } = {}): void {
    requireLive(this.#state, "invalidate");
    requirePrefixes(this.#state, "invalidate").invalidate(adapter);
    this.#state.observer?.({ op: "invalidate", adapter });
  }
  /** What is published, each block after the one before it. Throws StateError in a cache that keeps no prefixes, DisposedError. */
  prefixes(): PrefixEntry[] {
    requireLive(this.#state, "prefixes");
    return requirePrefixes(this.#state, "prefixes").entries();
  }
  /**
   * What has become findable or was lost since the event numbered `since`, from which an index can be kept elsewhere. Throws ArgumentError,
   * StateError in a cache that keeps no prefixes, DisposedError.
   */
  events(since = 0): EventBatch {
    requireLive(this.#state, "events");
    requireWhole(since, 0, Number.MAX_SAFE_INTEGER, "since");
    return requirePrefixes(this.#state, "events").events.since(since);
  }
  /**
   * Room for new tokens of the given sequences, in any mix of prefill and decode; the step's rows are theirs one after the other, in
   * this order. A sequence gets a copy of its last page where that is shared and has room left. All or nothing: OutOfMemoryError when
   * the pages of a group, or its residual pages, do not suffice, ArgumentError for a sequence that is named
   * twice, belongs to another cache, or a number of tokens that is not whole and at least 0, StateError for a sequence in an open
   * step, DisposedError; then nothing has changed, save that where the engine failed to make a copy for which no page was free, what was
   * evicted for it is lost. `table` puts the step's table into memory of the caller's, for tapes; errors then also
   * when the step does not fit it.
   */
  reserve(requests: readonly StepRequest[], options: { readonly table?: FixedTable | undefined } = {}): Step {
    requireLive(this.#state, "reserve");
    return openStep(this.#state, requests, options.table);
  }
  /** Memory for the tables of steps of one shape, for `reserve`; see {@link FixedTable}. Throws ArgumentError, OutOfMemoryError. */
  fixedTable(options: FixedTableOptions): FixedTable {
    requireLive(this.#state, "fixedTable");
    const pages = Math.max(...this.#state.groups.map(({ pool }) => pool.count));
    return new FixedTable(this.#state.engine, pages, options);
  }
  /**
   * Holds the pages that these sequences, and those of these open steps, list now, for work under way that reads them: whatever becomes
   * of the sequences, the pages are not handed out again before the fence is disposed, or `done` returns true (asked whenever pages are
   * wanted: at each `reserve`, `swapIn`, `load` and `loadPrefixes`).
   * Pages of steps that are open are held with the sequences', named or not. Throws ArgumentError for what is neither a sequence nor a
   * step of this cache, StateError for a step that is closed or a sequence that is swapped out, DisposedError.
   */
  fence(
    readers: readonly (Sequence | Step)[],
    options: { readonly done?: (() => boolean) | undefined } = {},
  ): Fence {
    requireLive(this.#state, "fence");
    const states = new Set(
      readers.flatMap((reader) =>
        reader instanceof Step ? sequencesOfStep(reader, this.#state) : stateOf(reader),
      ),
    );
    for (const state of states) {
      requireOwn(this.#state, state, "fence");
      requirePresent(state, "fence");
    }
    return raise(this.#state, states, options.done);
  }
  /**
   * Moves a sequence's pages to a tier and gives them back; the handle stays, and {@link swapIn} brings it back with the same rows. All or
   * nothing. Meanwhile, and until then, the sequence can be released but not used. Rejects with ArgumentError for a sequence of another
   * cache, StateError in an open step or when it is away already, what the tier throws (OutOfMemoryError, PageFileError), the signal's
   * reason, DisposedError.
   */
  async swapOut(sequence: Sequence, tier: Tier, options: TransferOptions = {}): Promise<void> {
    await swapOut(this.#ready(sequence, "swapOut"), tier, options);
  }
  /**
   * Brings a sequence back from its tier, into whatever pages are free, and drops it there. All or nothing. Rejects with OutOfMemoryError
   * for lack of pages, PageFileError when a page is damaged, StateError when it is not swapped out, ArgumentError, DisposedError.
   */
  async swapIn(sequence: Sequence, options: TransferOptions = {}): Promise<void> {
    requireLive(this.#state, "swapIn");
    const state = stateOf(sequence);
    requireOwn(this.#state, state, "swapIn");
    await swapIn(state, options);
  }
  /**
   * Copies a sequence's tokens, ids and rows to a file, which is replaced as a whole or not at all; the sequence may be used, and released,
   * in the meantime. Rejects with PageFileError, StateError in an open step or when it is away, ArgumentError, DisposedError.
   */
  async save(sequence: Sequence, path: string, options: TransferOptions = {}): Promise<void> {
    await save(this.#ready(sequence, "save"), path, options);
  }
  /**
   * A new sequence with the tokens, ids and rows of a file that a cache of the same groups has saved. Rejects with PageFileError when the
   * file is damaged, cut off, of another version or another layout, OutOfMemoryError for lack of pages, DisposedError; then nothing has changed.
   */
  async load(path: string, options: LoadOptions = {}): Promise<Sequence> {
    requireLive(this.#state, "load");
    return new Sequence(await load(this.#state, path, options));
  }
  /**
   * Copies all published blocks, tokens and rows, to a file; returns how many. Until it is written their pages are pinned. Rejects with
   * PageFileError, StateError in a cache that keeps no prefixes, DisposedError.
   */
  async savePrefixes(path: string, options: TransferOptions = {}): Promise<number> {
    requireLive(this.#state, "savePrefixes");
    return savePrefixes(this.#state, path, options);
  }
  /**
   * Publishes the blocks of a file again, each after the one before it, as long as pages are free: nothing is evicted for them. A block
   * with a damaged page is left out, with those behind it, and counted. Rejects with PageFileError when the file as a whole is damaged, cut
   * off, of another version, layout or model, StateError in a cache that keeps no prefixes, DisposedError.
   */
  async loadPrefixes(path: string, options: TransferOptions = {}): Promise<LoadedPrefixes> {
    requireLive(this.#state, "loadPrefixes");
    return loadPrefixes(this.#state, path, options);
  }
  /** The books of a sequence of this cache that is open, in no step and not away. */
  #ready(sequence: Sequence, what: string): SequenceState {
    requireLive(this.#state, what);
    const state = stateOf(sequence);
    requireOwn(this.#state, state, what);
    requireIdle(state, what);
    requirePresent(state, what);
    return state;
  }
  /**
   * Writes every command from now on as a line of JSON to `sink`, for {@link replayTrace}: the same trace gives the same pages. The recording
   * ends when it is disposed or its sink throws. Throws StateError unless the cache is new, DisposedError.
   */
  record(sink: (line: string) => void): Recording {
    requireLive(this.#state, "record");
    return record(this.#state, sink);
  }
  /** Walks every invariant of the books in O(pages); throws InvariantError on the first that fails, DisposedError. */
  check(): void {
    requireLive(this.#state, "check");
    checkCache(this.#state);
  }
  /** Pages, tokens and bytes at the moment, in O(pages). Throws DisposedError. */
  stats(): CacheStats {
    requireLive(this.#state, "stats");
    return statsOf(this.#state);
  }
  /**
   * Returns the cache to its first state, free pages in ascending order. Throws StateError while a sequence, a step, a fence or a match is open,
   * DisposedError.
   */
  reset(): void {
    requireLive(this.#state, "reset");
    pollFences(this.#state);
    const { sequences, steps, fences, groups, prefixes } = this.#state;
    const matches = prefixes?.open.size ?? 0;
    if (sequences.size + steps.size + fences.size + matches > 0) {
      throw new StateError(
        `[kvcache.reset] ${sequences.size} sequences, ${steps.size} steps, ${fences.size} fences and ${matches} matches are open; release them first`,
        { sequences: sequences.size, steps: steps.size, fences: fences.size, matches },
      );
    }
    prefixes?.clear();
    for (const { pool, residuals } of groups) {
      pool.reset();
      residuals?.reset();
    }
    this.#state.observer?.({ op: "reset" });
  }
  /** Cancels open steps, lifts fences, releases every sequence and frees the memory. Calling it again does nothing. */
  [Symbol.dispose](): void {
    if (this.#state.disposed) return;
    const { sequences, steps, fences, groups, idleTables, prefixes } = this.#state;
    for (const step of steps) step.cancel();
    for (const fence of fences) lift(this.#state, fence);
    for (const sequence of sequences) closeSequence(sequence);
    for (const match of prefixes?.open ?? []) closeMatch(match);
    for (const held of idleTables) held[Symbol.dispose]();
    for (const { storage } of groups) storage[Symbol.dispose]();
    this.#state.disposed = true;
  }
}
function requireOwn(cache: CacheState, state: SequenceState, what: string): void {
  requireOpen(state, what);
  if (state.cache !== cache) throw new ArgumentError(`[kvcache.${what}] a sequence belongs to another cache`);
}
/** Options of the index of prefixes, or undefined for a cache that keeps none. Throws ArgumentError. */
function requireOptions({
  prefixes = false,
  now,
}: KvCacheOptions | GroupedCacheOptions): PrefixOptions | undefined {
  if (now !== undefined && typeof now !== "function")
    throw new ArgumentError("[kvcache] now must be a function that returns milliseconds", { now });
  if (typeof prefixes === "boolean") return prefixes ? {} : undefined;
  const { model, events = 0, hashBits = 32, quota, quotas = {} } = prefixes;
  if (model !== undefined && typeof model !== "string")
    throw new ArgumentError("[kvcache] prefixes.model must be a string", { model });
  requireWhole(events, 0, 2 ** 24, "prefixes.events");
  requireWhole(hashBits, 0, 32, "prefixes.hashBits");
  for (const blocks of [quota ?? 0, ...Object.values(quotas)])
    requireWhole(blocks, 0, Number.MAX_SAFE_INTEGER, "a quota of blocks");
  return prefixes;
}
