import type { FusedMode } from "../../engine/fused.ts";
import type { Tensor } from "../../core/tensor.ts";

/** Which keys a query sees besides causality, counted from its own position p: p - left .. p + right. An absent side is open. */
export interface Window {
  readonly left?: number | undefined;
  readonly right?: number | undefined;
}
/** How a score q.k becomes what the softmax sees. Query i of a sequence stands at position p = offset + i. */
export interface ScoreOptions {
  /** Factor of q.k. Default 1 / sqrt(D). */
  readonly scale?: number | undefined;
  /** Query at p sees keys j <= p. Default false. */
  readonly isCausal?: boolean | undefined;
  /** Sliding window. A Hugging Face `sliding_window` W counts the query itself: left = W - 1. */
  readonly window?: Window | undefined;
  /**
   * Keys j < sinkTokens stay visible behind the window's left side (Xiao et al. 2023, arXiv:2309.17453): a query sees them and the last
   * keys. Causality, the right side, lengths and masks hold for them too; without a left side it changes nothing. Default 0.
   */
  readonly sinkTokens?: number | undefined;
  /** s = softcap * tanh(s / softcap), before masks and biases (Gemma 2). Default none. */
  readonly softcap?: number | undefined;
  /** Slopes of ALiBi (Press, Smith, Lewis 2021, arXiv:2108.12409): [Hq], adds -slope * |p - j|. */
  readonly alibiSlopes?: Tensor | undefined;
  /** A logit per query head [Hq] that joins the softmax's denominator (Xiao et al. 2023, arXiv:2309.17453; gpt-oss). */
  readonly sinks?: Tensor | undefined;
}
/**
 * Dropout on attention weights (Srivastava et al. 2014; Vaswani et al. 2017, section 5.4): after the softmax a weight is set to 0 with
 * this probability, the others are divided by 1 - probability. Which ones is a pure function of the seed and of batch, query head, query
 * and key, as counted in the operands: the same on every engine and number of threads, and the same in the backward pass. Change the seed
 * with every layer and step.
 */
export interface Dropout {
  /** From 0, which drops nothing, to below 1. */
  readonly probability: number;
  /** A whole number from 0 to 2^53 - 1. */
  readonly seed: number;
}
/** Options of {@link attention}. Letters: B batch, S query length, Sk key length, Hq / Hkv heads, D / Dv head sizes. */
export interface AttentionOptions extends ScoreOptions {
  /** Order of the axes of q, k, v and the output: [B, S, H, D] (default) or [B, H, S, D]. */
  readonly layout?: "bshd" | "bhsd" | undefined;
  /** Broadcasts to [B, Hq, S, Sk]. bool: true may attend. Float: added to the score; -Infinity excludes the key. */
  readonly attnMask?: Tensor | undefined;
  /** int32 [B]: keys in use of each sequence; later ones are not read. Default Sk. */
  readonly kvLengths?: Tensor<"int32"> | undefined;
  /**
   * Position of query 0. "end" (default): kvLength - S, so that the last query stands at the last key. 0 aligns a causal mask top
   * left, as PyTorch's is_causal does. A number, or int32 [B].
   */
  readonly queryOffset?: "end" | number | Tensor<"int32"> | undefined;
  /** Default none. The log-sum-exp and the scores at every stage are those without it. */
  readonly dropout?: Dropout | undefined;
  /** See {@link FusedMode}. */
  readonly fused?: FusedMode | undefined;
}
