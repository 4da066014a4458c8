import { scope, unscoped, type Window } from "@heed/tensor";
import { wholeNumber } from "./check.ts";
import { DecoderAttention } from "./decoder-attention.ts";
import type { GroupedQueryAttentionConfig, GroupedQueryAttentionOptions } from "./gqa-options.ts";
import { GroupedQueryAttention } from "./gqa.ts";
import type { InitOptions, LayerAttributes } from "./layer.ts";
import type { Parameters } from "./parameters.ts";

/** Options of {@link LocalAttention}: those of `GroupedQueryAttention` with a window by its size. */
export interface LocalAttentionOptions extends Omit<GroupedQueryAttentionOptions, "window"> {
  /**
   * Tokens that a token sees to the left, itself included, as a Hugging Face `sliding_window` counts; with
   * `isCausal: false` as many to the right: |i - j| < windowSize.
   */
  readonly windowSize: number;
}
/** Attributes of {@link LocalAttention}: plain JSON, and options for building it again. */
export interface LocalAttentionAttributes
  extends LayerAttributes, Omit<GroupedQueryAttentionConfig, "window"> {
  readonly operation: "LocalAttention";
  readonly windowSize: number;
}
function grouped(options: LocalAttentionOptions): GroupedQueryAttentionOptions {
  const reach = wholeNumber("LocalAttention", "windowSize", options.windowSize, 1) - 1;
  const { windowSize: _counted, ...rest } = options;
  const { isCausal = (options.contextSize ?? null) === null } = options;
  const window: Window = isCausal ? { left: reach } : { left: reach, right: reach };
  return { ...rest, isCausal, window };
}
/**
 * `GroupedQueryAttention` within a sliding window (Beltagy et al. 2020, arXiv:2004.05150; Mistral, Gemma):
 * causal by default; with `isCausal: false` the window is two-sided, as encoders have it.
 */
export class LocalAttention extends DecoderAttention {
  /**
   * A layer over given parameters, whose memory it shares. Throws ArgumentError for a `windowSize` that is no
   * whole number of at least 1; other errors as `GroupedQueryAttention`.
   */
  constructor(options: LocalAttentionOptions, parameters: Parameters) {
    super(unscoped(() => new GroupedQueryAttention(grouped(options), parameters)));
  }
  /** A layer with random parameters; see `InitOptions`. Errors as the constructor's. */
  static create(options: LocalAttentionOptions & InitOptions): LocalAttention {
    return scope(() => {
      const { dtype, engine, seed } = options;
      const { parameters } = GroupedQueryAttention.create({ ...grouped(options), dtype, engine, seed });
      return new LocalAttention(options, parameters);
    });
  }
  attributes(): LocalAttentionAttributes {
    const { window, ...config } = this.config;
    return { operation: "LocalAttention", ...config, windowSize: window!.left! + 1 };
  }
}
