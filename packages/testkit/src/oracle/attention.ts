/**
 * Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) in float64 by straight loops:
 *
 *     s    = scale * q.k
 *     s    = softcap * tanh(s / softcap)          only if softcap > 0
 *     s    = s + bias                             additive mask, ALiBi -slope[h] * |p - j|
 *     m    = max over visible j of s, and of the sink
 *     z    = sum over visible j of exp(s - m) + exp(sink - m)
 *     out  = sum over visible j of exp(s - m) / z * keep_j * v_j        keep_j = 1, or 0 or 1 / (1 - probability) under dropout
 *     lse  = m + ln z
 *
 * and its gradient, with p = exp(s - m) / z:
 *
 *     delta = dOut.out;  dp = keep * dOut.v;  ds = p * (dp - delta)
 *     dBias = ds;  dRaw = ds * (1 - tanh^2(raw / softcap))
 *     dq = scale * dRaw.k;  dk = scale * dRaw^T.q;  dv = (keep * p)^T.dOut
 *     dSink[h] = -sum over b, i of exp(sink[h] - lse) * delta
 *
 * Hidden keys and values, and dropped values, are skipped, not multiplied by zero. A row that sees no key has out 0 and zero gradients;
 * its lse is the sink, or -inf without one.
 */
import { requireLength } from "../errors.ts";
import { biasAt, isVisible, validateAttention } from "./attention-problem.ts";
import type { AttentionOracleOptions, ScoreStage } from "./attention-problem.ts";
import { keepFactors } from "./dropout.ts";

/** What {@link attentionOracle} returns. */
export interface AttentionResult {
  /** [B, S, Hq, Dv] */
  readonly out: Float64Array;
  /** [B, Hq, S] */
  readonly lse: Float64Array;
  /** [B, Hq, S, Sk] at the requested stage. */
  readonly scores?: Float64Array;
}

/** What {@link attentionBackwardOracle} returns. */
export interface AttentionGradients {
  /** [B, S, Hq, D] */
  readonly dq: Float64Array;
  /** [B, Sk, Hkv, D] */
  readonly dk: Float64Array;
  /** [B, Sk, Hkv, Dv] */
  readonly dv: Float64Array;
  /** Gradient of the bias before any broadcast is summed [B, Hq, S, Sk]. */
  readonly dBias: Float64Array;
  /** [Hq]; zero without sinks. */
  readonly dSinks: Float64Array;
}

/** One row of scores, and where its operands start in q, k, v and out. */
interface Row {
  readonly raw: Float64Array; // [Sk]
  readonly softcapped: Float64Array; // [Sk]
  readonly masked: Float64Array; // [Sk], -inf where hidden
  readonly probabilities: Float64Array; // [Sk], 0 where hidden
  readonly visible: readonly number[];
  readonly keep: Float64Array; // [Sk]
  readonly lse: number;
  readonly qAt: number;
  readonly outAt: number;
  kAt(j: number): number;
  vAt(j: number): number;
}

function dot(a: ArrayLike<number>, aAt: number, b: ArrayLike<number>, bAt: number, n: number): number {
  let sum = 0;
  for (let d = 0; d < n; d++) sum += a[aAt + d]! * b[bAt + d]!;
  return sum;
}

function attentionRow(
  q: ArrayLike<number>,
  k: ArrayLike<number>,
  options: AttentionOracleOptions,
  [b, h, i]: readonly [number, number, number],
): Row {
  const { S, Sk, Hq, Hkv, D, Dv } = options.dims;
  const { scale = 1 / Math.sqrt(D), softcap = 0, sinks } = options;
  const sink = sinks ? sinks[h]! : -Infinity;
  const kvHead = Math.floor(h / (Hq / Hkv));
  const qAt = ((b * S + i) * Hq + h) * D;
  const outAt = ((b * S + i) * Hq + h) * Dv;
  const kAt = (j: number): number => ((b * Sk + j) * Hkv + kvHead) * D;
  const vAt = (j: number): number => ((b * Sk + j) * Hkv + kvHead) * Dv;

  const raw = Float64Array.from({ length: Sk }, (_, j) => scale * dot(q, qAt, k, kAt(j), D));
  const softcapped = softcap > 0 ? raw.map((s) => softcap * Math.tanh(s / softcap)) : raw;
  const masked = new Float64Array(Sk).fill(-Infinity);
  const visible: number[] = [];
  let m = sink;
  for (let j = 0; j < Sk; j++) {
    if (!isVisible(options, b, h, i, j)) continue;
    visible.push(j);
    masked[j] = softcapped[j]! + biasAt(options, b, h, i, j);
    m = Math.max(m, masked[j]!);
  }

  const probabilities = new Float64Array(Sk);
  let lse = -Infinity;
  if (m !== -Infinity) {
    let z = Math.exp(sink - m);
    for (const j of visible) z += Math.exp(masked[j]! - m);
    for (const j of visible) probabilities[j] = Math.exp(masked[j]! - m) / z;
    lse = m + Math.log(z);
  }
  const keep = keepFactors(options.dropout, [b, h, i], Sk);
  return { raw, softcapped, masked, probabilities, visible, keep, lse, qAt, outAt, kAt, vAt };
}

