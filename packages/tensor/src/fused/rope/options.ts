import type { Tensor } from "../../core/tensor.ts";
import type { FusedMode } from "../../engine/fused.ts";

/** Options of {@link rope}. */
export interface RopeOptions {
  /** int32 [B, S], or [S] for all sequences alike: the table row of each token. Default 0, 1, 2, ... */
  readonly positions?: Tensor<"int32"> | undefined;
  /**
   * Which components form a pair: "half" (default) rotates (j, j + rotaryDim / 2), as Hugging Face stores weights; "interleaved"
   * rotates (2j, 2j + 1), as Meta's Llama and DeepSeek do.
   */
  readonly pairing?: "half" | "interleaved" | undefined;
  /** See {@link FusedMode}. */
  readonly fused?: FusedMode | undefined;
}
