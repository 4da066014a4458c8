import type { FloatDType } from "../../core/dtype.ts";
import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { dispatch } from "../../engine/fused.ts";
import { ropeComposed } from "./composed.ts";
import type { RopeOptions } from "./options.ts";
import { planRope } from "./plan.ts";

function run<D extends FloatDType>(
  x: Tensor<D>,
  cos: Tensor,
  sin: Tensor,
  o: RopeOptions,
  inverse: boolean,
): Tensor<D> {
  return scope(() => {
    const { plan, result } = planRope(x, cos, sin, o, inverse);
    if (result.size > 0) dispatch(plan.engine, "rope", plan, ropeComposed, o.fused);
    return result as Tensor as Tensor<D>;
  });
}
/**
 * Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of x [B, S, H, D] (or [T, H, D]): the first rotaryDim components of each
 * head turn, in pairs, by the angle whose cosine and sine stand in row `positions[b, s]` of the tables [P, rotaryDim / 2] (float32;
 * float64 for a float64 x). The other components pass through. Throws ShapeError, DTypeError, ArgumentError, DeviceError, DisposedError.
 */
export function rope<D extends FloatDType>(
  x: Tensor<D>,
  cos: Tensor,
  sin: Tensor,
  options: RopeOptions = {},
): Tensor<D> {
  return run(x, cos, sin, options, false);
}
/** The gradient of {@link rope}: dOut turned back by the same angles. Same operands, options and errors. */
export function ropeBackward<D extends FloatDType>(
  dOut: Tensor<D>,
  cos: Tensor,
  sin: Tensor,
  options: RopeOptions = {},
): Tensor<D> {
  return run(dOut, cos, sin, options, true);
}
