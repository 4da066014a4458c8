import type { LinearPlan } from "../fused/linear/plan.ts";
import type { NormRopeAppendPlan } from "../fused/norm-rope-append/plan.ts";
import type { RmsNormBackwardPlan, RmsNormPlan } from "../fused/rms-norm/plan.ts";
import type { RopePlan } from "../fused/rope/plan.ts";
import type { Block } from "./block.ts";
import { writeMatmul } from "./core.ts";
import { NORM_ROPE_APPEND, RMS_NORM, RMS_NORM_BACKWARD, ROPE } from "./structs.ts";

/** heed_pairing. */
const PAIRING: Readonly<Record<RopePlan["pairing"], number>> = { half: 0, interleaved: 1 };

/** Writes heed_rope, for the rotation and for its backward pass. */
export function writeRope(block: Block, plan: RopePlan): void {
  const { fields, bytes } = ROPE;
  block.begin(bytes, PAIRING[plan.pairing]);
  block.int32(fields.rotary_dim, plan.rotaryDim);
  block.int32(fields.inverse, plan.inverse ? 1 : 0);
  block.tensor(fields.x, plan.x); // [B, S, H, D]
  block.tensor(fields.out, plan.out); // as x
  block.tensor(fields.cos, plan.cos); // [P, rotaryDim / 2]
  block.tensor(fields.sin, plan.sin); // as cos
  block.tensor(fields.positions, plan.positions); // [B, S]
}
/** Writes heed_rms_norm. */
export function writeRmsNorm(block: Block, { x, weight, out, eps, unitOffset }: RmsNormPlan): void {
  const { fields, bytes } = RMS_NORM;
  block.begin(bytes, unitOffset ? 1 : 0);
  block.float64(fields.eps, eps);
  block.tensor(fields.x, x); // [A, B, C, n]
  block.tensor(fields.weight, weight); // [n]
  block.tensor(fields.out, out); // as x
}
/** Writes heed_rms_norm_backward. */
export function writeRmsNormBackward(block: Block, plan: RmsNormBackwardPlan): void {
  const { fields, bytes } = RMS_NORM_BACKWARD;
  block.begin(bytes, plan.unitOffset ? 1 : 0);
  block.float64(fields.eps, plan.eps);
  block.tensor(fields.x, plan.x); // [A, B, C, n]
  block.tensor(fields.weight, plan.weight); // [n]
  block.tensor(fields.d_out, plan.dOut); // as x
  block.tensor(fields.d_x, plan.dx); // as x
  block.tensor(fields.d_weight, plan.dWeight); // [n]
}
/** Writes heed_matmul for out = x @ weight^T + bias: the transpose is a pair of strides, the bias is added before the one rounding. */
export function writeLinear(block: Block, { x, weight, bias, out }: LinearPlan): void {
  using transposed = weight.transpose(); // [K, N]
  writeMatmul(block, { a: x, b: transposed, out, bias }, 1, 0); // [M, K], [M, N], [N]
}
/** Writes heed_norm_rope_append. */
export function writeNormRopeAppend(block: Block, plan: NormRopeAppendPlan): void {
  const { fields, bytes } = NORM_ROPE_APPEND;
  const { norm, rope } = plan;
  block.begin(bytes, norm?.unitOffset === true ? 1 : 0);
  block.float64(fields.eps, norm?.eps ?? 0);
  block.int32(fields.pairing, PAIRING[rope?.pairing ?? "half"]);
  block.int32(fields.rotary_dim, rope?.rotaryDim ?? 0);
  block.tensor(fields.q, plan.q); // [T, Hq, D]
  block.tensor(fields.k, plan.k); // [T, Hkv, D]
  block.tensor(fields.v, plan.v); // [T, Hkv, Dv]
  block.tensor(fields.out, plan.out); // [T, Hq, D]
  block.tensor(fields.q_weight, norm?.q); // [D] or [Hq * D]
  block.tensor(fields.k_weight, norm?.k); // [D] or [Hkv * D]
  block.tensor(fields.cos, rope?.cos); // [P, rotaryDim / 2]
  block.tensor(fields.sin, rope?.sin); // as cos
  block.tensor(fields.positions, rope?.positions); // [T]
  block.tensor(fields.k_pages, plan.kPages); // [P, Hkv, pageSize, D]
  block.tensor(fields.v_pages, plan.vPages); // [P, Hkv, pageSize, Dv]
  block.tensor(fields.slots, plan.slots); // [T]
}
