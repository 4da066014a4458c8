import { accumulatorOf } from "../../core/dtype.ts";
import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { cast } from "../../ops/cast.ts";
import { copyInto } from "../../ops/concat.ts";
import { add, mul, sub, unary } from "../../ops/elementwise.ts";
import { mean, sum } from "../../ops/reduce.ts";
import type { RmsNormBackwardPlan, RmsNormPlan } from "./plan.ts";

type F = Tensor<"float32">; // the accumulator dtype of x
const last = { axes: [-1], keepDims: true } as const;

function parts(plan: Pick<RmsNormPlan, "x" | "weight" | "eps" | "unitOffset">): {
  x: F;
  gain: F | undefined;
  rstd: F;
} {
  const x = cast(plan.x, accumulatorOf(plan.x.dtype)) as F;
  const weight = plan.weight as F | undefined;
  const gain = weight && (plan.unitOffset ? add(weight, 1) : weight);
  const rstd = unary("rsqrt", add(mean(unary("square", x) as F, last), plan.eps)) as F; // [A, B, C, 1]
  return { x, gain, rstd };
}
/** x * rsqrt(mean(x^2) + eps) * gain from core operations. */
export function rmsNormComposed(plan: RmsNormPlan): void {
  scope(() => {
    const { x, gain, rstd } = parts(plan);
    const y = mul(x, rstd);
    copyInto(gain === undefined ? y : mul(y, gain), plan.out);
  });
}
/** dx = rstd * (g - x * rstd^2 * mean(g * x)) with g = dOut * gain; dWeight = sum over rows of dOut * x * rstd. */
export function rmsNormBackwardComposed(plan: RmsNormBackwardPlan): void {
  scope(() => {
    const { x, gain, rstd } = parts(plan);
    const dOut = cast(plan.dOut, x.dtype) as F;
    const g = gain === undefined ? dOut : mul(dOut, gain);
    const along = mul(mean(mul(g, x), last), unary("square", rstd) as F);
    copyInto(mul(sub(g, mul(x, along)), rstd), plan.dx);
    if (plan.dWeight !== undefined) copyInto(sum(mul(dOut, mul(x, rstd)), { axes: [0, 1, 2] }), plan.dWeight);
  });
}
