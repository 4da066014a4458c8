import { ArgumentError } from "@heed/tensor";
import { notNegative, positive } from "./check.ts";
import { ROPE_RULES, type RopeField, type RopeRule } from "./rope-scaling-rules.ts";

/**
 * How a rotation is stretched beyond the context that a model was trained on. Each kind is one member of the
 * union; all are plain JSON.
 */
export type RopeScaling =
  NoScaling | LinearScaling | NtkScaling | DynamicNtkScaling | YarnScaling | Llama3Scaling | LongRopeScaling;
/** Frequencies as they are. */
export interface NoScaling {
  readonly type: "none";
}
/** Position interpolation (Chen et al. 2023, arXiv:2306.15595): positions divided by `factor`. */
export interface LinearScaling {
  readonly type: "linear";
  readonly factor: number;
}
/**
 * NTK-aware scaling (Peng et al. 2023, arXiv:2309.00071, section 3.1): the base becomes base *
 * factor^(rotaryDim / (rotaryDim - 2)), so that the lowest frequency is divided by `factor` and the highest
 * stays.
 */
export interface NtkScaling {
  readonly type: "ntk";
  readonly factor: number;
}
/**
 * NTK-aware scaling by the length L in use (Hugging Face `rope_type: "dynamic"`, where n =
 * originalMaxPositions is `max_position_embeddings`): the base grows by (factor * max(L, n) / n - (factor -
 * 1))^(rotaryDim / (rotaryDim - 2)). L is one more than the largest position of the call, in
 * any of its sequences, and a cached key keeps the frequencies of its own call; `length` fixes L, so that any
 * split of the tokens and any batch gives the same result.
 */
export interface DynamicNtkScaling {
  readonly type: "dynamic";
  readonly factor: number;
  readonly originalMaxPositions: number;
  readonly length?: number | undefined;
}
/**
 * YaRN (Peng et al. 2023, arXiv:2309.00071; Hugging Face `rope_type: "yarn"`): frequencies that make more
 * than `betaFast` turns within the original context stay, those with less than `betaSlow` are divided by
 * `factor`, and a ramp over the pairs joins them. Cosines and sines are multiplied by the attention factor,
 * see {@link ropeAttentionFactor}.
 */
export interface YarnScaling {
  readonly type: "yarn";
  readonly factor: number;
  readonly originalMaxPositions: number;
  /** Default 32. */
  readonly betaFast?: number | undefined;
  /** Default 1. */
  readonly betaSlow?: number | undefined;
  /** Round the ramp's ends outwards to whole pairs. Default true; gpt-oss says false. */
  readonly truncate?: boolean | undefined;
  /** With `mscaleAllDim`, the default attention factor is a ratio (DeepSeek). 0 counts as absent. */
  readonly mscale?: number | undefined;
  /** See `mscale` and {@link yarnSoftmaxScale}. */
  readonly mscaleAllDim?: number | undefined;
  /** Factor of cosines and sines. Default from the fields above. */
  readonly attentionFactor?: number | undefined;
}
/**
 * Llama 3.1's rule (Grattafiori et al. 2024, arXiv:2407.21783; Hugging Face `rope_type: "llama3"`): with
 * wavelength w = 2 pi / f and n = originalMaxPositions, f stays where w < n / highFreqFactor, becomes f /
 * factor where w > n / lowFreqFactor, and goes from one to the other in between.
 */
export interface Llama3Scaling {
  readonly type: "llama3";
  readonly factor: number;
  readonly lowFreqFactor: number;
  readonly highFreqFactor: number;
  readonly originalMaxPositions: number;
}
/**
 * LongRoPE (Ding et al. 2024, arXiv:2402.13753; Phi-3; Hugging Face `rope_type: "longrope"`): each frequency
 * is divided by a factor of its own, from `shortFactor` while the length in use is at most
 * `originalMaxPositions` and from `longFactor` beyond. The length in use is one more than the largest
 * position of the call, in any of its sequences, and a cached key keeps the frequencies of its own call;
 * `length` fixes the choice.
 */
export interface LongRopeScaling {
  readonly type: "longrope";
  /** One per pair: rotaryDim / 2 numbers. */
  readonly shortFactor: readonly number[];
  /** As `shortFactor`. */
  readonly longFactor: readonly number[];
  readonly originalMaxPositions: number;
  /** By how much the context grew: Hugging Face takes max_position_embeddings / originalMaxPositions. */
  readonly factor: number;
  /** Factor of cosines and sines. Default sqrt(1 + ln(factor) / ln(originalMaxPositions)). */
  readonly attentionFactor?: number | undefined;
  readonly length?: number | undefined;
}

