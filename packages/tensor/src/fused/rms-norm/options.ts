import type { FusedMode } from "../../engine/fused.ts";

/** Options of {@link rmsNorm}. */
export interface RmsNormOptions {
  /** Added to the mean of squares. Default 1e-6. */
  readonly eps?: number | undefined;
  /** First of the axes normalised over; they run to the last. Default -1, the last alone. */
  readonly axis?: number | undefined;
  /** Multiply by 1 + weight, as Gemma does. Default false. */
  readonly unitOffset?: boolean | undefined;
  /** See {@link FusedMode}. */
  readonly fused?: FusedMode | undefined;
}
