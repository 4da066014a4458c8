import type { Tensor } from "../../core/tensor.ts";
import type { FusedMode } from "../../engine/fused.ts";
import type { RmsNormOptions } from "../rms-norm/options.ts";
import type { RopeOptions } from "../rope/options.ts";

/** Options of {@link normRopeAppend}. */
export interface NormRopeAppendOptions {
  /** RMS norm of q and k before the rotation, each where it has a weight. Default none. */
  readonly norm?: NormOfHeads | undefined;
  /** Rotation of q and k. Default none. */
  readonly rope?: RopeOfHeads | undefined;
  /** See {@link FusedMode}. */
  readonly fused?: FusedMode | undefined;
}
/** Weights, of any float dtype: [D] normalises each head by itself, [H, D] all heads of a token together. */
export interface NormOfHeads extends Pick<RmsNormOptions, "eps" | "unitOffset"> {
  readonly q?: Tensor | undefined;
  readonly k?: Tensor | undefined;
}
/** Tables and options of `rope`. */
export interface RopeOfHeads extends Pick<RopeOptions, "pairing"> {
  readonly cos: Tensor; // [P, rotaryDim / 2], float32 (float64 for float64)
  readonly sin: Tensor; // as cos
  readonly positions: Tensor<"int32">; // [T], or [1, T]: the table row of each token
}
