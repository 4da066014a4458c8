import type { AttentionShape } from "./peers/onnx-model.ts";

/** What one run must do at least: arithmetic bounded by the FMA peak, bytes bounded by memory, or so many calls of something. */
export type Work =
  | { readonly bound: "fma"; readonly flops: number }
  | { readonly bound: "read"; readonly bytes: number }
  | { readonly bound: "calls"; readonly count: number; readonly unit: string };

/** Storage dtypes that are measured. Arithmetic is float32 in all of them. */
export type BenchDType = "float32" | "float16" | "bfloat16";

/** Formats of quantised pages. */
export type QuantisedStorage = "int8" | "float8e4m3" | "int4";

/**
 * Bytes of an element of quantised pages with heads of 128, its share of scales and zeros included: a float32 for each row of codes; with
 * half bytes two of them for each 32 tokens of a key's channel, or all of a smaller page, and for each 32 channels of a value.
 */
export function quantisedBytes(storage: QuantisedStorage, pageSize: number): number {
  return storage === "int4" ? 0.5 + (8 / Math.min(32, pageSize) + 8 / 32) / 2 : 1 + 4 / 128;
}

/** Bytes of an element as stored. */
export const bytesPerElement: Readonly<Record<BenchDType, number>> = {
  float32: 4,
  float16: 2,
  bfloat16: 2,
};

/** A causal attention of equally many queries and keys, batch 1. */
export interface PrefillShape {
  readonly dtype: BenchDType;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly length: number;
}

/** One new token that attends over `length` tokens, itself included; batch 1. `pageSize` only when paged. */
export interface DecodeShape extends PrefillShape {
  readonly pageSize?: number;
  /** How the pages are stored, when not in `dtype`, which is then that of the query. */
  readonly storage?: QuantisedStorage;
}

/** A product of [rows, inFeatures] with a weight [outFeatures, inFeatures]. */
export interface LinearShape {
  readonly dtype: "float32";
  readonly rows: number;
  readonly inFeatures: number;
  readonly outFeatures: number;
}

/** A grouped-query attention layer: projections, rotation, attention, output projection; batch 1, float32. */
export interface LayerShape extends PrefillShape {
  readonly hidden: number;
  /** New tokens in this call; the other `length - queryLength` stand in the cache. */
  readonly queryLength: number;
}

const wide = { numHeads: 8, numKvHeads: 2, headDim: 128 } as const;
const narrow = { numHeads: 8, numKvHeads: 8, headDim: 64 } as const;
const decode = { numHeads: 32, numKvHeads: 8, headDim: 128 } as const;

/** Forward prefill: grouped heads of 128 and ungrouped heads of 64. */
export const prefillShapes: readonly PrefillShape[] = (["float32", "bfloat16"] as const).flatMap((dtype) => [
  ...[512, 2048, 4096].map((length) => ({ dtype, ...wide, length })),
  ...[512, 4096].map((length) => ({ dtype, ...narrow, length })),
]);

/** Forward and backward. */
export const backwardShapes: readonly PrefillShape[] = [
  { dtype: "float32", numHeads: 8, numKvHeads: 8, headDim: 128, length: 1024 },
];

const decodeLengths = [1024, 8192, 32768] as const;
const quantised = ["int8", "float8e4m3", "int4"] as const;
/**
 * Decode over a contiguous cache and over pages of 64 tokens: inside the last-level cache, beyond it, far beyond. Then over quantised
 * pages, and over smaller and larger ones.
 */
export const decodeShapes: readonly DecodeShape[] = [
  ...(["float32", "float16", "bfloat16"] as const).flatMap((dtype) =>
    decodeLengths.flatMap((length) => [
      { dtype, ...decode, length },
      { dtype, ...decode, length, pageSize: 64 },
    ]),
  ),
  ...quantised.flatMap((storage) =>
    decodeLengths.map((length) => ({ dtype: "float32" as const, ...decode, length, pageSize: 64, storage })),
  ),
  ...[16, 256].flatMap((pageSize) => [
    ...(["float32", "float16", "bfloat16"] as const).map((dtype) => ({
      dtype,
      ...decode,
      length: 32768,
      pageSize,
    })),
    ...quantised.map((storage) => ({
      dtype: "float32" as const,
      ...decode,
      length: 32768,
      pageSize,
      storage,
    })),
  ]),
];

