import { NULL_PAGE } from "./block-pool.ts";
import { StateError } from "./errors.ts";
import type { GroupLayout } from "./layout.ts";
import { releasePage } from "./residual.ts";
import { firstUnsealed } from "./seal.ts";
import type { CacheState, GroupState, PageList, SequenceState } from "./state.ts";

/** Pages behind the window of the query that follows `length` tokens, less a margin that may be taken back; sinks not counted. */
export function pagesBehind(g: GroupLayout, length: number, draftMargin: number): number {
  return Math.max(0, Math.floor((length - draftMargin - g.window + 1) / g.pageSize));
}
/** Gives back the pages that no query to come will see, the last one first; the list names the null page in their place. */
export function slide(cache: CacheState, sequence: SequenceState): void {
  const { groups, layout } = cache;
  for (let n = 0; n < groups.length; n++) {
    const group = groups[n]!;
    if (group.layout.window === Infinity) continue;
    const list = sequence.lists[n]!;
    const behind = pagesBehind(group.layout, sequence.length, layout.draftMargin);
    if (behind > list.from) dropPages(cache, group, list, behind);
  }
}
function dropPages(cache: CacheState, group: GroupState, list: PageList, behind: number): void {
  for (let i = behind - 1; i >= list.from; i--) {
    releasePage(group, list.ids[i]!);
    list.ids[i] = NULL_PAGE;
  }
  list.from = behind;
  list.stamp = ++cache.stamp;
}
/** Whether all that a query after `length` tokens sees is there. */
function canEndAt(group: GroupState, list: PageList, length: number): boolean {
  const { window, pageSize } = group.layout;
  if (list.from === group.sinkPages) return true;
  return length <= group.sinkPages * pageSize || length >= shortest(group, list, window);
}
/** The shortest length above the sinks whose window has not been dropped. */
function shortest(group: GroupState, list: PageList, window: number): number {
  return list.from * group.layout.pageSize + window - 1;
}
/** Throws StateError when a window has moved past `length`: the error says to which lengths the sequence can be cut. */
export function requireRollback(cache: CacheState, sequence: SequenceState, length: number): void {
  let from = 0;
  let sinks = Infinity; // up to this length all pages are there
  let fits = true;
  cache.groups.forEach((group, n) => {
    const list = sequence.lists[n]!;
    if (list.from === group.sinkPages) return;
    fits &&= canEndAt(group, list, length);
    sinks = Math.min(sinks, group.sinkPages * group.layout.pageSize);
    from = Math.max(from, shortest(group, list, group.layout.window));
  });
  if (fits) return;
  throw new StateError(
    `[kvcache.truncate] the window has moved past ${length} tokens; possible are 0 to ${sinks}, and ${from} to ${sequence.length} (draftMargin keeps more)`,
    { length, upTo: sinks, from, present: sequence.length },
  );
}
/** Throws StateError when the row behind `length` tokens would go to a page that is encoded: the error says to which lengths one can cut. */
export function requireUnsealed({ cache, lists, length: present }: SequenceState, length: number): void {
  let from = 0; // from this length on nothing is encoded
  let step = 1; // before it, multiples of this
  let fits = true;
  cache.groups.forEach((group, n) => {
    if (group.residuals === undefined) return;
    const { pageSize } = group.layout;
    const sealed = firstUnsealed(group, lists[n]!) * pageSize;
    fits &&= length >= sealed || length % pageSize === 0;
    from = Math.max(from, sealed);
    for (const once = step; step % pageSize !== 0;) step += once; // to the least common multiple
  });
  if (fits) return;
  throw new StateError(
    `[kvcache.truncate] the page behind ${length} tokens is encoded; possible are multiples of ${step} below ${from}, and ${from} to ${present} (draftMargin keeps more)`,
    { length, multiplesOf: step, from, present },
  );
}
