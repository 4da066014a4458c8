import { adopt, type AttentionScoresOptions, type FloatDType, type Tensor } from "@heed/tensor";
import type {
  GroupedQueryAttentionCall,
  GroupedQueryAttentionInputs,
  GroupedQueryAttentionVjp,
  GroupedQueryAttentionVjpOptions,
} from "./gqa-call.ts";
import type { GroupedQueryAttentionConfig } from "./gqa-options.ts";
import type { GroupedQueryAttention } from "./gqa.ts";
import type { PastKeysValues } from "./gqa-past.ts";
import type { Layer, LayerAttributes } from "./layer.ts";
import type { Positions } from "./rope.ts";

/**
 * What a stack of layers that alternates between full and windowed attention holds: `GlobalAttention` or
 * `LocalAttention`, a `GroupedQueryAttention` each under its own name.
 */
export abstract class DecoderAttention implements Layer<GroupedQueryAttentionCall> {
  /** The layer itself, such as for `isMerged`. Disposed with this one. */
  readonly grouped: GroupedQueryAttention;

  /** Takes over `grouped`, which no scope may own. */
  protected constructor(grouped: GroupedQueryAttention) {
    this.grouped = grouped;
    adopt(this);
  }
  abstract attributes(): LayerAttributes;

  /** As those of `GroupedQueryAttention`. */
  get parameters(): ReadonlyMap<string, Tensor> {
    return this.grouped.parameters;
  }
  /** The options of the `GroupedQueryAttention`, with their defaults filled in. */
  get config(): GroupedQueryAttentionConfig {
    return this.grouped.config;
  }
  /** As `GroupedQueryAttention.isMerged`: whether one matrix product serves q, k and v. */
  get isMerged(): boolean {
    return this.grouped.isMerged;
  }
  /** As `GroupedQueryAttention.forward`: x [B, S, hidden] to the same. Same errors. */
  forward<D extends FloatDType>(x: Tensor<D>, options: GroupedQueryAttentionCall = {}): Tensor<D> {
    return this.grouped.forward(x, options);
  }
  /** As `GroupedQueryAttention.forwardWithPresent`: the output, and all keys and values. Same errors. */
  forwardWithPresent<D extends FloatDType>(
    x: Tensor<D>,
    options: GroupedQueryAttentionInputs = {},
  ): { readonly output: Tensor<D>; readonly present: PastKeysValues<D> } {
    return this.grouped.forwardWithPresent(x, options);
  }
  /** As `GroupedQueryAttention.contextKeysValues`: a context's keys and values, for the `past` of calls that share it. Same errors. */
  contextKeysValues<D extends FloatDType>(
    context: Tensor<D>,
    options: { readonly positions?: Positions | undefined } = {},
  ): PastKeysValues<D> {
    return this.grouped.contextKeysValues(context, options);
  }
  /** As `GroupedQueryAttention.scores`: the probabilities, or another stage, [B, Hq, S, Sk]. Same errors. */
  scores(
    x: Tensor,
    options: GroupedQueryAttentionInputs & Pick<AttentionScoresOptions, "stage" | "softmaxDtype"> = {},
  ): Tensor {
    return this.grouped.scores(x, options);
  }
  /** As `GroupedQueryAttention.vjp`: the output with its backward pass. Same errors. */
  vjp<D extends FloatDType>(
    x: Tensor<D>,
    options: GroupedQueryAttentionVjpOptions = {},
  ): GroupedQueryAttentionVjp<D> {
    return this.grouped.vjp(x, options);
  }
  /** As `GroupedQueryAttention.scaleRope`: positions are divided by `factor` from now on. Same errors. */
  scaleRope(factor: number): void {
    this.grouped.scaleRope(factor);
  }
  [Symbol.dispose](): void {
    this.grouped[Symbol.dispose]();
  }
}
