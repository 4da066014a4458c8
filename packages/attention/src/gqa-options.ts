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
/** Norm of queries and keys. */
export interface QueryKeyNormOptions extends NormOptions {
  /**
   * What a mean of squares runs over: every head for itself, with weights [headDim] (default; Gemma 3, Qwen 3),
   * or a token's whole projection, with weights [numHeads * headDim] and [numKvHeads * headDim] (OLMo 2,
   * arXiv:2501.00656).
   */
  readonly over?: "head" | "projection" | undefined;
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
   * Norm of queries and keys, before the rotation (Henry et al. 2020, arXiv:2010.04245). Default none.
   */
  readonly qkNorm?: QueryKeyNormOptions | null | undefined;
  /**
   * Values are the keys' projection as it is before norm and rotation; there is no "v_proj". Default false.
   */
  readonly tiedValue?: boolean | undefined;
  /**
   * One parameter "qkv_proj.weight", the rows of q, k and v one after the other (and "qkv_proj.bias"), in place
   * of three (Phi 3). Default false.
   */
  readonly mergedQkv?: boolean | undefined;
  /**
   * Makes this cross attention: keys and values come from a context, [B, Sk, contextSize], that calls give.
   * Default none.
   */
  readonly contextSize?: number | null | undefined;
  /** In cross attention, rotate the context's keys too. Default false: `rope` turns queries alone. */
  readonly rotateContext?: boolean | undefined;
  /** A token sees itself and those before it. Default true, false in cross attention. */
  readonly isCausal?: boolean | undefined;
  /** Sliding window. A Hugging Face `sliding_window` W is { left: W - 1 }. Default none. */
  readonly window?: Window | null | undefined;
  /**
   * First tokens of a sequence that stay visible behind the window (Xiao et al. 2023, arXiv:2309.17453); a windowed group of a cache must
   * keep as many (`sinks`). Not the learnt logits of `sinks`. Default 0.
   */
  readonly sinkTokens?: number | undefined;
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
  readonly qkNorm: {
    readonly eps: number;
    readonly unitOffset: boolean;
    readonly over: "head" | "projection";
  } | null;
  readonly tiedValue: boolean;
  readonly mergedQkv: boolean;
  readonly contextSize: number | null;
  readonly rotateContext: boolean;
  readonly isCausal: boolean;
  readonly window: { readonly left?: number; readonly right?: number } | null;
  readonly sinkTokens: number;
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

function resolveQkNorm(o: QueryKeyNormOptions | null | undefined): GroupedQueryAttentionConfig["qkNorm"] {
  if (o === null || o === undefined) return null;
  const { over = "head" } = o;
  if (over !== "head" && over !== "projection") {
    throw new ArgumentError(`[${WHAT}] qkNorm.over must be "head" or "projection"; got ${String(over)}`, {
      over,
    });
  }
  return { ...resolveNorm(`${WHAT}.qkNorm`, o), over };
}
/** Throws ArgumentError for options that exclude each other. */
function resolveSources(
  o: GroupedQueryAttentionOptions,
): Pick<GroupedQueryAttentionConfig, "bias" | "tiedValue" | "mergedQkv" | "contextSize" | "rotateContext"> {
  const { tiedValue = false, mergedQkv = false, rotateContext = false } = o;
  const refuse = (why: string): never => {
    throw new ArgumentError(`[${WHAT}] ${why}`, { tiedValue, mergedQkv, bias: o.bias });
  };
  const given = typeof o.bias === "object";
  const all = typeof o.bias === "boolean" && o.bias;
  const bias = typeof o.bias === "object" ? { ...o.bias } : { q: all, k: all, v: all && !tiedValue, o: all };
  if (given && tiedValue && bias.v)
    refuse("tiedValue leaves no projection of values, so bias.v must be false");
  if (mergedQkv && (bias.q !== bias.k || (!tiedValue && bias.k !== bias.v)))
    refuse(`mergedQkv has one bias for q, k and v: they must agree; got ${bias.q}, ${bias.k} and ${bias.v}`);
  const contextSize =
    o.contextSize === null || o.contextSize === undefined
      ? null
      : wholeNumber(WHAT, "contextSize", o.contextSize, 1);
  if (mergedQkv && contextSize !== null)
    refuse("mergedQkv needs one input for q, k and v; with contextSize there are two");
  if (rotateContext && contextSize === null) refuse("rotateContext needs contextSize: there is no context");
  if (rotateContext && (o.rope === null || o.rope === undefined)) refuse("rotateContext needs rope");
  return { bias, tiedValue, mergedQkv, contextSize, rotateContext };
}
/** Checks all options but the rotation's and fills in defaults. Throws ArgumentError, ShapeError. */
export function resolveHeadConfig(o: GroupedQueryAttentionOptions): HeadConfig {
  const heads = resolveHeads(o);
  const sources = resolveSources(o);
  return {
    ...heads,
    ...sources,
    qkNorm: resolveQkNorm(o.qkNorm),
    isCausal: o.isCausal ?? sources.contextSize === null,
    window: resolveWindow(o.window),
    sinkTokens: wholeNumber(WHAT, "sinkTokens", o.sinkTokens ?? 0, 0),
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
  if (c.mergedQkv) {
    linear("qkv_proj", c.bias.q, wide + (c.tiedValue ? 1 : 2) * narrow, c.hiddenSize);
  } else {
    const source = c.contextSize ?? c.hiddenSize;
    linear("q_proj", c.bias.q, wide, c.hiddenSize);
    linear("k_proj", c.bias.k, narrow, source);
    if (!c.tiedValue) linear("v_proj", c.bias.v, narrow, source);
  }
  linear("o_proj", c.bias.o, c.hiddenSize, wide);
  if (c.qkNorm !== null) {
    const perHead = c.qkNorm.over === "head";
    shapes.set("q_norm.weight", [perHead ? c.headDim : wide]);
    shapes.set("k_norm.weight", [perHead ? c.headDim : narrow]);
  }
  if (c.sinks) shapes.set("sinks", [c.numHeads]);
  return shapes;
}
