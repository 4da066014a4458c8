import { OutOfMemoryError } from "@heed/tensor";
import { type BlockPool, NULL_PAGE } from "./block-pool.ts";
import type { PagePlace, SequenceContent } from "./snapshot.ts";
import { type CacheState, grown, pagesFor, type SequenceState } from "./state.ts";

function requirePages(cache: CacheState, needed: readonly number[]): void {
  cache.groups.forEach(({ pool, layout }, n) => {
    const [count, available] = [needed[n]!, pool.available];
    if (count <= available) return;
    throw new OutOfMemoryError(
      `[kvcache] the sequence needs ${count} pages of ${layout.pageSize} tokens, but ${available} of ${pool.count} are free; release or truncate another`,
      { needed: count, free: available, total: pool.count },
    );
  });
}
/**
 * Gives an empty sequence a page at each place, in every group, and its length. The rows are still to be written. Throws
 * OutOfMemoryError when a group has too few pages; then nothing has changed.
 */
export function takeLists(
  state: SequenceState,
  { length, from }: SequenceContent,
  places: readonly PagePlace[],
): void {
  const { cache, lists } = state;
  const needed = cache.groups.map((_, n) => places.filter(({ group }) => group === n).length);
  requirePages(cache, needed);
  cache.groups.forEach(({ layout }, n) => {
    const list = lists[n]!;
    const count = pagesFor(length, layout.pageSize);
    list.ids = grown(list.ids, count).fill(NULL_PAGE);
    list.count = count;
    list.from = from[n]!;
    list.stamp = ++cache.stamp;
  });
  for (const { group, at } of places) {
    const books = cache.groups[group]!;
    const page = books.pool.take();
    if (page > books.touched) books.touched = page;
    lists[group]!.ids[at] = page;
  }
  state.length = length;
  cache.tokens += length;
  cache.observer?.({ op: "take", sequence: state, from });
}
/** Undoes {@link takeLists}: the free list becomes what it was, unless others have used it since. */
export function emptyLists(state: SequenceState): void {
  clear(state, (pool, page) => pool.restore(page));
  state.cache.observer?.({ op: "empty", sequence: state });
}
/** Gives back every page, the last of each group first, and forgets the length. */
export function releaseLists(state: SequenceState): void {
  clear(state, (pool, page) => pool.release(page));
  state.cache.observer?.({ op: "drop", sequence: state });
}
function clear(state: SequenceState, give: (pool: BlockPool, page: number) => void): void {
  const { cache, lists } = state;
  cache.groups.forEach(({ pool, sinkPages }, n) => {
    const list = lists[n]!;
    while (list.count > 0) {
      const page = list.ids[--list.count]!;
      if (page !== NULL_PAGE) give(pool, page);
    }
    list.from = sinkPages;
    list.tailFenced = false;
    list.stamp = ++cache.stamp;
  });
  cache.tokens -= state.length;
  state.length = 0;
}
