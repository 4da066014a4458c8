import { ArgumentError, DTYPES, DTypeError, type Engine, type FloatDType, isFloat } from "@heed/tensor";
import type { PrefixOptions } from "./prefix-index.ts";
import { requireWhole } from "./state.ts";

/**
 * How rows are stored: as floats; in 8 bits with a float32 scale of its own for each token and head, which is written once and stays; or,
 * "int4", in floats until their page is full and then, once, in 4 bits (docs/kernels/paged-quantised.md has the formats and their error
 * bounds).
 */
export type CacheDType = FloatDType | "float8e4m3" | "int8" | "int4";
/** Floats that rows of "int4" wait in. */
export type ResidualDType = "float32" | "float16" | "bfloat16";

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
  /**
   * For "int4": pages of floats, in which the new rows of all sequences lie until their page is encoded, those of a whole step among
   * them. Default a sixteenth of the pages, but at least 16, or as many as there are.
   */
  readonly maxResidualPages?: number | undefined;
  /** For "int4": the dtype of those pages; default float32. */
  readonly residualDtype?: ResidualDType | undefined;
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
   * Tokens that `truncate` can always take back from the longest that a sequence has been, although its window has moved on or its pages
   * would be encoded, as speculative decoding does; of the tokens of a match in a cache with "int4" pages whole ones only. Default 0.
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
  /** Of "int4" groups: the dtype of rows that are not encoded yet. */
  readonly residualDtype?: ResidualDType | undefined;
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
/** Numbers of "int4" that share a scale and a zero. */
export const GROUP = 32;

/** Whether rows of this dtype are codes with a scale each. */
export function isQuantised(dtype: CacheDType): dtype is "float8e4m3" | "int8" {
  return dtype === "float8e4m3" || dtype === "int8";
}
/** Whether each row of this dtype is a float. */
function isFloatStorage(dtype: CacheDType): dtype is FloatDType {
  return Object.hasOwn(DTYPES, dtype) && isFloat(dtype as FloatDType);
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
  if (!isQuantised(dtype) && dtype !== "int4" && !isFloatStorage(dtype)) {
    throw new DTypeError(
      `[kvcache] dtype must be float64, float32, float16, bfloat16, float8e4m3, int8 or int4; got ${String(dtype)}`,
      { dtype },
    );
  }
  const group = { layers: [...layers], ...sizes, valuesInKeys, window, sinks, layout, dtype };
  return dtype === "int4"
    ? { ...group, residualDtype: requireResidual(o, pageSize) }
    : requireNoResidual(o, group);
}
/** The dtype of an "int4" group's residual pages. Throws ArgumentError, DTypeError for what its format does not allow. */
function requireResidual(o: GroupOptions, pageSize: number): ResidualDType {
  const { valuesInKeys = false, residualDtype = "float32" } = o;
  if (pageSize > GROUP && pageSize % GROUP !== 0) {
    throw new ArgumentError(
      `[kvcache] the page size of int4 must be below ${GROUP} or a multiple of it; got ${pageSize}`,
      { pageSize },
    );
  }
  if (valuesInKeys) {
    throw new ArgumentError(
      "[kvcache] int4 groups keys by channel and values by token, so that values cannot be in keys; use another dtype",
      { valuesInKeys },
    );
  }
  if (residualDtype === "float32" || residualDtype === "float16" || residualDtype === "bfloat16")
    return residualDtype;
  throw new DTypeError(
    `[kvcache] residualDtype must be float32, float16 or bfloat16; got ${String(residualDtype)}`,
    { residualDtype },
  );
}
function requireNoResidual(
  { maxResidualPages, residualDtype }: GroupOptions,
  group: GroupLayout,
): GroupLayout {
  if (maxResidualPages === undefined && residualDtype === undefined) return group;
  throw new ArgumentError(
    `[kvcache] maxResidualPages and residualDtype are of int4 groups; this one stores ${group.dtype}`,
    { dtype: group.dtype, maxResidualPages, residualDtype },
  );
}
/** The groups that options give; one of all layers where they give none. Throws ArgumentError. */
export function groupsOf(o: AnyOptions): readonly GroupOptions[] {
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