/**
 * Attention forward. q [B, S, Hq, D], k [B, Sk, Hkv, D], v [B, Sk, Hkv, Dv], row-major; the formula is at the head
 * of this file. `scores` also returns the scores [B, Hq, S, Sk] at one stage. Throws a TestkitError with code
 * "argument" for sizes that do not fit.
 */
export function attentionOracle(
  q: ArrayLike<number>,
  k: ArrayLike<number>,
  v: ArrayLike<number>,
  options: AttentionOracleOptions & { readonly scores?: ScoreStage | undefined },
): AttentionResult {
  validateAttention("attentionOracle", q, k, v, options);
  const { B, S, Sk, Hq, Dv } = options.dims;
  const out = new Float64Array(B * S * Hq * Dv);
  const lse = new Float64Array(B * Hq * S);
  const scores = options.scores ? new Float64Array(B * Hq * S * Sk) : undefined;
  for (let b = 0; b < B; b++)
    for (let h = 0; h < Hq; h++)
      for (let i = 0; i < S; i++) {
        const row = attentionRow(q, k, options, [b, h, i]);
        const rowIndex = (b * Hq + h) * S + i;
        lse[rowIndex] = row.lse;
        if (options.scores) scores?.set(row[options.scores], rowIndex * Sk);
        for (const j of row.visible.filter((key) => row.keep[key] !== 0))
          for (let d = 0; d < Dv; d++)
            out[row.outAt + d]! += row.probabilities[j]! * row.keep[j]! * v[row.vAt(j) + d]!;
      }
  return scores ? { out, lse, scores } : { out, lse };
}

/**
 * Attention backward: gradients of sum(dOut * out) with respect to q, k, v, the bias and the sinks, for dOut
 * [B, S, Hq, Dv]. The formula is at the head of this file. Throws a TestkitError with code "argument" for sizes
 * that do not fit.
 */
export function attentionBackwardOracle(
  q: ArrayLike<number>,
  k: ArrayLike<number>,
  v: ArrayLike<number>,
  dOut: ArrayLike<number>,
  options: AttentionOracleOptions,
): AttentionGradients {
  validateAttention("attentionBackwardOracle", q, k, v, options);
  const { B, S, Sk, Hq, D, Dv } = options.dims;
  requireLength("attentionBackwardOracle", "dOut", dOut, B * S * Hq * Dv);
  const gradients: AttentionGradients = {
    dq: new Float64Array(q.length),
    dk: new Float64Array(k.length),
    dv: new Float64Array(v.length),
    dBias: new Float64Array(B * Hq * S * Sk),
    dSinks: new Float64Array(Hq),
  };
  const { dq, dk, dv, dBias, dSinks } = gradients;
  const { scale = 1 / Math.sqrt(D), softcap = 0, sinks } = options;
  for (let b = 0; b < B; b++)
    for (let h = 0; h < Hq; h++)
      for (let i = 0; i < S; i++) {
        const row = attentionRow(q, k, options, [b, h, i]);
        if (row.visible.length === 0) continue;
        const dp = new Float64Array(Sk);
        let delta = 0; // sum_j p_j * dp_j = dOut.out
        for (const j of row.visible) {
          dp[j] = row.keep[j] === 0 ? 0 : row.keep[j]! * dot(dOut, row.outAt, v, row.vAt(j), Dv);
          delta += row.probabilities[j]! * dp[j]!;
        }
        if (sinks) dSinks[h]! -= Math.exp(sinks[h]! - row.lse) * delta;
        for (const j of row.visible) {
          const ds = row.probabilities[j]! * (dp[j]! - delta);
          const slope = softcap > 0 ? 1 - Math.tanh(row.raw[j]! / softcap) ** 2 : 1;
          dBias[((b * Hq + h) * S + i) * Sk + j] = ds;
          for (let d = 0; d < D; d++) {
            dq[row.qAt + d]! += scale * ds * slope * k[row.kAt(j) + d]!;
            dk[row.kAt(j) + d]! += scale * ds * slope * q[row.qAt + d]!;
          }
          if (row.keep[j] === 0) continue;
          const weight = row.probabilities[j]! * row.keep[j]!;
          for (let d = 0; d < Dv; d++) dv[row.vAt(j) + d]! += weight * dOut[row.outAt + d]!;
        }
      }
  return gradients;
}
