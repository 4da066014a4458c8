import type { PrefixStats } from "./prefix-index.ts";
import type { CacheState, GroupState } from "./state.ts";

/** Pages by what becomes of them; each is counted once. */
export interface PageCounts {
  readonly totalPages: number;
  /** Pages that hold nothing. */
  readonly freePages: number;
  /** Pages of sequences and of open steps, a shared one counted once. */
  readonly usedPages: number;
  /** Pages of nobody that hold a published prefix, to be evicted when pages run out. */
  readonly cachedPages: number;
  /** Pages of nobody that a match keeps until it is used or dropped. */
  readonly pinnedPages: number;
  /** Pages of nobody that a fence keeps. */
  readonly inFlightPages: number;
  /** Share of the rows of used pages, by bytes, that hold no committed token; 0 when none is used. */
  readonly waste: number;
  /** Pages of floats for rows of "int4" groups that are not encoded yet, and those of them that are free. */
  readonly residualPages: number;
  readonly freeResidualPages: number;
  /** Bytes set aside for the pages, null page and residual pages included. Of large blocks the system commits what was touched. */
  readonly pageBytes: number;
  /** Bytes of the pages ever handed out, and of the null page. */
  readonly touchedBytes: number;
}
/** What one group of layers holds. */
export interface GroupStats extends PageCounts {
  readonly layers: readonly number[];
}
/** What a cache holds. */
export interface CacheStats extends PageCounts {
  readonly groups: readonly GroupStats[];
  /** Committed tokens of all sequences; tokens that forks share count for each. */
  readonly tokens: number;
  readonly sequences: number;
  readonly openSteps: number;
  readonly openFences: number;
  /** What the index of prefixes counts, in a cache that keeps them. */
  readonly prefixes: PrefixStats | undefined;
  /** Bytes allocated: pages of all layers, the null pages included, and tables. */
  readonly bytes: number;
}

/** Committed rows on each page of a group: of those that share it, the most. */
function usedRows(cache: CacheState, n: number): Int32Array {
  const { pool, layout } = cache.groups[n]!;
  const rows = new Int32Array(pool.count + 1);
  for (const { lists, length } of cache.sequences) {
    const { ids, count } = lists[n]!;
    for (let i = 0; i < count; i++) {
      const page = ids[i]!;
      const used = Math.min(layout.pageSize, Math.max(0, length - i * layout.pageSize));
      if (used > rows[page]!) rows[page] = used;
    }
  }
  rows[0] = 0;
  return rows;
}
/** Pages by state, and rows in use. */
function countPages(
  { pool, residuals, layout, storage, touched }: GroupState,
  rows: Int32Array,
): PageCounts & { usedBytes: number } {
  let used = 0;
  let pinned = 0;
  let inFlight = 0;
  let tokens = 0;
  for (let page = 1; page <= pool.count; page++) {
    tokens += rows[page]!;
    if (pool.references(page) > 0) used++;
    else if (pool.pins(page) > 0) pinned++;
    else if (pool.fences(page) > 0) inFlight++;
  }
  const rowBytes = storage.pageBytes / layout.pageSize;
  return {
    totalPages: pool.count,
    freePages: pool.free,
    usedPages: used,
    cachedPages: pool.cached,
    pinnedPages: pinned,
    inFlightPages: inFlight,
    waste: used === 0 ? 0 : 1 - tokens / (used * layout.pageSize),
    residualPages: residuals?.pool.count ?? 0,
    freeResidualPages: residuals?.pool.free ?? 0,
    pageBytes: storage.byteLength,
    touchedBytes: (touched + 1) * storage.pageBytes + (residuals?.touched ?? 0) * storage.residualPageBytes,
    usedBytes: tokens * rowBytes,
  };
}
/** Counts everything in O(pages). */
export function statsOf(cache: CacheState): CacheStats {
  const counted = cache.groups.map((group, n) => countPages(group, usedRows(cache, n)));
  const sum = (of: (c: (typeof counted)[number], n: number) => number): number =>
    counted.reduce((total, c, n) => total + of(c, n), 0);
  const held = sum((c, n) => c.usedPages * cache.groups[n]!.storage.pageBytes);
  const pageBytes = sum((c) => c.pageBytes);
  let tables = 0;
  for (const memory of cache.idleTables) tables += memory.byteLength;
  for (const step of cache.steps) tables += step.tableBytes;
  return {
    totalPages: sum((c) => c.totalPages),
    freePages: sum((c) => c.freePages),
    usedPages: sum((c) => c.usedPages),
    cachedPages: sum((c) => c.cachedPages),
    pinnedPages: sum((c) => c.pinnedPages),
    inFlightPages: sum((c) => c.inFlightPages),
    waste: held === 0 ? 0 : 1 - sum((c) => c.usedBytes) / held,
    residualPages: sum((c) => c.residualPages),
    freeResidualPages: sum((c) => c.freeResidualPages),
    pageBytes,
    touchedBytes: sum((c) => c.touchedBytes),
    groups: counted.map(({ usedBytes: _, ...counts }, n) => ({
      layers: cache.layout.groups[n]!.layers,
      ...counts,
    })),
    tokens: cache.tokens,
    sequences: cache.sequences.size,
    openSteps: cache.steps.size,
    openFences: cache.fences.size,
    prefixes: cache.prefixes?.stats,
    bytes: pageBytes + tables,
  };
}
