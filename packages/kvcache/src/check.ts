import { NULL_PAGE } from "./block-pool.ts";
import { InvariantError } from "./errors.ts";
import { checkCursor, checkPrefixes } from "./prefix-check.ts";
import { type CacheState, type GroupState, type PageList, pagesFor, type SequenceState } from "./state.ts";

function fail(why: string, details: Record<string, unknown>): never {
  throw new InvariantError(`[kvcache.check] ${why}`, details);
}
/** Checks what a sequence has once, whatever the groups. */
function checkSequence(cache: CacheState, state: SequenceState): void {
  const { length, pending, tokenIds, step, released } = state;
  if (state.cache !== cache || released) {
    fail("a sequence that was released, or of another cache, is listed", { released });
  }
  if (step === undefined ? pending !== 0 : !cache.steps.has(step)) {
    fail("a sequence is in a step that is not open", { length, pending });
  }
  if (tokenIds !== undefined && tokenIds.length < length) {
    fail(`a sequence of ${length} tokens keeps ${tokenIds.length} ids`, { length, ids: tokenIds.length });
  }
}
/** Checks a sequence's pages in one group and counts its references into `references`. */
function checkList(group: GroupState, state: SequenceState, list: PageList, references: Int32Array): void {
  const { ids, count, from, sealed } = list;
  const { length, pending } = state;
  const { sinkPages, layout, pool } = group;
  const { pageSize, window } = layout;
  if (count !== pagesFor(length + pending, pageSize)) {
    fail(`a sequence of ${length} tokens and ${pending} pending ones has ${count} pages of ${pageSize}`, {
      length,
      pending,
      pageCount: count,
      pageSize,
    });
  }
  if (from < sinkPages || (from > sinkPages && !(from * pageSize + window - 1 <= length))) {
    fail(`a sequence of ${length} tokens has dropped pages ${sinkPages} to ${from} of its window`, {
      length,
      from,
      window,
    });
  }
  for (let i = 0; i < count; i++) {
    const page = ids[i]!;
    const dropped = i >= sinkPages && i < from;
    if (dropped ? page !== NULL_PAGE : !(page >= 1 && page <= pool.count))
      fail(`a sequence lists page ${page} at ${i}`, { page, at: i, total: pool.count });
    if (!dropped) references[page]!++;
    checkSealed(group, state, page, i, sealed);
  }
}
/** In an "int4" group only whole pages are encoded, and those that the list believes to be. */
function checkSealed(
  { residuals, layout }: GroupState,
  state: SequenceState,
  page: number,
  at: number,
  sealed: number,
): void {
  if (residuals === undefined || page === NULL_PAGE) return;
  const isSealed = residuals.isSealed(page);
  if (isSealed ? (at + 1) * layout.pageSize <= state.length : at >= sealed) return;
  fail(`page ${page} at ${at} of ${state.length} tokens is ${isSealed ? "encoded" : "not encoded"}`, {
    page,
    at,
    sealed,
    length: state.length,
  });
}
/** Encoded pages come first, so that a number says which they are. */
function checkOrder({ residuals }: GroupState, { ids, count }: PageList): void {
  if (residuals === undefined) return;
  let waiting = false; // a page before is not encoded
  for (let i = 0; i < count; i++) {
    if (ids[i] === NULL_PAGE) continue;
    if (!residuals.isSealed(ids[i]!)) waiting = true;
    else if (waiting)
      fail(`page ${ids[i]} at ${i} is encoded, but one before it is not`, { page: ids[i], at: i });
  }
}
/** No page that the next rows of an open step go to belongs to anybody else, but for the step itself. */
function checkWritable(group: GroupState, n: number, state: SequenceState, references: Int32Array): void {
  if (state.pending === 0) return;
  const { ids, count } = state.lists[n]!;
  for (let i = Math.floor(state.length / group.layout.pageSize); i < count; i++) {
    const page = ids[i]!;
    let others = references[page]! - 1;
    for (const r of state.step!.replaced) if (r.group === n && r.page === page) others--;
    if (group.pool.content(page) !== 0) fail(`page ${page} is published and writable`, { page });
    if (others !== 0) fail(`page ${page} is writable by ${others + 1} sequences`, { page, others });
  }
}
function checkResiduals(cache: CacheState, { pool, residuals }: GroupState, n: number): void {
  if (residuals === undefined) return;
  const fences = new Int32Array(residuals.pool.count + 1);
  for (const fence of cache.fences) for (const page of fence.residuals[n]!) fences[page]!++;
  residuals.check(pool, fences);
}
function checkGroup(cache: CacheState, group: GroupState, n: number): void {
  const size = group.pool.count + 1;
  const [references, pins, fences] = [new Int32Array(size), new Int32Array(size), new Int32Array(size)];
  for (const state of cache.sequences) {
    checkList(group, state, state.lists[n]!, references);
    checkOrder(group, state.lists[n]!);
  }
  for (const { replaced } of cache.steps) {
    for (const r of replaced) if (r.group === n) references[r.page]!++;
  }
  for (const { pages } of cache.fences) for (const page of pages[n]!) fences[page]!++;
  for (const { pages } of cache.prefixes?.open ?? [])
    for (const page of pages[n]!) if (page !== NULL_PAGE) pins[page]!++;
  group.pool.check(references, pins, fences);
  checkResiduals(cache, group, n);
  for (const state of cache.sequences) checkWritable(group, n, state, references);
}
/**
 * Walks every invariant in O(pages + sequences): in every group, pages free, cached, live, pinned and in flight make the total, each is
 * listed once where it belongs and referred to as often as the pool says, none is writable by two sequences, lengths fit the pages,
 * pages of "int4" groups that are not encoded have a residual page each, others none, and what the next query sees is there. Throws
 * InvariantError on the first that fails.
 */
export function checkCache(cache: CacheState): void {
  let tokens = 0;
  for (const state of cache.sequences) {
    checkSequence(cache, state);
    if (cache.prefixes !== undefined) checkCursor(cache.prefixes, state);
    tokens += state.length;
  }
  cache.groups.forEach((group, n) => checkGroup(cache, group, n));
  if (cache.prefixes !== undefined) checkPrefixes(cache.prefixes);
  if (tokens !== cache.tokens)
    fail(`sequences hold ${tokens} tokens, but ${cache.tokens} are counted`, {
      tokens,
      counted: cache.tokens,
    });
}
