import { requireArgument, requireLength } from "../errors.ts";
import type { DropoutOracle } from "./dropout.ts";

/** Sizes of an attention problem. Query head h reads key head floor(h / (Hq / Hkv)). */
export interface AttentionDims {
  /** Batch. */
  readonly B: number;
  /** Query length. */
  readonly S: number;
  /** Key length. */
  readonly Sk: number;
  /** Query heads, a multiple of Hkv. */
  readonly Hq: number;
  /** Key and value heads. */
  readonly Hkv: number;
  /** Head size of queries and keys. */
  readonly D: number;
  /** Head size of values. */
  readonly Dv: number;
}

/** A mask read by index into [B, Hq, S, Sk]; whatever it broadcasts over, `at` ignores. */
export interface OracleMask {
  /** "boolean": nonzero = may attend. "additive": added to the score; -inf excludes. */
  readonly kind: "boolean" | "additive";
  /** The mask's value for batch b, query head h, query i, key j. */
  at(b: number, h: number, i: number, j: number): number;
}

/**
 * The stages at which scores can be read: scale * q.k; after the softcap; after bias and masks (hidden = -inf);
 * after the softmax (hidden = 0).
 */
export type ScoreStage = "raw" | "softcapped" | "masked" | "probabilities";

/** Everything besides q, k and v that an attention function depends on. */
export interface AttentionOracleOptions {
  readonly dims: AttentionDims;
  /** Factor of q.k. Default 1/sqrt(D). */
  readonly scale?: number | undefined;
  /** s = softcap * tanh(s / softcap), if greater than 0, before any bias. */
  readonly softcap?: number | undefined;
  /** Key j is visible only if j <= p, the query's position. */
  readonly isCausal?: boolean | undefined;
  /** Key j is visible only if p - left <= j <= p + right; an absent side is open. */
  readonly window?: { readonly left?: number | undefined; readonly right?: number | undefined } | undefined;
  /** Keys j < sinkTokens are visible whatever `window.left` says (Xiao et al. 2023, arXiv:2309.17453). Default 0. */
  readonly sinkTokens?: number | undefined;
  /** Position of query 0, one for all or one per batch entry. Default kvLength[b] - S (bottom right). */
  readonly queryOffset?: number | ArrayLike<number> | undefined;
  /** Valid keys per batch entry [B]. Default Sk. */
  readonly kvLengths?: ArrayLike<number> | undefined;
  readonly mask?: OracleMask | undefined;
  /** ALiBi slopes [Hq]: adds -slope[h] * |p - j|. */
  readonly alibiSlopes?: ArrayLike<number> | undefined;
  /** A logit per head [Hq] that takes part in the softmax and has no value. */
  readonly sinks?: ArrayLike<number> | undefined;
  /** Drops weights after the softmax; lse and scores are those without it. */
  readonly dropout?: DropoutOracle | undefined;
}

/** Elements of q, k, v and out for the given sizes. */
export function attentionLengths(dims: AttentionDims): { q: number; k: number; v: number; out: number } {
  const { B, S, Sk, Hq, Hkv, D, Dv } = dims;
  return { q: B * S * Hq * D, k: B * Sk * Hkv * D, v: B * Sk * Hkv * Dv, out: B * S * Hq * Dv };
}

/** Checks every size the oracle indexes by. Throws a TestkitError with code "argument". */
export function validateAttention(
  where: string,
  q: ArrayLike<number>,
  k: ArrayLike<number>,
  v: ArrayLike<number>,
  options: AttentionOracleOptions,
): void {
  const { dims, kvLengths, queryOffset, alibiSlopes, sinks } = options;
  const { B, Sk, Hq, Hkv } = dims;
  const lengths = attentionLengths(dims);
  requireArgument(
    Hkv > 0 && Hq % Hkv === 0,
    `[${where}] query heads must be a multiple of key heads; got Hq ${Hq}, Hkv ${Hkv}`,
    { Hq, Hkv },
  );
  requireLength(where, "q", q, lengths.q);
  requireLength(where, "k", k, lengths.k);
  requireLength(where, "v", v, lengths.v);
  if (alibiSlopes) requireLength(where, "alibiSlopes", alibiSlopes, Hq);
  if (sinks) requireLength(where, "sinks", sinks, Hq);
  if (queryOffset !== undefined && typeof queryOffset !== "number")
    requireLength(where, "queryOffset", queryOffset, B);
  if (!kvLengths) return;
  requireLength(where, "kvLengths", kvLengths, B);
  for (let b = 0; b < B; b++) {
    const length = kvLengths[b]!;
    requireArgument(
      Number.isInteger(length) && length >= 0 && length <= Sk,
      `[${where}] kvLengths[${b}] must be an integer in 0..${Sk}; got ${length}`,
      { b, length, Sk },
    );
  }
}

/** Valid keys of batch entry b. */
export function kvLengthAt(options: AttentionOracleOptions, b: number): number {
  return options.kvLengths ? options.kvLengths[b]! : options.dims.Sk;
}

/** Position of query i of batch entry b. */
export function positionAt(options: AttentionOracleOptions, b: number, i: number): number {
  const { queryOffset, dims } = options;
  if (queryOffset === undefined) return kvLengthAt(options, b) - dims.S + i;
  return (typeof queryOffset === "number" ? queryOffset : queryOffset[b]!) + i;
}

/** Whether query i of head h may attend to key j: boolean mask, -inf bias, causal, window and length combined. */
export function isVisible(
  options: AttentionOracleOptions,
  b: number,
  h: number,
  i: number,
  j: number,
): boolean {
  const p = positionAt(options, b, i);
  const { isCausal, window, sinkTokens = 0, mask } = options;
  if (j >= kvLengthAt(options, b)) return false;
  if (isCausal && j > p) return false;
  if (window?.left !== undefined && j < p - window.left && j >= sinkTokens) return false;
  if (window?.right !== undefined && j > p + window.right) return false;
  if (!mask) return true;
  const value = mask.at(b, h, i, j);
  return mask.kind === "boolean" ? value !== 0 : value !== -Infinity;
}

/** What is added to a visible score: the additive mask and ALiBi. */
export function biasAt(options: AttentionOracleOptions, b: number, h: number, i: number, j: number): number {
  const { mask, alibiSlopes } = options;
  const additive = mask?.kind === "additive" ? mask.at(b, h, i, j) : 0;
  return alibiSlopes ? additive - alibiSlopes[h]! * Math.abs(positionAt(options, b, i) - j) : additive;
}
