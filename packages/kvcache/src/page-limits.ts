import { ArgumentError, DTYPES } from "@heed/tensor";
import {
  type CacheDType,
  type CacheLayout,
  GROUP,
  type GroupedCacheOptions,
  type GroupLayout,
  groupsOf,
  isQuantised,
  type KvCacheOptions,
} from "./layout.ts";
import { requireWhole } from "./state.ts";

/** How many pages a group has, the null page not counted. */
export interface PageLimits {
  readonly pages: number;
  /** Pages of floats of an "int4" group; 0 in any other. */
  readonly residualPages: number;
}
const MOST = 2 ** 31 - 1;
const LEAST_RESIDUAL = 16; // a step of 1024 tokens at the default page size

/** Bytes of one row of keys or values of one head: its numbers, and its scale if it has one. */
function rowBytes(dtype: Exclude<CacheDType, "int4">, width: number): number {
  return isQuantised(dtype) ? width + DTYPES.float32.bytes : width * DTYPES[dtype].bytes;
}
/** Bytes of one page of keys, or values, of one head in 4 bits: codes in whole groups, a scale and a zero for each group. */
function groupBytes(pageSize: number, width: number, groups: number): number {
  return pageSize * Math.ceil(width / GROUP) * (GROUP / 2) + groups * 2 * DTYPES.float32.bytes;
}
/** Bytes of one page over all layers of a group, keys and values. */
export function bytesPerPage(g: GroupLayout): number {
  const { dtype, pageSize, headDim, valueHeadDim } = g;
  const heads = g.layers.length * g.numKvHeads;
  if (dtype === "int4") {
    const keys = groupBytes(pageSize, headDim, Math.ceil(pageSize / GROUP) * headDim);
    return heads * (keys + groupBytes(pageSize, valueHeadDim, pageSize * Math.ceil(valueHeadDim / GROUP)));
  }
  const row = rowBytes(dtype, headDim) + (g.valuesInKeys ? 0 : rowBytes(dtype, valueHeadDim));
  return heads * pageSize * row;
}
/** Bytes of one residual page over all layers of a group; 0 in a group that has none. */
export function bytesPerResidualPage(g: GroupLayout): number {
  if (g.residualDtype === undefined) return 0;
  return (
    g.layers.length * g.numKvHeads * g.pageSize * (g.headDim + g.valueHeadDim) * DTYPES[g.residualDtype].bytes
  );
}
function mostPages(g: GroupLayout): number {
  return Math.floor(MOST / g.pageSize) - 1; // a slot, page * pageSize + row, is an int32
}
/** A group with so many pages and, where it needs them, the residual pages asked for or its share. */
function limitsOf(g: GroupLayout, wanted: number | undefined, pages: number): PageLimits {
  if (g.dtype !== "int4") return { pages, residualPages: 0 };
  const share = Math.min(pages, Math.max(LEAST_RESIDUAL, Math.ceil(pages / 16)));
  const residualPages = wanted ?? share;
  requireWhole(residualPages, 1, mostPages(g) - pages, "maxResidualPages");
  return { pages, residualPages };
}
/** Pages for sequences in each group, from whichever limit was given. Throws ArgumentError. */
export function pageLimits(o: KvCacheOptions | GroupedCacheOptions, layout: CacheLayout): PageLimits[] {
  const { groups } = layout;
  const given = groupsOf(o);
  const pages = given.map((g) => g.maxPages);
  if (pages.some((n) => (n === undefined) === (o.maxBytes === undefined))) {
    throw new ArgumentError("[kvcache] give exactly one of maxPages (of every group) and maxBytes", {
      maxPages: pages,
      maxBytes: o.maxBytes,
    });
  }
  if (o.maxBytes !== undefined)
    return limitsWithin(
      o.maxBytes,
      layout,
      given.map((g) => g.maxResidualPages),
    );
  return pages.map((n, at) => {
    requireWhole(n, 1, mostPages(groups[at]!), "maxPages");
    return limitsOf(groups[at]!, given[at]!.maxResidualPages, n);
  });
}
/** As many blocks of tokens in every group as these bytes allow. */
function limitsWithin(
  maxBytes: number,
  { groups, blockTokens }: CacheLayout,
  residual: readonly (number | undefined)[],
): PageLimits[] {
  const limits = (blocks: number): PageLimits[] =>
    groups.map((g, n) => {
      const most = mostPages(g) - (g.dtype === "int4" ? (residual[n] ?? Math.ceil(mostPages(g) / 16)) : 0);
      return limitsOf(g, residual[n], Math.min(Math.max(1, most), blocks * (blockTokens / g.pageSize)));
    });
  const bytes = (blocks: number): number =>
    limits(blocks).reduce((sum, { pages, residualPages }, n) => {
      const g = groups[n]!;
      return sum + (pages + 1) * bytesPerPage(g) + residualPages * bytesPerResidualPage(g);
    }, 0);
  requireWhole(
    maxBytes,
    bytes(1),
    Number.MAX_SAFE_INTEGER,
    `maxBytes (at least the null page and ${blockTokens} tokens in every group)`,
  );
  let [low, high] = [1, MOST]; // low fits; pages stop growing before high
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (bytes(middle) <= maxBytes) low = middle;
    else high = middle - 1;
  }
  return limits(low);
}
