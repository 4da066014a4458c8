import { ArgumentError, full, randn, type Shape, type Tensor, zeros } from "@heed/tensor";
import { notNegative, wholeNumber } from "./check.ts";
import type { LayerRopeOptions } from "./gqa-options.ts";
import { INIT_STD, type InitOptions, type LayerAttributes } from "./layer.ts";
import { RotaryEmbedding, type RotaryEmbeddingConfig } from "./rope.ts";
import { yarnSoftmaxScale } from "./rope-scaling.ts";

/** Options of `MultiHeadLatentAttention`, under DeepSeek's names. */
export interface MultiHeadLatentAttentionOptions {
  /** Size of a token's row in the input and the output. */
  readonly hiddenSize: number;
  /** Heads H, of queries as of keys and values. */
  readonly numHeads: number;
  /** Rank Rq of the queries' latent row; null (default) for one full projection. */
  readonly qLoraRank?: number | null | undefined;
  /** Rank R of the latent row that keys and values come from. */
  readonly kvLoraRank: number;
  /** Components Dn of a query or key head that do not turn. */
  readonly qkNopeHeadDim: number;
  /** Components Dr of a query head that turn, and of the rotary key that all heads share. */
  readonly qkRopeHeadDim: number;
  /** Size Dv of a value head. Default qkNopeHeadDim. */
  readonly vHeadDim?: number | undefined;
  /** Biases of the maps that Hugging Face's `attention_bias` gives one: q_a, kv_a and o. Default false. */
  readonly bias?: boolean | undefined;
  /**
   * Rotation of the Dr components; `pairing` is "interleaved" unless said otherwise. An embedding that is passed in may be shared and
   * stays the caller's. null for none. Default base 10000.
   */
  readonly rope?: LayerRopeOptions | RotaryEmbedding | null | undefined;
  /** Added to the mean of squares in the norms of latent rows. Default 1e-6. */
  readonly normEps?: number | undefined;
  /** A token sees itself and those before it. Default true. */
  readonly isCausal?: boolean | undefined;
  /** Factor of q.k. Default 1 / sqrt(Dn + Dr), times `yarnSoftmaxScale` of the rotation's scaling. */
  readonly scale?: number | null | undefined;
  /** Which layer of a cache this one reads and writes. Default 0. */
  readonly layerIndex?: number | undefined;
}
/** Options with their defaults filled in. */
export interface MultiHeadLatentAttentionConfig {
  readonly hiddenSize: number;
  readonly numHeads: number;
  readonly qLoraRank: number | null;
  readonly kvLoraRank: number;
  readonly qkNopeHeadDim: number;
  readonly qkRopeHeadDim: number;
  readonly vHeadDim: number;
  readonly bias: boolean;
  readonly rope: RotaryEmbeddingConfig | null;
  readonly normEps: number;
  readonly isCausal: boolean;
  readonly scale: number;
  readonly layerIndex: number;
}
/** Attributes of `MultiHeadLatentAttention`: plain JSON, and options for building it again. */
export interface MultiHeadLatentAttentionAttributes extends LayerAttributes, MultiHeadLatentAttentionConfig {
  readonly operation: "MultiHeadLatentAttention";
}
/** A configuration without its rotation, which has no parameters. */
export type LatentConfig = Omit<MultiHeadLatentAttentionConfig, "rope">;
const WHAT = "MultiHeadLatentAttention";

