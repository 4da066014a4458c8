import { ArgumentError, type Shape, ShapeError, type Window } from "@heed/tensor";
import { positive, wholeNumber } from "./check.ts";
import type { LayerAttributes } from "./layer.ts";
import { type NormOptions, resolveNorm } from "./norm.ts";
import { RotaryEmbedding, type RotaryEmbeddingConfig, type RotaryEmbeddingOptions } from "./rope.ts";

/** Which of the four projections have a bias. */
export interface ProjectionBias {
  readonly q: boolean;
  readonly k: boolean;
  readonly v: boolean;
  readonly o: boolean;
}
/** A rotation for a layer: as for {@link RotaryEmbedding}, with the head size as the default `rotaryDim`. */
export interface LayerRopeOptions extends Omit<RotaryEmbeddingOptions, "rotaryDim"> {
  readonly rotaryDim?: number | undefined;
}
/** Options of `GroupedQueryAttention`. */
export interface GroupedQueryAttentionOptions {
  /** Size of a token's row in the input and the output. */
  readonly hiddenSize: number;
  /** Query heads Hq. */
  readonly numHeads: number;
  /**
   * Key and value heads Hkv, of which numHeads is a multiple: numHeads for multi-head, 1 for multi-query
   * attention.
   */
  readonly numKvHeads: number;
  /** Size D of every head. Default hiddenSize / numHeads. */
  readonly headDim?: number | undefined;
  /** Biases of all projections, or of each. Default false. */
  readonly bias?: boolean | ProjectionBias | undefined;
  /**
   * Rotation of queries and keys; an embedding that is passed in may be shared and stays the caller's.
   * Default none.
   */
  readonly rope?: LayerRopeOptions | RotaryEmbedding | null | undefined;
  /**
   * Norm of every query and key head, before the rotation (Henry et al. 2020, arXiv:2010.04245; Gemma 3, Qwen
   * 3). Default none.
   */
  readonly qkNorm?: NormOptions | null | undefined;
  /** A token sees itself and those before it. Default true. */
  readonly isCausal?: boolean | undefined;
  /** Sliding window. A Hugging Face `sliding_window` W is { left: W - 1 }. Default none. */
  readonly window?: Window | null | undefined;
  /** Scores become softcap * tanh(score / softcap) (Gemma 2). Default none. */
  readonly softcap?: number | null | undefined;
  /** Factor of q.k. Default 1 / sqrt(headDim). */
  readonly scale?: number | null | undefined;
  /**
   * A learnt logit per query head, "sinks" [numHeads], joins the softmax's denominator (gpt-oss). Default
   * false.
   */
  readonly sinks?: boolean | undefined;
  /** Which layer of a cache this one reads and writes. Default 0. */
  readonly layerIndex?: number | undefined;
}
/** Options with their defaults filled in. */
export interface GroupedQueryAttentionConfig {
  readonly hiddenSize: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly bias: ProjectionBias;
  readonly rope: RotaryEmbeddingConfig | null;
  readonly qkNorm: { readonly eps: number; readonly unitOffset: boolean } | null;
  readonly isCausal: boolean;
  readonly window: { readonly left?: number; readonly right?: number } | null;
  readonly softcap: number | null;
  readonly scale: number;
  readonly sinks: boolean;
  readonly layerIndex: number;
}
/** Attributes of `GroupedQueryAttention`: plain JSON, and options for building it again. */
export interface GroupedQueryAttentionAttributes extends LayerAttributes, GroupedQueryAttentionConfig {
  readonly operation: "GroupedQueryAttention";
}
const WHAT = "GroupedQueryAttention";

