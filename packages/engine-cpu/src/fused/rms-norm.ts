import type { FusedOp, RmsNormBackwardPlan, RmsNormPlan } from "@heed/tensor";
import type { Native } from "../native.ts";
import { RMS_NORM, RMS_NORM_BACKWARD } from "../structs.ts";

/** RMS norm forward on heed_rms_norm_run; it takes every plan. */
export function rmsNorm(native: Native): FusedOp<RmsNormPlan> {
  const { block, symbols } = native;
  const { fields, bytes } = RMS_NORM;
  return {
    refusal: () => undefined,
    run: ({ x, weight, out, eps, unitOffset }) => {
      block.begin(bytes, unitOffset ? 1 : 0);
      block.float64(fields.eps, eps);
      block.tensor(fields.x, x); // [A, B, C, n]
      block.tensor(fields.weight, weight); // [n]
      block.tensor(fields.out, out); // as x
      native.run(symbols.heed_rms_norm_run);
    },
  };
}
/** RMS norm backward on heed_rms_norm_backward_run; it takes every plan. */
export function rmsNormBackward(native: Native): FusedOp<RmsNormBackwardPlan> {
  const { block, symbols } = native;
  const { fields, bytes } = RMS_NORM_BACKWARD;
  return {
    refusal: () => undefined,
    run: ({ x, weight, dOut, dx, dWeight, eps, unitOffset }) => {
      block.begin(bytes, unitOffset ? 1 : 0);
      block.float64(fields.eps, eps);
      block.tensor(fields.x, x); // [A, B, C, n]
      block.tensor(fields.weight, weight); // [n]
      block.tensor(fields.d_out, dOut); // as x
      block.tensor(fields.d_x, dx); // as x
      block.tensor(fields.d_weight, dWeight); // [n]
      native.run(symbols.heed_rms_norm_backward_run);
    },
  };
}
