import { OutOfMemoryError } from "@heed/tensor";
import { NULL_PAGE } from "./block-pool.ts";
import type { PagePlace, SequenceContent } from "./snapshot.ts";
import { releasePage, restorePage } from "./residual.ts";
import { type CacheState, grown, type GroupState, pagesFor, type SequenceState } from "./state.ts";

function requirePages(cache: CacheState, places: readonly PagePlace[]): void {
  cache.groups.forEach(({ pool, residuals, layout }, n) => {
    const own = places.filter(({ group }) => group === n);
    const [count, available] = [own.length, pool.available];
    const [unsealed, free] = [own.filter((p) => p.residual).length, residuals?.pool.free ?? 0];
    if (unsealed > free) {
      throw new OutOfMemoryError(
        `[kvcache] the sequence needs ${unsealed} residual pages, but ${free} are free; release another, or make more (maxResidualPages)`,
        { needed: unsealed, free, residual: true },
      );
    }
    if (count <= available) return;
    throw new OutOfMemoryError(
      `[kvcache] the sequence needs ${count} pages of ${layout.pageSize} tokens, but ${available} of ${pool.count} are free; release or truncate another`,
      { needed: count, free: available, total: pool.count },
    );
  });
}
/**
 * Gives an empty sequence a page at each place, in every group, and its length. The rows are still to be written. Throws
 * OutOfMemoryError when a group has too few pages, or residual pages for what is not encoded; then nothing has changed.
 */
export function takeLists(
  state: SequenceState,
  { length, from, sealed }: SequenceContent,
  places: readonly PagePlace[],
): void {
  const { cache, lists } = state;
  requirePages(cache, places);
  cache.groups.forEach(({ layout }, n) => {
    const list = lists[n]!;
    const count = pagesFor(length, layout.pageSize);
    list.ids = grown(list.ids, count).fill(NULL_PAGE);
    list.count = count;
    list.from = from[n]!;
    list.sealed = 0;
    list.stamp = ++cache.stamp;
  });
  for (const { group, at, residual } of places) {
    const books = cache.groups[group]!;
    const page = books.pool.take();
    if (page > books.touched) books.touched = page;
    if (residual) books.residuals!.take(page);
    lists[group]!.ids[at] = page;
  }
  state.length = length;
  cache.tokens += length;
  cache.observer?.({ op: "take", sequence: state, from, sealed });
}
/** Undoes {@link takeLists}: the free list becomes what it was, unless others have used it since. */
export function emptyLists(state: SequenceState): void {
  clear(state, restorePage);
  state.cache.observer?.({ op: "empty", sequence: state });
}
/** Gives back every page, the last of each group first, and forgets the length. */
export function releaseLists(state: SequenceState): void {
  clear(state, releasePage);
  state.cache.observer?.({ op: "drop", sequence: state });
}
function clear(state: SequenceState, give: (group: GroupState, page: number) => void): void {
  const { cache, lists } = state;
  cache.groups.forEach((group, n) => {
    const list = lists[n]!;
    while (list.count > 0) {
      const page = list.ids[--list.count]!;
      if (page !== NULL_PAGE) give(group, page);
    }
    list.from = group.sinkPages;
    list.sealed = 0;
    list.tailFenced = false;
    list.stamp = ++cache.stamp;
  });
  cache.tokens -= state.length;
  state.length = 0;
}
