import { encodeModel } from "./onnx-proto.ts";
import type { OnnxAttribute, OnnxConstant, OnnxNode, OnnxValue } from "./onnx-proto.ts";

/** Sizes of one float32 attention call. `capacity` is the length of the key and value buffers, at least `totalLength`. */
export interface AttentionShape {
  readonly batch: number;
  readonly queryLength: number;
  readonly totalLength: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly capacity: number;
}

/** How keys and values reach GroupQueryAttention: all of them as inputs, or appended to a cache that the caller binds. */
export type CacheMode = "none" | "shared";

const MICROSOFT = "com.microsoft";
const opsets = { "": 21, [MICROSOFT]: 1 } as const;

/** Names of the graph values that every attention model here uses. */
export const cacheNames = {
  past: ["past_key", "past_value"],
  present: ["present_key", "present_value"],
} as const;

/**
 * com.microsoft GroupQueryAttention, version 1, float32: causal, query [B, S, Hq * D], key and value [B, S, Hkv * D], cache
 * [B, Hkv, capacity, D], `seqlens_k` int32 [B] (valid keys minus one), `total_sequence_length` an int32 scalar; output
 * [B, S, Hq * D]. With `cache: "shared"` the same buffer bound as past and present is appended to in place.
 */
export function groupQueryAttentionModel(shape: AttentionShape, cache: CacheMode): Uint8Array {
  return encodeModel({
    opsets,
    nodes: [groupQueryAttention(shape, cache, ["query", "key", "value"], "output")],
    inputs: [
      ...queryKeyValue(shape),
      ...(cache === "shared" ? cacheValues(shape, cacheNames.past) : []),
      ...lengths(shape),
    ],
    outputs: [
      activation("output", shape, shape.numHeads * shape.headDim),
      ...cacheValues(shape, cacheNames.present),
    ],
  });
}

/** A product with a constant weight: `x` [rows, inFeatures] times `weight` [inFeatures, outFeatures], float32. The runtime packs the weight once. */
export function linearModel(
  rows: number,
  inFeatures: number,
  outFeatures: number,
  weight: Float32Array,
): Uint8Array {
  const value = (name: string, columns: number): OnnxValue => ({
    name,
    dtype: "float32",
    shape: [rows, columns],
  });
  return encodeModel({
    opsets,
    nodes: [{ op: "MatMul", inputs: ["x", "weight"], outputs: ["output"] }],
    inputs: [value("x", inFeatures)],
    outputs: [value("output", outFeatures)],
    constants: [matrix("weight", inFeatures, outFeatures, weight)],
  });
}

/** Constant weights of an attention layer, each stored [in, out]: `q` [hidden, Hq * D], `k` and `v` [hidden, Hkv * D], `output` [Hq * D, hidden]. */
export interface LayerWeights {
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly output: Float32Array;
  /** Tables of the rotation, [capacity, D / 2]; without them nothing is rotated. */
  readonly rotary?: { readonly cos: Float32Array; readonly sin: Float32Array };
}

/** A whole attention layer, float32: projections of `x` [B, S, hidden], rotation (rotate-half), GroupQueryAttention, output projection to [B, S, hidden]. */
export function layerModel(
  shape: AttentionShape,
  hidden: number,
  weights: LayerWeights,
  cache: CacheMode,
): Uint8Array {
  const queryWidth = shape.numHeads * shape.headDim;
  const keyWidth = shape.numKvHeads * shape.headDim;
  const project = (input: string, weight: string, output: string): OnnxNode => ({
    op: "MatMul",
    inputs: [input, weight],
    outputs: [output],
  });
  return encodeModel({
    opsets,
    nodes: [
      project("x", "w_query", "query"),
      project("x", "w_key", "key"),
      project("x", "w_value", "value"),
      groupQueryAttention(
        shape,
        cache,
        ["query", "key", "value"],
        "attended",
        weights.rotary ? ["cos_cache", "sin_cache"] : undefined,
      ),
      project("attended", "w_output", "output"),
    ],
    inputs: [
      activation("x", shape, hidden),
      ...(cache === "shared" ? cacheValues(shape, cacheNames.past) : []),
      ...lengths(shape),
    ],
    outputs: [activation("output", shape, hidden), ...cacheValues(shape, cacheNames.present)],
    constants: [
      matrix("w_query", hidden, queryWidth, weights.q),
      matrix("w_key", hidden, keyWidth, weights.k),
      matrix("w_value", hidden, keyWidth, weights.v),
      matrix("w_output", queryWidth, hidden, weights.output),
      ...(weights.rotary
        ? [
            matrix("cos_cache", shape.capacity, shape.headDim / 2, weights.rotary.cos),
            matrix("sin_cache", shape.capacity, shape.headDim / 2, weights.rotary.sin),
          ]
        : []),
    ],
  });
}

function scaleOf(shape: AttentionShape): OnnxAttribute {
  return { float: 1 / Math.sqrt(shape.headDim) };
}

function groupQueryAttention(
  shape: AttentionShape,
  cache: CacheMode,
  inputs: readonly string[],
  output: string,
  rotary: readonly string[] = [],
): OnnxNode {
  return {
    op: "GroupQueryAttention",
    domain: MICROSOFT,
    inputs: [
      ...inputs,
      ...(cache === "shared" ? cacheNames.past : ["", ""]),
      "seqlens_k",
      "total_sequence_length",
      ...rotary,
    ],
    outputs: [output, ...cacheNames.present],
    attributes: {
      num_heads: shape.numHeads,
      kv_num_heads: shape.numKvHeads,
      scale: scaleOf(shape),
      do_rotary: rotary.length > 0 ? 1 : 0,
    },
  };
}

function activation(name: string, shape: AttentionShape, width: number): OnnxValue {
  return { name, dtype: "float32", shape: [shape.batch, shape.queryLength, width] };
}

function queryKeyValue(shape: AttentionShape): OnnxValue[] {
  return [
    activation("query", shape, shape.numHeads * shape.headDim),
    activation("key", shape, shape.numKvHeads * shape.headDim),
    activation("value", shape, shape.numKvHeads * shape.headDim),
  ];
}

function cacheValues(shape: AttentionShape, names: readonly string[]): OnnxValue[] {
  const dims = [shape.batch, shape.numKvHeads, shape.capacity, shape.headDim];
  return names.map((name) => ({ name, dtype: "float32", shape: dims }));
}

function lengths(shape: AttentionShape): OnnxValue[] {
  return [
    { name: "seqlens_k", dtype: "int32", shape: [shape.batch] },
    { name: "total_sequence_length", dtype: "int32", shape: [] },
  ];
}

function matrix(name: string, rows: number, columns: number, data: Float32Array): OnnxConstant {
  return { name, dtype: "float32", shape: [rows, columns], data };
}