/** Checks all options but the rotation's and fills in defaults. Throws ArgumentError. */
export function resolveLatentConfig(o: MultiHeadLatentAttentionOptions): LatentConfig {
  const size = (name: keyof typeof o, value: unknown): number => wholeNumber(WHAT, name, value as number, 1);
  const qkNopeHeadDim = size("qkNopeHeadDim", o.qkNopeHeadDim);
  const qkRopeHeadDim = size("qkRopeHeadDim", o.qkRopeHeadDim);
  const rope = o.rope instanceof RotaryEmbedding ? o.rope.options : o.rope;
  const temperature = rope?.scaling === undefined ? 1 : yarnSoftmaxScale(rope.scaling);
  const scale = o.scale ?? temperature / Math.sqrt(qkNopeHeadDim + qkRopeHeadDim);
  if (!Number.isFinite(scale))
    throw new ArgumentError(`[${WHAT}] scale must be finite; got ${scale}`, { scale });
  return {
    hiddenSize: size("hiddenSize", o.hiddenSize),
    numHeads: size("numHeads", o.numHeads),
    qLoraRank: o.qLoraRank === null || o.qLoraRank === undefined ? null : size("qLoraRank", o.qLoraRank),
    kvLoraRank: size("kvLoraRank", o.kvLoraRank),
    qkNopeHeadDim,
    qkRopeHeadDim,
    vHeadDim: size("vHeadDim", o.vHeadDim ?? qkNopeHeadDim),
    bias: o.bias ?? false,
    normEps: notNegative(WHAT, "normEps", o.normEps ?? 1e-6),
    isCausal: o.isCausal ?? true,
    scale,
    layerIndex: wholeNumber(WHAT, "layerIndex", o.layerIndex ?? 0, 0),
  };
}
/** The rotation that options call for, made here or the caller's own. Throws ArgumentError unless it turns Dr components. */
export function resolveLatentRope(o: MultiHeadLatentAttentionOptions): RotaryEmbedding | undefined {
  if (o.rope === null) return undefined;
  const rope =
    o.rope instanceof RotaryEmbedding
      ? o.rope
      : new RotaryEmbedding({
          ...o.rope,
          pairing: o.rope?.pairing ?? "interleaved",
          rotaryDim: o.rope?.rotaryDim ?? o.qkRopeHeadDim,
        });
  const { rotaryDim } = rope.options;
  if (rotaryDim === o.qkRopeHeadDim) return rope;
  if (rope !== o.rope) rope[Symbol.dispose]();
  throw new ArgumentError(
    `[${WHAT}] rope.rotaryDim must be qkRopeHeadDim ${o.qkRopeHeadDim}; got ${rotaryDim}`,
    { rotaryDim, qkRopeHeadDim: o.qkRopeHeadDim },
  );
}
/** The map of x that leads to the queries. */
export function queryInput(c: LatentConfig): "q_proj" | "q_a_proj" {
  return c.qLoraRank === null ? "q_proj" : "q_a_proj";
}
/** Names and shapes of the parameters that a configuration calls for, in the order in which the layer lists them. */
export function latentParameterShapes(c: LatentConfig): Map<string, Shape> {
  const queries = c.numHeads * (c.qkNopeHeadDim + c.qkRopeHeadDim);
  const shapes = new Map<string, Shape>();
  const linear = (name: string, bias: boolean, out: number, into: number): void => {
    shapes.set(`${name}.weight`, [out, into]);
    if (bias) shapes.set(`${name}.bias`, [out]);
  };
  if (c.qLoraRank === null) linear("q_proj", false, queries, c.hiddenSize);
  else {
    linear("q_a_proj", c.bias, c.qLoraRank, c.hiddenSize);
    shapes.set("q_a_layernorm.weight", [c.qLoraRank]);
    linear("q_b_proj", false, queries, c.qLoraRank);
  }
  linear("kv_a_proj_with_mqa", c.bias, c.kvLoraRank + c.qkRopeHeadDim, c.hiddenSize);
  shapes.set("kv_a_layernorm.weight", [c.kvLoraRank]);
  linear("kv_b_proj", false, c.numHeads * (c.qkNopeHeadDim + c.vHeadDim), c.kvLoraRank);
  linear("o_proj", c.bias, c.hiddenSize, c.numHeads * c.vHeadDim);
  return shapes;
}
/**
 * Random parameters (see InitOptions). The two maps of x are slices of one tensor, so that one product serves both where their biases
 * allow. Tensors belong to the caller's scope.
 */
export function randomLatentParameters(c: LatentConfig, options: InitOptions): Map<string, Tensor> {
  const { dtype = "float32", engine, seed = 0 } = options;
  const on = { dtype, ...(engine !== undefined && { engine }) };
  wholeNumber(WHAT, "seed", seed, 0, 2 ** 32 - 1);
  // The generator takes 53 bits: the upper ones tell the streams of one seed apart.
  let stream = 0;
  const normal = (shape: Shape): Tensor =>
    randn(shape, { ...on, seed: seed + stream++ * 2 ** 32, std: INIT_STD });
  const shapes = latentParameterShapes(c);
  const cut = (suffix: "weight" | "bias", make: (shape: Shape) => Tensor): void => {
    const names = [`${queryInput(c)}.${suffix}`, `kv_a_proj_with_mqa.${suffix}`];
    if (!names.every((name) => shapes.has(name))) return;
    const [first, second] = names.map((name) => shapes.get(name)!) as [Shape, Shape];
    const all = make([first[0]! + second[0]!, ...first.slice(1)]);
    out.set(names[0]!, all.slice(0, 0, first[0]!)).set(names[1]!, all.slice(0, first[0]!));
  };
  const out = new Map<string, Tensor>();
  cut("weight", normal);
  cut("bias", (shape) => zeros(shape, on));
  for (const [name, shape] of shapes) {
    if (out.has(name)) continue;
    if (name.endsWith("layernorm.weight")) out.set(name, full(shape, 1, on));
    else out.set(name, name.endsWith(".bias") ? zeros(shape, on) : normal(shape));
  }
  return out;
}
