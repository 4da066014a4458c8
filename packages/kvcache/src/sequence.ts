import { ArgumentError, DisposedError } from "@heed/tensor";
import { NULL_PAGE } from "./block-pool.ts";
import { StateError } from "./errors.ts";
import { noteFences } from "./fences.ts";
import { forkState } from "./fork.ts";
import {
  type CacheState,
  type PageList,
  pagesFor,
  requireLive,
  requireWhole,
  type SequenceState,
} from "./state.ts";
import { cutPrefix } from "./prefixes.ts";
import { releasePage } from "./residual.ts";
import { requireRollback, requireUnsealed } from "./window.ts";

let stateOfSequence: (sequence: Sequence) => SequenceState;
/** The books behind a handle; for this package only. Throws ArgumentError when it is not a sequence. */
export function stateOf(sequence: unknown): SequenceState {
  if (!(sequence instanceof Sequence)) {
    throw new ArgumentError("[kvcache] this is not a sequence of a cache; make one with cache.open()", {
      got: typeof sequence,
    });
  }
  return stateOfSequence(sequence);
}
/** Throws DisposedError when the sequence was released, or its cache disposed. */
export function requireOpen(state: SequenceState, what: string): void {
  requireLive(state.cache, what);
  if (!state.released) return;
  throw new DisposedError(`[kvcache.${what}] this sequence was released; open another one`, { what });
}
/** Throws StateError when the sequence is in an open step. */
export function requireIdle(state: SequenceState, what: string): void {
  if (state.step === undefined) return;
  throw new StateError(`[kvcache.${what}] the sequence is in an open step; commit or cancel the step first`, {
    what,
    length: state.length,
  });
}
/** Throws StateError when the pages are in a tier, or on their way. */
export function requirePresent({ away }: SequenceState, what: string): void {
  if (away === undefined) return;
  throw new StateError(
    `[kvcache.${what}] the sequence is ${away.what}; bring it back with cache.swapIn first`,
    {
      what,
      length: away.length,
    },
  );
}
/** Frees a list's pages from position `keep` on, the last one first: a prefix outlives its continuation. */
function freePages(cache: CacheState, n: number, list: PageList, keep: number): void {
  const group = cache.groups[n]!;
  if (list.count === keep) return;
  while (list.count > keep) {
    const page = list.ids[--list.count]!;
    if (page !== NULL_PAGE) releasePage(group, page);
  }
  list.sealed = Math.min(list.sealed, keep);
  if (list.count <= group.sinkPages) list.from = group.sinkPages; // nothing is left behind the window
  list.stamp = ++cache.stamp;
}
function shorten(state: SequenceState, length: number): void {
  const { cache } = state;
  cutPrefix(state, length);
  cache.groups.forEach(({ layout }, n) =>
    freePages(cache, n, state.lists[n]!, pagesFor(length, layout.pageSize)),
  );
  cache.tokens -= state.length - length;
  state.length = length;
  noteFences(state);
}
function close(state: SequenceState): void {
  shorten(state, 0);
  state.away?.drop();
  state.away = undefined;
  state.released = true;
  state.tokenIds = undefined;
  state.cache.sequences.delete(state);
  state.cache.observer?.({ op: "release", sequence: state });
}

/** One sequence of tokens in a {@link KvCache}: which pages hold it and how far. Made by `cache.open()`. */
export class Sequence {
  readonly #state: SequenceState;
  static {
    stateOfSequence = (sequence) => sequence.#state;
  }
  /** For the cache; users call `cache.open()`. */
  constructor(state: SequenceState) {
    this.#state = state;
  }
  /** Committed tokens; 0 once released. */
  get length(): number {
    return this.#state.away?.length ?? this.#state.length;
  }
  /** Whether the pages are in a tier, or on their way to or from one: `cache.swapIn` brings them back. */
  get swapped(): boolean {
    return this.#state.away !== undefined;
  }
  /** Whether the sequence was released. */
  get released(): boolean {
    return this.#state.released;
  }
  /** {@link pagesOf} the first group. */
  get pages(): Int32Array {
    return this.pagesOf(0);
  }
  /**
   * The pages in one group in order of position, those of an open step included; {@link NULL_PAGE} where they went back behind the
   * window. A copy. Throws ArgumentError when there is no such group.
   */
  pagesOf(group: number): Int32Array {
    const { lists } = this.#state;
    requireWhole(group, 0, lists.length - 1, "group");
    const { ids, count } = lists[group]!;
    return ids.slice(0, count);
  }
  /** The ids given at commit, one for each committed token, -1 where none was given; a copy. */
  get tokenIds(): Int32Array {
    const { tokenIds } = this.#state;
    const { length } = this;
    return tokenIds?.slice(0, length) ?? new Int32Array(length).fill(-1);
  }
  /**
   * `count` new sequences with the tokens of this one, on the same pages: nothing is copied until one of them adds to a shared page
   * that is not full, and then the rows of that page alone. Throws ArgumentError unless count is a whole number from 1 on, StateError in
   * an open step, DisposedError.
   */
  fork(count = 1): Sequence[] {
    requireOpen(this.#state, "fork");
    requireIdle(this.#state, "fork");
    requirePresent(this.#state, "fork");
    requireWhole(count, 1, 2 ** 20, "number of forks");
    return Array.from({ length: count }, () => new Sequence(forkState(this.#state)));
  }
  /**
   * Keeps the first `length` tokens and frees the pages above them; the next step continues there. Throws ArgumentError unless
   * 0 <= length <= this.length, StateError in an open step, when a window has dropped pages that the next query would see, or when the next
   * row would go to an encoded page of "int4", of which only whole ones can go (`draftMargin` says how far one can always go back),
   * DisposedError.
   */
  truncate(length: number): void {
    requireOpen(this.#state, "truncate");
    requireIdle(this.#state, "truncate");
    requirePresent(this.#state, "truncate");
    requireWhole(length, 0, this.#state.length, "the length to truncate to");
    requireRollback(this.#state.cache, this.#state, length);
    requireUnsealed(this.#state, length);
    shorten(this.#state, length);
    this.#state.cache.observer?.({ op: "truncate", sequence: this.#state, length });
  }
  /** Frees the pages and ends the handle. Throws DisposedError the second time, StateError in an open step. */
  release(): void {
    requireOpen(this.#state, "release");
    requireIdle(this.#state, "release");
    close(this.#state);
  }
  /** {@link release} for `using`: cancels the open step if there is one; calling it again does nothing. */
  [Symbol.dispose](): void {
    if (this.#state.released) return;
    this.#state.step?.cancel();
    close(this.#state);
  }
}
/** Releases a sequence by its books, when its cache is disposed. */
export function closeSequence(state: SequenceState): void {
  close(state);
}