function ruleOf(scaling: RopeScaling): RopeRule<RopeScaling> {
  const type = (scaling as RopeScaling | null | undefined)?.type as RopeScaling["type"]; // may come from JSON
  if (Object.hasOwn(ROPE_RULES, type)) return ROPE_RULES[type] as RopeRule<RopeScaling>;
  const known = Object.keys(ROPE_RULES).join(", ");
  throw new ArgumentError(`[RotaryEmbedding] scaling.type must be one of ${known}; got ${String(type)}`, {
    scaling,
  });
}
/**
 * A copy of a scaling with the fields that are set. Throws ArgumentError, naming the field, for a kind or
 * field that it does not know, a number that makes no sense, or one that is missing.
 */
export function resolveScaling(rotaryDim: number, base: number, scaling: RopeScaling): RopeScaling {
  const rule = ruleOf(scaling);
  const fields: Readonly<Record<string, RopeField>> = rule.fields;
  const unknown = Object.keys(scaling).find((name) => name !== "type" && !Object.hasOwn(fields, name));
  if (unknown !== undefined) {
    throw new ArgumentError(`[RotaryEmbedding] scaling "${scaling.type}" has no field ${unknown}`, {
      scaling,
    });
  }
  const resolved: Record<string, unknown> = { type: scaling.type };
  for (const [name, check] of Object.entries(fields)) {
    const value = (scaling as unknown as Record<string, unknown>)[name];
    check(`scaling.${name}`, value, rotaryDim);
    if (value !== undefined) resolved[name] = Array.isArray(value) ? [...value] : value;
  }
  rule.check?.(scaling, rotaryDim, base);
  return resolved as unknown as RopeScaling;
}
/**
 * The length that decides about frequencies when `length` positions are in use: one that stands for all with
 * the same frequencies, 0 for a scaling that does not ask. Throws ArgumentError when it asks and `length` is
 * unknown, as it is where positions lie on a device.
 */
export function decisiveLength(scaling: RopeScaling, length: number | undefined): number {
  const { decisiveLength: decide } = ruleOf(scaling);
  if (decide === undefined) return 0;
  const fixed = "length" in scaling ? scaling.length : undefined;
  if (fixed !== undefined || length !== undefined) return decide(scaling, fixed ?? length!);
  throw new ArgumentError(
    `[RotaryEmbedding] scaling "${scaling.type}" goes by the length in use, which positions on a device do not tell; give scaling.length`,
    { scaling },
  );
}
/** Whether `length`, a decisive one, is no other call's, so that its frequencies are not worth keeping. */
export function variesByCall(scaling: RopeScaling, length: number): boolean {
  return scaling.type === "dynamic" && scaling.length === undefined && length > scaling.originalMaxPositions;
}
/**
 * Radians per position of each pair [rotaryDim / 2], in float64: base^(-2j / rotaryDim) for j < rotaryDim / 2
 * (Su et al. 2021, arXiv:2104.09864), scaled. `length` is the length in use, which only "dynamic" and
 * "longrope" look at unless they fix their own; by default it is within the original context. Throws
 * ArgumentError for a scaling that it does not know or whose fields make no sense.
 */
export function ropeFrequencies(
  rotaryDim: number,
  base: number,
  scaling: RopeScaling,
  length: number = 0,
): Float64Array {
  resolveScaling(rotaryDim, base, scaling);
  return ruleOf(scaling).frequencies(scaling, rotaryDim, base, decisiveLength(scaling, length));
}
/**
 * What a scaling multiplies cosines and sines by, and so scores by its square: 1, but for "yarn" 0.1 ln(factor)
 * + 1, or with mscale and mscaleAllDim the ratio of (0.1 mscale ln(factor) + 1) over that of mscaleAllDim; for
 * "longrope" sqrt(1 + ln(factor) / ln(originalMaxPositions)); and none of that where factor <= 1 or
 * `attentionFactor` is given. Throws ArgumentError for a scaling that it does not know.
 */
export function ropeAttentionFactor(scaling: RopeScaling): number {
  return ruleOf(scaling).attentionFactor?.(scaling) ?? 1;
}
/**
 * What DeepSeek-V2 and V3 (arXiv:2405.04434, arXiv:2412.19437) multiply the softmax scale by, in place of
 * cosines and sines: (0.1 mscaleAllDim ln(factor) + 1)^2 for "yarn" with `mscaleAllDim` and factor > 1, else 1.
 * Their configurations have mscale = mscaleAllDim, which leaves cosines and sines as they are. Throws
 * ArgumentError.
 */
export function yarnSoftmaxScale(scaling: RopeScaling): number {
  ruleOf(scaling);
  if (scaling.type !== "yarn") return 1;
  const factor = positive("yarnSoftmaxScale", "scaling.factor", scaling.factor);
  const mscale = notNegative("yarnSoftmaxScale", "scaling.mscaleAllDim", scaling.mscaleAllDim ?? 0);
  return factor <= 1 ? 1 : (0.1 * mscale * Math.log(factor) + 1) ** 2;
}
