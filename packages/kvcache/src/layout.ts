import { ArgumentError, DTYPES, DTypeError, type Engine, type FloatDType, isFloat } from "@heed/tensor";
import type { PrefixOptions } from "./prefix-index.ts";
import { requireWhole } from "./state.ts";

/**
 * How rows are stored: as floats, or in 8 bits with a float32 scale of its own for each token and head, which is written once and stays
 * (docs/kernels/paged-quantised.md has the formats and their error bounds).
 */
export type CacheDType = FloatDType | "float8e4m3" | "int8";

/** What a group of layers stores for each token. */
export interface GroupShape {
  /** Key heads, Hkv. */
  readonly numKvHeads: number;
  /** Head size of keys, D. */
  readonly headDim: number;
  /** Head size of values, Dv; default headDim. */
  readonly valueHeadDim?: number | undefined;
  /**
   * Values are the first valueHeadDim numbers of the key rows and take no memory of their own, as in the absorbed form of latent
   * attention (DeepSeek-AI 2024, arXiv:2405.04434): a token takes Hkv * D numbers a layer. Default false.
   */
  readonly valuesInKeys?: boolean | undefined;
  /**
   * Tokens that a query of these layers sees, itself included (a layer's `window: { left }` is window - 1): pages behind it go back
   * to the pool at commit, and tables name the null page in their place. Default: all tokens.
   */
  readonly window?: number | undefined;
  /** First tokens of a sequence whose pages stay, whatever the window (Xiao et al. 2023, arXiv:2309.17453). Default 0. */
  readonly sinks?: number | undefined;
  /** Tokens of a page; default 64, the best on a CPU. */
  readonly pageSize?: number | undefined;
  /** Order of a page in memory: [Hkv, pageSize, D] (default, the best on a CPU) or [pageSize, Hkv, D]. */
  readonly layout?: "head-major" | "token-major" | undefined;
  /** Default float32. */
  readonly dtype?: CacheDType | undefined;
  /** Pages that sequences can use. */
  readonly maxPages?: number | undefined;
}
/** A group of layers with pages of its own. */
export interface GroupOptions extends GroupShape {
  /** Numbers of its layers; over all groups each of 0 .. layers - 1 stands once. */
  readonly layers: readonly number[];
}
/** Options of every {@link KvCache}. */
export interface CommonOptions {
  /** An engine or the name of a registered one; default the default engine. */
  readonly engine?: Engine | string | undefined;
  /**
   * Bytes of all pages of all layers, null pages included, instead of maxPages; every group then has room for equally many tokens.
   */
  readonly maxBytes?: number | undefined;
  /**
   * Tokens that `truncate` can always take back from the longest that a sequence has been, although its window has moved on, as
   * speculative decoding does. Default 0.
   */
  readonly draftMargin?: number | undefined;
  /**
   * Keep the full blocks of committed sequences whose ids are known, so that `match` finds them until their pages are needed. Default
   * false.
   */
  readonly prefixes?: boolean | PrefixOptions | undefined;
  /** The clock for priorities that expire, in milliseconds; default Date.now. */
  readonly now?: (() => number) | undefined;
}
/** Options of a {@link KvCache} for layers of one shape. Give exactly one of `maxPages` and `maxBytes`. */
export interface KvCacheOptions extends GroupShape, CommonOptions {
  /** Number of layers. */
  readonly layers: number;
}
/** Options of a {@link KvCache} for groups of layers. Give `maxPages` in each, or `maxBytes` for all. */
export interface GroupedCacheOptions extends CommonOptions {
  readonly groups: readonly GroupOptions[];
}
type AnyOptions = KvCacheOptions | GroupedCacheOptions;

/** What a group stores, defaults filled in. */
export interface GroupLayout {
  readonly layers: readonly number[];
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly valueHeadDim: number;
  /** Values are the first valueHeadDim numbers of the key rows. */
  readonly valuesInKeys: boolean;
  /** Tokens that a query sees, itself included; Infinity without a window. */
  readonly window: number;
  readonly sinks: number;
  readonly pageSize: number;
  readonly layout: "head-major" | "token-major";
  readonly dtype: CacheDType;
}
/** What a cache stores. */
export interface CacheLayout {
  /** Number of layers. */
  readonly layers: number;
  readonly groups: readonly GroupLayout[];
  /** Tokens of a block, the unit in which prefixes are shared: the largest page size. */
  readonly blockTokens: number;
  readonly draftMargin: number;
}

const MOST = 2 ** 31 - 1;

/** Whether rows of this dtype are codes with a scale each. */
export function isQuantised(dtype: CacheDType): dtype is "float8e4m3" | "int8" {
  return dtype === "float8e4m3" || dtype === "int8";
}
/** Bytes of one row of keys or values of one head: its numbers, and its scale if it has one. */
function rowBytes(dtype: CacheDType, width: number): number {
  return isQuantised(dtype) ? width + DTYPES.float32.bytes : width * DTYPES[dtype].bytes;
}

