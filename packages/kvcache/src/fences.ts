import { NULL_PAGE } from "./block-pool.ts";
import type { CacheState, OpenFence, SequenceState } from "./state.ts";

/**
 * Holds pages that work still under way reads: until the fence goes, the pages are not handed out again, and rows that the work may
 * read are not written over, whatever becomes of their sequences. Made by `cache.fence()`.
 */
export class Fence {
  readonly #cache: CacheState;
  readonly #fence: OpenFence;
  /** For the cache; users call `cache.fence()`. */
  constructor(cache: CacheState, fence: OpenFence) {
    this.#cache = cache;
    this.#fence = fence;
  }
  /** Whether it holds its pages. */
  get isOpen(): boolean {
    return this.#fence.open;
  }
  /** Lets the pages go. Calling it again does nothing. */
  [Symbol.dispose](): void {
    lift(this.#cache, this.#fence);
  }
}
const NO_PAGES = new Int32Array(0);

/** Fences the pages that the sequences list now, those of open steps and tails that steps have replaced included. */
export function raise(
  cache: CacheState,
  sequences: ReadonlySet<SequenceState>,
  done: (() => boolean) | undefined,
): Fence {
  const pages = cache.groups.map((_, n) => {
    const all = new Set<number>();
    for (const { lists, step } of sequences) {
      const { ids, count } = lists[n]!;
      for (let i = 0; i < count; i++) all.add(ids[i]!);
      for (const { group, page } of step?.replaced ?? []) if (group === n) all.add(page);
    }
    all.delete(NULL_PAGE);
    return Int32Array.from(all);
  });
  const residuals = cache.groups.map(({ residuals }, n) =>
    residuals === undefined ? NO_PAGES : pages[n]!.map((page) => residuals.of(page)).filter((r) => r !== 0),
  );
  pages.forEach((list, n) => list.forEach((page) => cache.groups[n]!.pool.fence(page)));
  residuals.forEach((list, n) => list.forEach((page) => cache.groups[n]!.residuals!.pool.fence(page)));
  const fence: OpenFence = { pages, residuals, done, open: true };
  cache.fences.add(fence);
  for (const other of cache.sequences) if (!sequences.has(other)) noteShared(other, sequences);
  cache.observer?.({ op: "fence", fence, sequences });
  return new Fence(cache, fence);
}
/** Lets a fence's pages go, unless that was done before. */
export function lift(cache: CacheState, fence: OpenFence): void {
  if (!fence.open) return;
  fence.open = false;
  cache.fences.delete(fence);
  // the last pages first: a prefix outlives its continuation
  fence.pages.forEach((list, n) => list.toReversed().forEach((page) => cache.groups[n]!.pool.unfence(page)));
  fence.residuals.forEach((list, n) =>
    list.toReversed().forEach((page) => cache.groups[n]!.residuals!.pool.unfence(page)),
  );
  cache.observer?.({ op: "lift", fence });
}
/** Lifts the fences whose work has ended. */
export function pollFences(cache: CacheState): void {
  for (const fence of cache.fences) if (fence.done?.() === true) lift(cache, fence);
}
/** Notes in which groups fenced work may read rows of the last page that lie behind the sequence's end, where it will write next. */
export function noteFences({ cache, lists, length }: SequenceState): void {
  cache.groups.forEach(({ pool, layout }, n) => {
    const list = lists[n]!;
    list.tailFenced = length % layout.pageSize !== 0 && pool.fences(list.ids[list.count - 1]!) > 0;
  });
}
/**
 * The same for a sequence that shares its last page with longer ones that are being fenced: a fork that was cut back before may be the
 * last to refer to the page, and would then add to it in place.
 */
function noteShared({ cache, lists, length }: SequenceState, fenced: ReadonlySet<SequenceState>): void {
  cache.groups.forEach(({ layout }, n) => {
    const list = lists[n]!;
    const at = list.count - 1;
    if (at < 0 || length % layout.pageSize === 0) return;
    const tail = list.ids[at]!;
    for (const other of fenced) {
      const shares =
        other.lists[n]!.ids[at] === tail ||
        (other.step?.replaced.some(({ group, page }) => group === n && page === tail) ?? false);
      if (shares && other.length > length) list.tailFenced = true;
    }
  });
}
