import {
  adopt,
  attention,
  type AttentionVjp,
  attentionVjp,
  type AttentionVjpOptions,
  type FloatDType,
  type Tensor,
  type Window,
} from "@heed/tensor";
import type { LayerAttributes, Module } from "./layer.ts";

/** Scaled dot-product attention under its PyTorch name; see `attention` of @heed/tensor. */
export { attention as scaledDotProductAttention } from "@heed/tensor";

/** Options of {@link ScaledDotProductAttention}: what is fixed for all calls. */
export interface ScaledDotProductAttentionOptions {
  /** Query at position p sees keys up to p. Default false, as in PyTorch. */
  readonly isCausal?: boolean | undefined;
  /** Sliding window. Default none. */
  readonly window?: Window | undefined;
  /** Keys below this stay visible behind the window's left side. Default 0. */
  readonly sinkTokens?: number | undefined;
  /** Default 1 / sqrt(D). */
  readonly scale?: number | undefined;
  /** Default none. */
  readonly softcap?: number | undefined;
  /** Order of axes: [B, S, H, D] (default), or [B, H, S, D] as in PyTorch. */
  readonly layout?: "bshd" | "bhsd" | undefined;
}
/** Attributes of {@link ScaledDotProductAttention}. */
export interface ScaledDotProductAttentionAttributes
  extends LayerAttributes, ScaledDotProductAttentionOptions {
  readonly operation: "ScaledDotProductAttention";
}
/** What a call of {@link ScaledDotProductAttention} may add; see `AttentionOptions` of @heed/tensor. */
export type ScaledDotProductAttentionCall = Pick<
  AttentionVjpOptions,
  | "attnMask"
  | "attnMaskGradient"
  | "kvLengths"
  | "queryOffset"
  | "alibiSlopes"
  | "sinks"
  | "dropout"
  | "fused"
>;
/**
 * Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) as a module without parameters. The
 * last query stands at the last key, so a causal module continues a cache; PyTorch's top-left alignment is
 * `queryOffset: 0`, the same where S = Sk.
 */
export class ScaledDotProductAttention implements Module {
  readonly parameters: ReadonlyMap<string, Tensor> = new Map();
  readonly #options: ScaledDotProductAttentionOptions;

  constructor(options: ScaledDotProductAttentionOptions = {}) {
    const { isCausal = false, layout = "bshd", window, sinkTokens, scale, softcap } = options;
    this.#options = {
      isCausal,
      layout,
      ...(window && { window }),
      ...(sinkTokens !== undefined && { sinkTokens }),
      ...(scale !== undefined && { scale }),
      ...(softcap !== undefined && { softcap }),
    };
    adopt(this);
  }
  attributes(): ScaledDotProductAttentionAttributes {
    return { operation: "ScaledDotProductAttention", ...this.#options };
  }
  /**
   * Output for q [B, S, Hq, D], k [B, Sk, Hkv, D], v [B, Sk, Hkv, Dv] (or [B, H, S, D] by `layout`). Errors
   * as `attention`.
   */
  forward<D extends FloatDType>(
    q: Tensor<D>,
    k: Tensor<NoInfer<D>>,
    v: Tensor<NoInfer<D>>,
    options: ScaledDotProductAttentionCall = {},
  ): Tensor<D> {
    return attention(q, k, v, { ...options, ...this.#options });
  }
  /**
   * {@link forward} with its backward pass, which gives the gradients of q, k, v and, on request, the mask
   * and the sinks.
   */
  vjp<D extends FloatDType>(
    q: Tensor<D>,
    k: Tensor<NoInfer<D>>,
    v: Tensor<NoInfer<D>>,
    options: ScaledDotProductAttentionCall = {},
  ): AttentionVjp<D> {
    return attentionVjp(q, k, v, { ...options, ...this.#options });
  }
  /** Has nothing to free. */
  [Symbol.dispose](): void {}
}