function groupLayout(o: GroupOptions): GroupLayout {
  const { layers, numKvHeads, headDim, valueHeadDim = headDim, pageSize = 64, sinks = 0 } = o;
  const { valuesInKeys = false, layout = "head-major", dtype = "float32", window = Infinity } = o;
  const sizes = { numKvHeads, headDim, valueHeadDim, pageSize };
  for (const [name, value] of Object.entries(sizes)) requireWhole(value, 1, MOST, name);
  if (valuesInKeys) requireWhole(valueHeadDim, 1, headDim, "valueHeadDim of values in keys");
  if (o.window !== undefined) requireWhole(o.window, 1, MOST, "window");
  requireWhole(sinks, 0, MOST, "sinks");
  if (layout !== "head-major" && layout !== "token-major") {
    throw new ArgumentError(`[kvcache] layout must be "head-major" or "token-major"; got ${String(layout)}`, {
      layout,
    });
  }
  if (!isQuantised(dtype) && (!Object.hasOwn(DTYPES, dtype) || !isFloat(dtype))) {
    throw new DTypeError(
      `[kvcache] dtype must be float64, float32, float16, bfloat16, float8e4m3 or int8; got ${String(dtype)}`,
      { dtype },
    );
  }
  return { layers: [...layers], ...sizes, valuesInKeys, window, sinks, layout, dtype };
}
function groupsOf(o: AnyOptions): readonly GroupOptions[] {
  if ("groups" in o && o.groups !== undefined) {
    if (o.groups.length > 0) return o.groups;
    throw new ArgumentError("[kvcache] groups is empty; give at least one group of layers", { groups: [] });
  }
  const one = o as KvCacheOptions;
  requireWhole(one.layers, 1, 2 ** 16, "layers");
  return [{ ...one, layers: Array.from({ length: one.layers }, (_, i) => i) }];
}
/** Throws ArgumentError unless the groups' layers are 0 .. n - 1, each in one group; returns n. */
function countLayers(groups: readonly GroupOptions[]): number {
  const all = groups.flatMap(({ layers }) => {
    if (Array.isArray(layers) && layers.length > 0) return layers as readonly number[];
    throw new ArgumentError("[kvcache] a group needs layers, a list of layer numbers", { layers });
  });
  const sorted = all.toSorted((a, b) => a - b);
  const wrong = sorted.findIndex((layer, i) => layer !== i);
  if (wrong < 0) return all.length;
  throw new ArgumentError(
    `[kvcache] the groups' layers must be 0 .. ${all.length - 1}, each in one group; got ${sorted.join(", ")}`,
    { layers: sorted },
  );
}
/** Checks options and fills in defaults. Throws ArgumentError, DTypeError. */
export function layoutOf(o: AnyOptions): CacheLayout {
  const given = groupsOf(o);
  const layers = countLayers(given);
  const groups = given.map(groupLayout);
  const blockTokens = Math.max(...groups.map((g) => g.pageSize));
  for (const { pageSize } of groups) {
    if (blockTokens % pageSize === 0) continue;
    throw new ArgumentError(
      `[kvcache] every page size must divide the largest, ${blockTokens}; got ${pageSize}`,
      { pageSize, blockTokens },
    );
  }
  const { draftMargin = 0 } = o;
  requireWhole(draftMargin, 0, MOST, "draftMargin");
  return { layers, groups, blockTokens, draftMargin };
}
/** Bytes of one page over all layers of a group, keys and values. */
export function bytesPerPage(g: GroupLayout): number {
  const row = rowBytes(g.dtype, g.headDim) + (g.valuesInKeys ? 0 : rowBytes(g.dtype, g.valueHeadDim));
  return g.layers.length * g.numKvHeads * g.pageSize * row;
}
function mostPages(g: GroupLayout): number {
  return Math.floor(MOST / g.pageSize) - 1; // a slot, page * pageSize + row, is an int32
}
/** Pages for sequences in each group, from whichever limit was given. Throws ArgumentError. */
export function pageLimits(o: AnyOptions, { groups, blockTokens }: CacheLayout): number[] {
  const pages = groupsOf(o).map((g) => g.maxPages);
  if (pages.some((n) => (n === undefined) === (o.maxBytes === undefined))) {
    throw new ArgumentError("[kvcache] give exactly one of maxPages (of every group) and maxBytes", {
      maxPages: pages,
      maxBytes: o.maxBytes,
    });
  }
  if (o.maxBytes === undefined) {
    return pages.map((n, at) => {
      requireWhole(n, 1, mostPages(groups[at]!), "maxPages");
      return n;
    });
  }
  let nullBytes = 0;
  let blockBytes = 0; // a block of tokens in every group
  for (const g of groups) {
    nullBytes += bytesPerPage(g);
    blockBytes += bytesPerPage(g) * (blockTokens / g.pageSize);
  }
  const least = nullBytes + blockBytes;
  requireWhole(
    o.maxBytes,
    least,
    Number.MAX_SAFE_INTEGER,
    `maxBytes (at least the null page and ${blockTokens} tokens in every group)`,
  );
  const blocks = Math.floor((o.maxBytes - nullBytes) / blockBytes);
  return groups.map((g) => Math.min(mostPages(g), blocks * (blockTokens / g.pageSize)));
}
