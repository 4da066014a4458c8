import { OutOfMemoryError } from "@heed/tensor";
import type { BlockPool } from "./block-pool.ts";
import { noteFences } from "./fences.ts";
import { nameOf, releasePage, type Residuals } from "./residual.ts";
import {
  type CacheState,
  type GroupState,
  grown,
  type PageList,
  pagesFor,
  type Replaced,
  type SequenceState,
} from "./state.ts";

/** One sequence of a step. */
export interface StepEntry {
  readonly sequence: SequenceState;
  /** New tokens of this step. */
  readonly tokens: number;
}
/** The pages that a step has brought into its sequences' lists. */
export interface StepPages {
  readonly fresh: readonly Int32Array[]; // per group, in the order in which they are taken
  readonly replaced: readonly Replaced[];
}
type Tails = ReadonlyMap<SequenceState, number>; // sequences that may not write to their last page, and that page's number

const NO_TAILS: Tails = new Map();
const NO_PAGES = new Int32Array(0);

/** Whether somebody besides its sequences may read rows of a tail page that are about to be written. */
function mayBeRead(pool: BlockPool, list: PageList, page: number): boolean {
  return pool.content(page) !== 0 || (list.tailFenced && pool.fences(page) > 0);
}
/** What a step needs of one group. */
interface Need {
  readonly pages: number;
  readonly tails: Tails;
}
/** Counts the pages that a step needs of a group. Divides only where a page is full: a decode step asks this of every sequence. */
function needOf(group: GroupState, n: number, entries: readonly StepEntry[]): Need {
  const { pool, layout } = group;
  const { pageSize } = layout;
  let pages = 0;
  let suspects: StepEntry[] | undefined;
  for (const entry of entries) {
    const { sequence, tokens } = entry;
    if (tokens === 0) continue;
    const list = sequence.lists[n]!;
    const room = list.count * pageSize - sequence.length; // rows left in the last page
    if (tokens > room) pages += Math.ceil((tokens - room) / pageSize);
    if (room === 0) continue;
    const tail = list.ids[list.count - 1]!;
    if (pool.references(tail) > 1 || mayBeRead(pool, list, tail)) (suspects ??= []).push(entry);
  }
  const tails = suspects === undefined ? NO_TAILS : tailsToCopy(pool, n, suspects);
  return { pages: pages + tails.size, tails };
}
/**
 * The tail pages that the step may not write to, of those that are shared, published, or read by fenced work. Where all who share a page
 * are in the step, the longest of them keeps it: it writes behind the rows of all others, which therefore still find theirs if the step
 * is cancelled.
 */
function tailsToCopy(pool: BlockPool, n: number, suspects: readonly StepEntry[]): Tails {
  const tails = new Map<SequenceState, number>();
  for (const { sequence } of suspects) {
    const { ids, count } = sequence.lists[n]!;
    tails.set(sequence, ids[count - 1]!);
  }
  for (const [page, owners] of Map.groupBy(tails, ([, tail]) => tail)) {
    if (owners.length < pool.references(page)) continue;
    if (owners.some(([sequence]) => mayBeRead(pool, sequence.lists[n]!, page))) continue;
    tails.delete(owners.reduce((a, b) => (b[0].length > a[0].length ? b : a))[0]);
  }
  return tails;
}
function requireRoom({ pool, residuals, layout }: GroupState, needed: number): void {
  const { available, count: total } = pool;
  if (needed <= available) return residuals && requireResiduals(residuals, needed);
  throw new OutOfMemoryError(
    `[kvcache.reserve] the step needs ${needed} pages of ${layout.pageSize} tokens, but ${available} of ${total} are free; release or truncate a sequence, or ask for fewer tokens`,
    { needed, free: available, total },
  );
}
/** All new pages of an "int4" group have rows that are not encoded yet. */
function requireResiduals({ pool }: Residuals, needed: number): void {
  const { free, count: total } = pool;
  if (needed <= free) return;
  throw new OutOfMemoryError(
    `[kvcache.reserve] the step needs ${needed} residual pages, but ${free} of ${total} are free; take shorter chunks, release a sequence, or make more (maxResidualPages)`,
    { needed, free, total, residual: true },
  );
}
/**
 * Puts pages that the pool will hand out next into the sequences' lists of one group; the pool itself is not touched. Copies of tails get
 * the first ones: free pages come before cached ones, so that copies write over prefixes only where all other pages are in use.
 */
function listPages(
  cache: CacheState,
  n: number,
  entries: readonly StepEntry[],
  tails: Tails,
  fresh: Int32Array,
  replaced: Replaced[],
): void {
  const { pageSize } = cache.groups[n]!.layout;
  let next = 0;
  for (const [sequence, page] of tails) {
    const list = sequence.lists[n]!;
    const at = list.count - 1;
    replaced.push({ group: n, sequence, at, page });
    list.ids[at] = fresh[next++]!;
    list.stamp = ++cache.stamp;
  }
  for (const { sequence, tokens } of entries) {
    const list = sequence.lists[n]!;
    if (sequence.length + tokens <= list.count * pageSize) continue;
    const wanted = pagesFor(sequence.length + tokens, pageSize);
    list.ids = grown(list.ids, wanted);
    while (list.count < wanted) list.ids[list.count++] = fresh[next++]!;
    list.stamp = ++cache.stamp;
  }
}
/**
 * Chooses the pages of a step, gives them residual pages in "int4" groups, and lists them in its sequences, in every group or in none;
 * {@link takePages} or {@link unlistPages} must follow. Throws OutOfMemoryError when a group has not enough.
 */
