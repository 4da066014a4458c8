import { type CacheState, newSequence, type PageList, type SequenceState } from "./state.ts";

/** A copy of the list, with one more reference on each page that it names. */
function share({ groups }: CacheState, list: PageList, n: number): PageList {
  const { pool, sinkPages } = groups[n]!;
  const ids = list.ids.slice(0, Math.max(list.count, 8));
  for (let i = 0; i < list.count; i++) if (i < sinkPages || i >= list.from) pool.retain(ids[i]!);
  return { ...list, ids };
}
/**
 * The books of a sequence with the same tokens on the same pages, in every group. No row is copied: the first of the two that adds to a
 * shared page that is not full gets a page of its own.
 */
export function forkState(state: SequenceState): SequenceState {
  const { cache, length, tokenIds } = state;
  const fork = newSequence(
    cache,
    state.lists.map((list, n) => share(cache, list, n)),
  );
  fork.length = length;
  fork.tokenIds = tokenIds?.slice(0, length);
  fork.prefix = state.prefix && { ...state.prefix };
  cache.tokens += length;
  cache.observer?.({ op: "fork", sequence: state, fork });
  return fork;
}
