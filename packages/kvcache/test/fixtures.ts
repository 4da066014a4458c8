import "@heed/engine-cpu";
import {
  floatView,
  decodeArray,
  encodeArray,
  gatherPages,
  type PageTable as HostTable,
  poison,
} from "@heed/testkit";
import {
  type DTypeArrays,
  type Engine,
  type FloatDType,
  getEngine,
  OutOfMemoryError,
  type PagedView,
  type Pages,
  type PageTable,
  scope,
  Tensor,
  tensor,
} from "@heed/tensor";
import {
  type BlockPool,
  type CacheDType,
  type GroupedCacheOptions,
  type GroupLayout,
  KvCache,
  type KvCacheOptions,
  type Sequence,
  type Step,
} from "../src/index.ts";
import { stateOf } from "../src/sequence.ts";
import type { CacheState } from "../src/state.ts";

/** A small cache on the portable engine whose pages all hold NaN. */
export function poisonedCache(options: Partial<KvCacheOptions> = {}): KvCache {
  const limit = options.maxBytes === undefined ? { maxPages: 12 } : {};
  const sizes = { layers: 2, numKvHeads: 2, headDim: 3, valueHeadDim: 2, pageSize: 4, engine: "portable" };
  const cache = new KvCache({ ...sizes, ...limit, ...options });
  poisonAll(cache);
  return cache;
}
/** A cache of groups whose pages all hold NaN, the null page included. */
export function poisonedGroups(options: GroupedCacheOptions): KvCache {
  const cache = new KvCache({ engine: "portable", ...options });
  poisonAll(cache);
  return cache;
}
/** An engine whose n-th call to alloc, upload or copy from `arm(n)` on throws once. */
export interface Faulty {
  readonly engine: Engine;
  readonly arm: (n: number) => void;
  readonly fired: () => boolean;
}
/** {@link Faulty} over the engine of this name. */
export function faulty(name = "portable"): Faulty {
  const good = getEngine(name);
  let left = Infinity;
  const tick = (): void => {
    if (--left === 0) throw new OutOfMemoryError("[test] no memory");
  };
  const engine: Engine = {
    ...good,
    alloc: (bytes) => (tick(), good.alloc(bytes)),
    upload: (values, out) => (tick(), good.upload(values, out)),
    copy: (x, out) => (tick(), good.copy(x, out)),
  };
  return { engine, arm: (n) => (left = n), fired: () => left <= 0 };
}
/** Fills every row of every page with NaN, those in use as well; of quantised pages the scales and zeros. */
export function poisonAll(cache: KvCache): void {
  using step = cache.reserve([]);
  for (let layer = 0; layer < cache.layout.layers; layer++) {
    const { valuesInKeys } = layoutOf(cache, layer);
    const { kPages, vPages } = step.view(layer);
    for (const held of valuesInKeys ? [kPages] : [kPages, vPages]) {
      for (const pages of floatsOf(held))
        scope(() =>
          poison((pages.isContiguous ? pages : pages.transpose(1, 2)).data as Float32Array, {
            dtype: pages.dtype as FloatDType,
          }),
        );
    }
  }
}
/** The floats of pages: numbers, scales, zeros, and rows that wait to be encoded. */
function floatsOf(held: Pages): readonly Tensor[] {
  if (held instanceof Tensor) return [held];
  return held.format === "int4" ? [held.scales, held.zeros, held.residual] : [held.scales];
}
/** What the group of one layer stores; of a layer that does not exist, what the first group does. */
export function layoutOf(cache: KvCache, layer: number): GroupLayout {
  const { groups } = cache.layout;
  return groups.find(({ layers }) => layers.includes(layer)) ?? groups[0]!;
}
/** Stats without what only ever rises: memory for tables, and pages touched. */
export function usage(cache: KvCache): unknown {
  const { bytes: _, touchedBytes: __, groups, ...rest } = cache.stats();
  return { ...rest, groups: groups.map(({ touchedBytes: ___, ...group }) => group) };
}
/** The page books of one group. */
export function poolOf(cache: KvCache, group = 0): BlockPool {
  return booksOf(cache).groups[group]!.pool;
}
/** The books of a cache, for tests that look inside or break them. */
export function booksOf(cache: KvCache): CacheState {
  using sequence = cache.open();
  return stateOf(sequence).cache;
}
/** Element d of head h of the row that layer `layer` stores for a token with this id; exact in every float dtype. */
export function element(id: number, layer: number, part: "k" | "v", h: number, d: number): number {
  const mixed = Math.imul(id * 31 + layer * 7 + (part === "k" ? 0 : 3) + h * 5 + d + 1, 0x9e3779b1);
  return (mixed >>> 24) - 128; // 8 bits: a whole number that bfloat16 holds
}
/** The rows of one layer for tokens with these ids, [ids.length, Hkv, width] row-major. */
export function rowsFor(cache: KvCache, ids: ArrayLike<number>, layer: number, part: "k" | "v"): number[] {
  const { numKvHeads, headDim, valueHeadDim, valuesInKeys } = layoutOf(cache, layer);
  const width = part === "k" ? headDim : valueHeadDim;
  const rows: number[] = [];
  for (let t = 0; t < ids.length; t++) {
    for (let h = 0; h < numKvHeads; h++) {
      for (let d = 0; d < width; d++) rows.push(element(ids[t]!, layer, valuesInKeys ? "k" : part, h, d));
    }
  }
  return rows;
}
/** A tensor of numbers in a float dtype. */
export function floats(
  values: ArrayLike<number>,
  shape: readonly number[],
  dtype: FloatDType,
  engine: Engine | string,
): Tensor {
  return tensor(encodeArray(dtype, values) as DTypeArrays[FloatDType], shape, { dtype, engine });
}
/** The dtype in which rows are given to a cache that stores them so. */
export function rowDType(dtype: CacheDType): FloatDType {
  return dtype === "int8" || dtype === "float8e4m3" || dtype === "int4" ? "float32" : dtype;
}
/** Writes one layer's rows of a step whose tokens have these ids. */
export function writeLayer(cache: KvCache, step: Step, ids: ArrayLike<number>, layer: number): void {
  const { numKvHeads, headDim, valueHeadDim, valuesInKeys, dtype } = layoutOf(cache, layer);
  scope(() => {
    const make = (part: "k" | "v", width: number): Tensor =>
      floats(
        rowsFor(cache, ids, layer, part),
        [ids.length, numKvHeads, width],
        rowDType(dtype),
        cache.engine,
      );
    if (valuesInKeys) step.write(layer, make("k", headDim));
    else step.write(layer, make("k", headDim), make("v", valueHeadDim));
  });
}
/** Appends tokens with these ids to sequences, one list each, in one step. */
export function append(cache: KvCache, lists: readonly (readonly [Sequence, readonly number[]])[]): void {
  using step = cache.reserve(lists.map(([sequence, ids]) => ({ sequence, tokens: ids.length })));
  const ids = lists.flatMap(([, list]) => list);
  for (let layer = 0; layer < cache.layout.layers; layer++) writeLayer(cache, step, ids, layer);
  step.commit(ids);
}
/** `count` ids from `first` on. */
export function idsFrom(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => first + i);
}
/** A page table as the oracles take it. */
export function hostTable(table: PageTable, pageSize: number): HostTable {
  const { queryIndptr, indptr, indices, lengths } = table;
  return {
    pageSize,
    queryIndptr: queryIndptr.data.slice(),
    indptr: indptr.data.slice(),
    indices: indices.data.slice(),
    lengths: lengths.data.slice(),
  };
}
/** The elements of pages as float64, row-major. */
export function pageValues(pages: Tensor): Float64Array {
  return scope(() => decodeArray(pages.dtype as FloatDType, pages.contiguous().data as ArrayLike<number>));
}
/** Keys and values of the n-th sequence of a view, [length, Hkv, width] row-major each. */
export function gathered(paged: PagedView<Pages>, n: number): { k: number[]; v: number[] } {
  const view = floatView(paged);
  const table = hostTable(view.table, view.kPages.shape[2]!);
  const read = (pages: Tensor): number[] =>
    Array.from(gatherPages(pageValues(pages), table, n, { Hkv: pages.shape[1]!, width: pages.shape[3]! }));
  return { k: read(view.kPages), v: read(view.vPages) };
}
/** What a layer holds for one sequence outside of a step. */
export function contents(cache: KvCache, sequence: Sequence, layer: number): { k: number[]; v: number[] } {
  using step = cache.reserve([{ sequence, tokens: 0 }]);
  return gathered(step.view(layer), 0);
}
/** What a layer should hold for tokens with these ids. */
export function expected(
  cache: KvCache,
  ids: ArrayLike<number>,
  layer: number,
): { k: number[]; v: number[] } {
  return { k: rowsFor(cache, ids, layer, "k"), v: rowsFor(cache, ids, layer, "v") };
}