function resolveHeads(
  o: GroupedQueryAttentionOptions,
): Pick<GroupedQueryAttentionConfig, "hiddenSize" | "numHeads" | "numKvHeads" | "headDim"> {
  const hiddenSize = wholeNumber(WHAT, "hiddenSize", o.hiddenSize, 1);
  const numHeads = wholeNumber(WHAT, "numHeads", o.numHeads, 1);
  const numKvHeads = wholeNumber(WHAT, "numKvHeads", o.numKvHeads, 1);
  if (numHeads % numKvHeads !== 0) {
    throw new ShapeError(
      `[${WHAT}] numHeads must be a multiple of numKvHeads; got ${numHeads} and ${numKvHeads}`,
      { numHeads, numKvHeads },
    );
  }
  if (o.headDim === undefined && hiddenSize % numHeads !== 0) {
    throw new ShapeError(
      `[${WHAT}] hiddenSize ${hiddenSize} is not a multiple of numHeads ${numHeads}; give headDim`,
      { hiddenSize, numHeads },
    );
  }
  return {
    hiddenSize,
    numHeads,
    numKvHeads,
    headDim: wholeNumber(WHAT, "headDim", o.headDim ?? hiddenSize / numHeads, 1),
  };
}
function resolveWindow(window: Window | null | undefined): GroupedQueryAttentionConfig["window"] {
  if (window === null || window === undefined) return null;
  const side = (name: "left" | "right"): object => {
    const n = window[name];
    return n === undefined || n === Infinity ? {} : { [name]: wholeNumber(WHAT, `window.${name}`, n, 0) };
  };
  const sides: { left?: number; right?: number } = { ...side("left"), ...side("right") };
  return Object.keys(sides).length === 0 ? null : sides;
}
function resolveScale(scale: number | null | undefined, headDim: number): number {
  const factor = scale ?? 1 / Math.sqrt(headDim);
  if (!Number.isFinite(factor))
    throw new ArgumentError(`[${WHAT}] scale must be finite; got ${factor}`, { scale: factor });
  return factor;
}
/**
 * The rotation that options call for, made here or the caller's own. Throws ArgumentError when it is wider
 * than a head.
 */
export function resolveRope(o: GroupedQueryAttentionOptions, headDim: number): RotaryEmbedding | undefined {
  if (o.rope === null || o.rope === undefined) return undefined;
  const rope =
    o.rope instanceof RotaryEmbedding
      ? o.rope
      : new RotaryEmbedding({ ...o.rope, rotaryDim: o.rope.rotaryDim ?? headDim });
  const { rotaryDim } = rope.options;
  if (rotaryDim <= headDim) return rope;
  throw new ArgumentError(`[${WHAT}] rope.rotaryDim must be at most headDim ${headDim}; got ${rotaryDim}`, {
    rotaryDim,
    headDim,
  });
}
/** A configuration without its rotation, which has no parameters. */
export type HeadConfig = Omit<GroupedQueryAttentionConfig, "rope">;

/** Checks all options but the rotation's and fills in defaults. Throws ArgumentError, ShapeError. */
export function resolveHeadConfig(o: GroupedQueryAttentionOptions): HeadConfig {
  const heads = resolveHeads(o);
  const all = typeof o.bias === "object" ? undefined : (o.bias ?? false);
  return {
    ...heads,
    bias: typeof o.bias === "object" ? { ...o.bias } : { q: all!, k: all!, v: all!, o: all! },
    qkNorm: o.qkNorm ? resolveNorm(`${WHAT}.qkNorm`, o.qkNorm) : null,
    isCausal: o.isCausal ?? true,
    window: resolveWindow(o.window),
    softcap: o.softcap === null || o.softcap === undefined ? null : positive(WHAT, "softcap", o.softcap),
    scale: resolveScale(o.scale, heads.headDim),
    sinks: o.sinks ?? false,
    layerIndex: wholeNumber(WHAT, "layerIndex", o.layerIndex ?? 0, 0),
  };
}
/**
 * Names and shapes of the parameters that a configuration calls for, in the order in which the layer lists
 * them.
 */
export function parameterShapes(c: HeadConfig): Map<string, Shape> {
  const wide = c.numHeads * c.headDim;
  const narrow = c.numKvHeads * c.headDim;
  const shapes = new Map<string, Shape>();
  const linear = (name: string, bias: boolean, out: number, into: number): void => {
    shapes.set(`${name}.weight`, [out, into]);
    if (bias) shapes.set(`${name}.bias`, [out]);
  };
  linear("q_proj", c.bias.q, wide, c.hiddenSize);
  linear("k_proj", c.bias.k, narrow, c.hiddenSize);
  linear("v_proj", c.bias.v, narrow, c.hiddenSize);
  linear("o_proj", c.bias.o, c.hiddenSize, wide);
  if (c.qkNorm !== null) for (const name of ["q_norm.weight", "k_norm.weight"]) shapes.set(name, [c.headDim]);
  if (c.sinks) shapes.set("sinks", [c.numHeads]);
  return shapes;
}