export function choosePages(cache: CacheState, entries: readonly StepEntry[]): StepPages {
  const needs = cache.groups.map((group, n) => needOf(group, n, entries));
  cache.groups.forEach((group, n) => requireRoom(group, needs[n]!.pages));
  const fresh = needs.map(({ pages }, n) => (pages === 0 ? NO_PAGES : cache.groups[n]!.pool.peek(pages)));
  const replaced: Replaced[] = [];
  for (let n = 0; n < fresh.length; n++) {
    listPages(cache, n, entries, needs[n]!.tails, fresh[n]!, replaced);
    const { residuals } = cache.groups[n]!;
    if (residuals !== undefined) for (const page of fresh[n]!) residuals.take(page);
  }
  return { fresh, replaced };
}
/**
 * Copies the rows of replaced tails, and takes the chosen pages from the pools. Throws what a copy throws; then no page is taken. A copy
 * that fails half way has written over a free page. Where none was left for it, a cached page was evicted for it, and stays so.
 */
export function takePages(cache: CacheState, { fresh, replaced }: StepPages): void {
  if (replaced.length > 0) copyTails(cache, replaced);
  fresh.forEach((pages, n) => {
    const group = cache.groups[n]!;
    for (const page of pages) {
      if (group.pool.references(page) === 0) group.pool.claim(page); // else for its copy
      if (page > group.touched) group.touched = page;
    }
  });
}
/**
 * Copies tails: first those that destroy nothing, then those whose page has to be taken from a prefix before. In "int4" groups none does:
 * a copy's rows go to the residual page that it was given.
 */
function copyTails(cache: CacheState, replaced: readonly Replaced[]): void {
  const placeOf = ({ group, sequence, at }: Replaced): [BlockPool, number] => [
    cache.groups[group]!.pool,
    sequence.lists[group]!.ids[at]!,
  ];
  const isFree = (one: Replaced): boolean => {
    const [pool, page] = placeOf(one);
    return cache.groups[one.group]!.residuals !== undefined || pool.content(page) === 0;
  };
  const copy = ({ group, sequence, at, page }: Replaced): void => {
    const books = cache.groups[group]!;
    const fresh = sequence.lists[group]!.ids[at]!;
    const rows = sequence.length % books.layout.pageSize;
    books.storage.copyRows(nameOf(books, page), nameOf(books, fresh), rows);
  };
  const { free = [], cached = [] } = Object.groupBy(replaced, (one) => (isFree(one) ? "free" : "cached"));
  for (const one of free) copy(one);
  const taken: [BlockPool, number][] = [];
  try {
    for (const one of cached) {
      const [pool, page] = placeOf(one);
      pool.claim(page);
      taken.push([pool, page]);
      copy(one);
    }
  } catch (error) {
    for (const [pool, page] of taken.toReversed()) pool.restore(page);
    throw error;
  }
}
function restorePages(cache: CacheState, fresh: StepPages["fresh"]): void {
  fresh.forEach((pages, n) => {
    for (let i = pages.length - 1; i >= 0; i--) cache.groups[n]!.pool.restore(pages[i]!);
  });
}
/** Makes the lists, and the residual pages, what they were before {@link choosePages}. */
export function unlistPages(
  cache: CacheState,
  entries: readonly StepEntry[],
  { fresh, replaced }: StepPages,
): void {
  cache.groups.forEach(({ layout, residuals }, n) => {
    if (residuals !== undefined) for (const page of fresh[n]!.toReversed()) residuals.restore(page);
    for (const { sequence } of entries) {
      const list = sequence.lists[n]!;
      const kept = pagesFor(sequence.length, layout.pageSize);
      if (list.count === kept) continue;
      list.count = kept;
      list.stamp = ++cache.stamp;
    }
  });
  for (const { group, sequence, at, page } of replaced) {
    const list = sequence.lists[group]!;
    list.ids[at] = page;
    list.stamp = ++cache.stamp;
  }
}
/** Undoes a step's pages: the free list becomes what it was, unless others have used it since. */
export function returnPages(cache: CacheState, entries: readonly StepEntry[], pages: StepPages): void {
  unlistPages(cache, entries, pages);
  restorePages(cache, pages.fresh);
  for (const { sequence, tokens } of entries) if (tokens > 0) noteFences(sequence);
}
/** Lets go of the tails that have been replaced for good. */
export function dropReplaced(cache: CacheState, { replaced }: StepPages): void {
  for (const { group, sequence, page } of replaced) {
    releasePage(cache.groups[group]!, page);
    sequence.lists[group]!.tailFenced = false;
  }
}
