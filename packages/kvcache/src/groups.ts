import type { Engine } from "@heed/tensor";
import { BlockPool } from "./block-pool.ts";
import type { CacheLayout } from "./layout.ts";
import type { PageLimits } from "./page-limits.ts";
import { Residuals } from "./residual.ts";
import { type GroupState, pagesFor } from "./state.ts";
import { PageStorage } from "./storage.ts";

/** Books and memory of every group, or OutOfMemoryError and none. */
export function allocateGroups(
  engine: Engine,
  { groups }: CacheLayout,
  limits: readonly PageLimits[],
): GroupState[] {
  const made: GroupState[] = [];
  try {
    groups.forEach((layout, n) => {
      const { pages, residualPages } = limits[n]!;
      const pool = new BlockPool(pages);
      const residuals = residualPages === 0 ? undefined : new Residuals(pages + 1, residualPages);
      const storage = new PageStorage(engine, layout, pages, residualPages);
      const sinkPages = pagesFor(layout.sinks, layout.pageSize);
      made.push({ layout, pool, storage, residuals, sinkPages, touched: 0 });
    });
    return made;
  } catch (error) {
    for (const { storage } of made) storage[Symbol.dispose]();
    throw error;
  }
}
/** For each layer its group, and its index among the layers of that group. */
export function layerIndex({ layers, groups }: CacheLayout): { groupOf: Int32Array; indexOf: Int32Array } {
  const groupOf = new Int32Array(layers);
  const indexOf = new Int32Array(layers);
  groups.forEach((group, n) => {
    group.layers.forEach((layer, at) => {
      groupOf[layer] = n;
      indexOf[layer] = at;
    });
  });
  return { groupOf, indexOf };
}
