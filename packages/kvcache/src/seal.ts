import { type QuantisedGroups, scope, sealPages, type Tensor, tensor, unrecorded } from "@heed/tensor";
import { NULL_PAGE } from "./block-pool.ts";
import type { CacheState, GroupState, OpenStep, PageList, SequenceState } from "./state.ts";
import type { StepEntry } from "./step-pages.ts";

/** A page that is to be encoded, and the lists that name it. */
interface FullPage {
  readonly page: number;
  readonly lists: readonly PageList[];
}
/** Pages to be encoded, for each group. */
export type FullPages = readonly (readonly FullPage[])[];
const NONE: readonly FullPage[] = [];

/** The first position whose page is not encoded, or where there is none; all positions before it are encoded, or dropped. */
export function firstUnsealed({ residuals }: GroupState, list: PageList): number {
  if (residuals === undefined) return list.count;
  const { ids, count } = list;
  while (list.sealed < count && residuals.isSealed(ids[list.sealed]!)) list.sealed++;
  return list.sealed;
}
/** Tokens of a sequence once this step commits. */
function lengthAfter({ length, pending, step }: SequenceState, committing: OpenStep): number {
  return step === committing ? length + pending : length;
}
/**
 * The lists that name the page at this position; undefined when it must stay as it is: for one of them it is not full, or within the
 * margin for drafts, or an open step reads its rows or may be cancelled back to them.
 */
function listsOf(
  cache: CacheState,
  n: number,
  at: number,
  page: number,
  committing: OpenStep,
): PageList[] | undefined {
  const { pool, layout } = cache.groups[n]!;
  const end = (at + 1) * layout.pageSize + cache.layout.draftMargin;
  const lists: PageList[] = [];
  for (const sequence of cache.sequences) {
    const list = sequence.lists[n]!;
    if (at >= list.count || list.ids[at] !== page) continue;
    const isRead = sequence.step !== undefined && sequence.step !== committing;
    if (isRead || end > lengthAfter(sequence, committing)) return undefined;
    lists.push(list);
  }
  let known = lists.length;
  for (const r of committing.replaced) if (r.group === n && r.page === page) known++;
  return known === pool.references(page) ? lists : undefined;
}
function fullPagesOf(
  cache: CacheState,
  n: number,
  entries: readonly StepEntry[],
  committing: OpenStep,
): readonly FullPage[] {
  const group = cache.groups[n]!;
  const { pool, layout, residuals } = group;
  if (residuals === undefined) return NONE;
  const pages = new Map<number, FullPage>();
  for (const { sequence, tokens } of entries) {
    if (tokens === 0) continue;
    const list = sequence.lists[n]!;
    const end = Math.floor((sequence.length + tokens - cache.layout.draftMargin) / layout.pageSize);
    for (let at = firstUnsealed(group, list); at < end; at++) {
      const page = list.ids[at]!;
      if (page === NULL_PAGE || residuals.isSealed(page) || pages.has(page)) continue;
      const lists = pool.references(page) === 1 ? [list] : listsOf(cache, n, at, page, committing);
      if (lists === undefined) break; // pages are encoded from the first on, so that a number says which are
      pages.set(page, { page, lists });
    }
  }
  return [...pages.values()];
}
/** Encodes pages of a group in every layer, into memory that nobody reads yet. */
function encode({ storage, residuals, layout }: GroupState, pages: readonly FullPage[]): void {
  scope(() => {
    const { engine } = storage;
    const numbers = (of: (page: number) => number): Tensor<"int32"> =>
      tensor(
        pages.map(({ page }) => of(page)),
        [pages.length],
        { dtype: "int32", engine },
      );
    const [from, to] = [numbers((page) => residuals!.of(page) - 1), numbers((page) => page)];
    for (let i = 0; i < layout.layers.length; i++)
      sealPages(storage.k(i) as QuantisedGroups, storage.v(i) as QuantisedGroups, from, to);
  });
}
/**
 * Encodes the pages that are full for good when this step commits, in one call a layer: for all who share them they are full and further
 * back than `draftMargin`, and no other open step reads them. The books stay as they are until {@link sealFullPages}, so that an error of
 * the engine, which this throws, changes nothing.
 */
export function encodeFullPages(
  cache: CacheState,
  entries: readonly StepEntry[],
  committing: OpenStep,
): FullPages {
  const full = cache.groups.map((_, n) => fullPagesOf(cache, n, entries, committing));
  unrecorded(() =>
    full.forEach((pages, n) => {
      if (pages.length > 0) encode(cache.groups[n]!, pages);
    }),
  );
  return full;
}
/** From here on tables name the encoded pages; their residual pages are free. */
export function sealFullPages(cache: CacheState, full: FullPages): void {
  full.forEach((pages, n) => {
    for (const { page, lists } of pages) {
      cache.groups[n]!.residuals!.release(page);
      for (const list of lists) list.stamp = ++cache.stamp;
    }
  });
}
