import { ArgumentError, DisposedError } from "@heed/tensor";
import { StateError } from "./errors.ts";
import { type CacheState, pagesFor, requireLive, requireWhole, type SequenceState } from "./state.ts";

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
function requireIdle(state: SequenceState, what: string): void {
  if (state.step === undefined) return;
  throw new StateError(`[kvcache.${what}] the sequence is in an open step; commit or cancel the step first`, {
    what,
    length: state.length,
  });
}
/** Frees pages keep .. pageCount - 1, the last one first: a prefix outlives its continuation. */
function freePages(state: SequenceState, keep: number): void {
  while (state.pageCount > keep) state.cache.pool.release(state.pageIds[--state.pageCount]!);
}
function shorten(state: SequenceState, length: number): void {
  freePages(state, pagesFor(length, state.cache.layout.pageSize));
  state.cache.tokens -= state.length - length;
  state.length = length;
}
function close(state: SequenceState): void {
  shorten(state, 0);
  state.released = true;
  state.tokenIds = undefined;
  state.cache.sequences.delete(state);
}

/** One sequence of tokens in a {@link KvCache}: which pages hold it and how far. Made by `cache.open()`. */
export class Sequence {
  readonly #state: SequenceState;
  static {
    stateOfSequence = (sequence) => sequence.#state;
  }
  /** For the cache; users call `cache.open()`. */
  constructor(cache: CacheState) {
    this.#state = {
      cache,
      pageIds: new Int32Array(8),
      pageCount: 0,
      length: 0,
      pending: 0,
      tokenIds: undefined,
      step: undefined,
      released: false,
      lastReserve: 0,
    };
    cache.sequences.add(this.#state);
  }
  /** Committed tokens; 0 once released. */
  get length(): number {
    return this.#state.length;
  }
  /** Whether the sequence was released. */
  get released(): boolean {
    return this.#state.released;
  }
  /** The pages in order of position, those of an open step included; a copy. */
  get pages(): Int32Array {
    return this.#state.pageIds.slice(0, this.#state.pageCount);
  }
  /** The ids given at commit, one for each committed token, -1 where none was given; a copy. */
  get tokenIds(): Int32Array {
    const { tokenIds, length } = this.#state;
    return tokenIds?.slice(0, length) ?? new Int32Array(length).fill(-1);
  }
  /**
   * Keeps the first `length` tokens and frees the pages above them; the next step continues there.
   * Throws ArgumentError unless 0 <= length <= this.length, StateError in an open step, DisposedError.
   */
  truncate(length: number): void {
    requireOpen(this.#state, "truncate");
    requireIdle(this.#state, "truncate");
    requireWhole(length, 0, this.#state.length, "the length to truncate to");
    shorten(this.#state, length);
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
