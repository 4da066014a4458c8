import type { FloatDType } from "../../core/dtype.ts";
import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { dispatch, type FusedMode } from "../../engine/fused.ts";
import { matmul } from "../../ops/matmul.ts";
import { sum } from "../../ops/reduce.ts";
import { linearComposed } from "./composed.ts";
import { asRows, checkLinearGradient, planLinear } from "./plan.ts";

/** Options of {@link linear}. */
export interface LinearOptions {
  /** [out], added to every row. Default none. */
  readonly bias?: Tensor | undefined;
  /** See {@link FusedMode}. */
  readonly fused?: FusedMode | undefined;
}
/**
 * x @ weight^T + bias for x [..., in], weight [out, in]: the layout in which PyTorch and Hugging Face keep weights. A float32 x takes
 * float16 and bfloat16 weights as they are. Sums in float32 (float64 for float64). Throws ShapeError, DTypeError, DeviceError,
 * DisposedError.
 */
export function linear<D extends FloatDType>(
  x: Tensor<D>,
  weight: Tensor,
  options: LinearOptions = {},
): Tensor<D> {
  return scope(() => {
    const { plan, result } = planLinear(x, weight, options.bias);
    // A sum over no inputs is the bias: no kernel is asked for that.
    if (plan.x.shape[1] === 0) linearComposed(plan);
    else if (result.size > 0) dispatch(plan.engine, "linear", plan, linearComposed, options.fused);
    return result as Tensor as Tensor<D>;
  });
}
/** Gradients of {@link linear}. */
export interface LinearGradients {
  /** [..., in] */
  readonly x: Tensor;
  /** [out, in] */
  readonly weight: Tensor;
  /** [out] */
  readonly bias: Tensor;
}
/**
 * Gradients of sum(dOut * linear(x, weight)) for dOut [..., out]: dx = dOut @ weight, dweight = dOut^T @ x, dbias = the sum of dOut's
 * rows. x, weight and dOut have one dtype. Throws ShapeError, DTypeError, DeviceError, DisposedError.
 */
export function linearBackward(x: Tensor, weight: Tensor, dOut: Tensor): LinearGradients {
  return scope(() => {
    checkLinearGradient(x, weight, dOut);
    const rows = asRows(x, weight.shape[1]!) as Tensor<FloatDType>;
    const upstream = asRows(dOut, weight.shape[0]!) as Tensor<FloatDType>;
    const dx = matmul(upstream, weight as Tensor<FloatDType>);
    const dWeight = matmul(upstream.transpose() as Tensor<FloatDType>, rows);
    return { x: dx.reshape(x.shape), weight: dWeight, bias: sum(upstream, { axes: [0] }) };
  });
}
