import { scope, unscoped } from "@heed/tensor";
import { DecoderAttention } from "./decoder-attention.ts";
import type { GroupedQueryAttentionConfig, GroupedQueryAttentionOptions } from "./gqa-options.ts";
import { GroupedQueryAttention } from "./gqa.ts";
import type { InitOptions, LayerAttributes } from "./layer.ts";
import type { Parameters } from "./parameters.ts";

/** Options of {@link GlobalAttention}: those of `GroupedQueryAttention` without a window. */
export type GlobalAttentionOptions = Omit<GroupedQueryAttentionOptions, "window" | "sinkTokens">;
/** Attributes of {@link GlobalAttention}: plain JSON, and options for building it again. */
export interface GlobalAttentionAttributes
  extends LayerAttributes, Omit<GroupedQueryAttentionConfig, "window" | "sinkTokens"> {
  readonly operation: "GlobalAttention";
}
/**
 * `GroupedQueryAttention` over the full context: the layer that decoder stacks alternate with
 * `LocalAttention`.
 */
export class GlobalAttention extends DecoderAttention {
  /** A layer over given parameters, whose memory it shares. Errors as `GroupedQueryAttention`. */
  constructor(options: GlobalAttentionOptions, parameters: Parameters) {
    super(unscoped(() => new GroupedQueryAttention({ ...options, window: null, sinkTokens: 0 }, parameters)));
  }
  /** A layer with random parameters; see `InitOptions`. Errors as `GroupedQueryAttention.create`. */
  static create(options: GlobalAttentionOptions & InitOptions): GlobalAttention {
    return scope(() => {
      const { parameters } = GroupedQueryAttention.create({ ...options, window: null, sinkTokens: 0 });
      return new GlobalAttention(options, parameters);
    });
  }
  attributes(): GlobalAttentionAttributes {
    const { window: _none, sinkTokens: _any, ...config } = this.config;
    return { operation: "GlobalAttention", ...config };
  }
}