/** A prefill's projection and a decode step's. */
export const linearShapes: readonly LinearShape[] = [512, 1].map((rows) => ({
  dtype: "float32",
  rows,
  inFeatures: 2048,
  outFeatures: 2048,
}));

/** Prefill of 512 tokens, and a decode step at 2048. */
export const layerShapes: readonly LayerShape[] = [
  { length: 512, queryLength: 512 },
  { length: 2048, queryLength: 1 },
].map((lengths) => ({
  dtype: "float32",
  hidden: 2048,
  numHeads: 16,
  numKvHeads: 4,
  headDim: 128,
  ...lengths,
}));

/** Visible query-key pairs of a causal square, times Hq: what attention can't avoid. */
function causalPairs(shape: PrefillShape): number {
  return (shape.numHeads * shape.length * (shape.length + 1)) / 2;
}

/** Two products of 2 D FLOPs for each visible pair. */
export function prefillWork(shape: PrefillShape): Work {
  return { bound: "fma", flops: 4 * shape.headDim * causalPairs(shape) };
}

/** Forward's two products and backward's five (scores again, dV, dP, dQ, dK). */
export function backwardWork(shape: PrefillShape): Work {
  return { bound: "fma", flops: 14 * shape.headDim * causalPairs(shape) };
}

/** Every key and every value is read once. */
export function decodeWork(shape: DecodeShape): Work {
  const { storage, dtype, pageSize = 64 } = shape;
  const share = storage === undefined ? 1 : quantisedBytes(storage, pageSize) / bytesPerElement[dtype];
  return { bound: "read", bytes: share * cacheBytes(shape) };
}

/** A single row reads its weight once; many rows are bound by arithmetic. */
export function linearWork(shape: LinearShape): Work {
  const weights = shape.inFeatures * shape.outFeatures;
  return shape.rows === 1
    ? { bound: "read", bytes: weights * bytesPerElement[shape.dtype] }
    : { bound: "fma", flops: 2 * shape.rows * weights };
}

/** Prefill: four projections and attention. A decode step: all weights and the cache, read once. */
export function layerWork(shape: LayerShape): Work {
  const weights = 2 * shape.hidden * shape.headDim * (shape.numHeads + shape.numKvHeads);
  return shape.queryLength === 1
    ? { bound: "read", bytes: weights * bytesPerElement[shape.dtype] + cacheBytes(shape) }
    : {
        bound: "fma",
        flops: 2 * shape.queryLength * weights + 4 * shape.headDim * causalPairs(shape),
      };
}

/** The sizes of `shape` as the peer's operator takes them, with a cache exactly as long as it must be. */
export function peerShape(shape: PrefillShape, queryLength: number): AttentionShape {
  const { numHeads, numKvHeads, headDim, length } = shape;
  return {
    batch: 1,
    queryLength,
    totalLength: length,
    numHeads,
    numKvHeads,
    headDim,
    capacity: length,
  };
}

function cacheBytes(shape: PrefillShape): number {
  return 2 * shape.length * shape.numKvHeads * shape.headDim * bytesPerElement[shape.dtype];
}

/** The words that name an attention shape in a report: `32/8 d128 1024 float32 pages of 64`. */
export function describe(shape: DecodeShape): string {
  const { numHeads, numKvHeads, headDim, length, dtype, pageSize, storage } = shape;
  const pages = pageSize === undefined ? "" : ` pages of ${pageSize}`;
  return `${numHeads}/${numKvHeads} d${headDim} ${length} ${storage ?? dtype}${pages}`;
}
