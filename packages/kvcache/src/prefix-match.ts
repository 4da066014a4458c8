import { NULL_PAGE } from "./block-pool.ts";
import type { PrefixRoot } from "./prefix-roots.ts";
import type { PrefixGroup } from "./prefix-search.ts";

/** A match's books. */
export interface MatchState {
  readonly root: PrefixRoot;
  /** The node of its last full block, 0 without one. */
  readonly node: number;
  readonly serial: number;
  readonly blocks: number;
  readonly ids: Int32Array;
  readonly pages: readonly Int32Array[]; // per group, pinned; the null page behind a window
  readonly groups: readonly PrefixGroup[];
  /** Called when it is dropped, not when it is used. */
  readonly dropped: (() => void) | undefined;
  /** The matches that are open, this among them until it is used or dropped. */
  readonly open: Set<MatchState>;
}
let stateOfMatch: (match: PrefixMatch) => MatchState;
/** The books behind a match; for this package only. */
export function matchState(match: PrefixMatch): MatchState {
  return stateOfMatch(match);
}

/**
 * A published prefix of some tokens, made by `cache.match()`. Its pages are pinned, so that they stay until `cache.open({ match })` has
 * used it or it is disposed.
 */
export class PrefixMatch {
  readonly #state: MatchState;
  static {
    stateOfMatch = (match) => match.#state;
  }
  /** For the cache; users call `cache.match()`. */
  constructor(state: MatchState) {
    this.#state = state;
  }
  /** Tokens of the prefix; 0 when nothing was found. */
  get length(): number {
    return this.#state.ids.length;
  }
  /** Whether it has been neither used nor dropped. */
  get isOpen(): boolean {
    return this.#state.open.has(this.#state);
  }
  get namespace(): string {
    return this.#state.root.namespace;
  }
  get adapter(): string | undefined {
    return this.#state.root.adapter;
  }
  /** Lets the pages go. Calling it again, or after use, does nothing. */
  [Symbol.dispose](): void {
    if (!this.isOpen) return;
    closeMatch(this.#state);
    this.#state.dropped?.();
  }
}
/** Pins the pages of a new match. */
export function openMatch(state: MatchState): PrefixMatch {
  state.pages.forEach((pages, g) => {
    for (const page of pages) if (page !== NULL_PAGE) state.groups[g]!.pool.pin(page);
  });
  state.open.add(state);
  return new PrefixMatch(state);
}
/** Unpins the pages of a match, the last ones first: a prefix outlives its continuation. */
export function closeMatch(state: MatchState): void {
  if (!state.open.delete(state)) return;
  state.pages.forEach((pages, g) => {
    for (let i = pages.length - 1; i >= 0; i--)
      if (pages[i] !== NULL_PAGE) state.groups[g]!.pool.unpin(pages[i]!);
  });
}
