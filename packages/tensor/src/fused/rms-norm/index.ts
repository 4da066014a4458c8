import type { FloatDType } from "../../core/dtype.ts";
import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { dispatch } from "../../engine/fused.ts";
import { cast } from "../../ops/cast.ts";
import { rmsNormBackwardComposed, rmsNormComposed } from "./composed.ts";
import type { RmsNormOptions } from "./options.ts";
import { planRmsNorm, planRmsNormBackward } from "./plan.ts";

/**
 * Root-mean-square norm (Zhang, Sennrich 2019, arXiv:1910.07467): x * rsqrt(mean(x^2) + eps) * weight over the axes from `axis` on.
 * `weight` has the shape of those axes and any float dtype; undefined for none. Statistics in float32 (float64 for float64), one rounding.
 * Throws ShapeError, DTypeError, ArgumentError, DeviceError, DisposedError.
 */
export function rmsNorm<D extends FloatDType>(
  x: Tensor<D>,
  weight?: Tensor,
  options: RmsNormOptions = {},
): Tensor<D> {
  return scope(() => {
    const { plan, result } = planRmsNorm(x, weight, options);
    if (result.size > 0) dispatch(plan.engine, "rmsNorm", plan, rmsNormComposed, options.fused);
    return result as Tensor as Tensor<D>;
  });
}
/** Gradients of {@link rmsNorm}. */
export interface RmsNormGradients {
  readonly x: Tensor;
  /** In weight's shape and dtype; present when there is one. */
  readonly weight?: Tensor;
}
/** Gradients of sum(dOut * rmsNorm(x, weight, options)) for dOut of x's shape and dtype. Errors as {@link rmsNorm}. */
export function rmsNormBackward(
  x: Tensor,
  weight: Tensor | undefined,
  dOut: Tensor,
  options: RmsNormOptions = {},
): RmsNormGradients {
  return scope(() => {
    const { plan, dx, dWeight } = planRmsNormBackward(x, weight, dOut, options);
    dispatch(plan.engine, "rmsNormBackward", plan, rmsNormBackwardComposed, options.fused);
    return { x: dx, ...(dWeight && weight && { weight: cast(dWeight, weight.dtype).reshape(weight.shape) }) };
  });
}
