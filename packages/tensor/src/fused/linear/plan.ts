import type { FloatDType } from "../../core/dtype.ts";
import { ShapeError } from "../../core/errors.ts";
import { sizeOf } from "../../core/shape.ts";
import { allocate, show, type Tensor } from "../../core/tensor.ts";
import type { Engine } from "../../engine/engine.ts";
import { floatOnly, oneEngine, sameDType } from "../../ops/check.ts";
import { isMixedProduct } from "../../ops/matmul.ts";

declare const checked: unique symbol;
/** A checked linear map out = x @ weight^T + bias. Only {@link planLinear} makes one. */
export interface LinearPlan {
  readonly [checked]: true;
  readonly engine: Engine;
  readonly x: Tensor<FloatDType>; // [M, K], any strides
  readonly weight: Tensor<FloatDType>; // [N, K]; x's dtype, or 16-bit beside float32
  readonly bias: Tensor<FloatDType> | undefined; // [N], x's dtype
  readonly out: Tensor<FloatDType>; // [M, N], x's dtype
}
/** x [..., K] as [M, K]: a view where the strides allow one, else a copy. */
export function asRows(x: Tensor, width: number): Tensor {
  const rows = sizeOf(x.shape.slice(0, -1));
  if (x.rank === 2) return x.alias();
  return x.isContiguous || x.size === 0 ? x.reshape([rows, width]) : x.contiguous().reshape([rows, width]);
}
/**
 * Checks a linear map and allocates its result. Temporaries belong to the caller's scope. Throws ShapeError, DTypeError,
 * DeviceError, DisposedError, OutOfMemoryError.
 */
export function planLinear(
  x: Tensor,
  weight: Tensor,
  bias: Tensor | undefined,
): { readonly plan: LinearPlan; readonly result: Tensor } {
  const engine = oneEngine("linear", x, weight, bias);
  floatOnly("linear", x);
  if (!isMixedProduct(x, weight)) sameDType("linear", x, weight);
  sameDType("linear", x, bias);
  const K = x.shape[x.rank - 1];
  if (x.rank < 1 || weight.rank !== 2 || weight.shape[1] !== K) {
    throw new ShapeError(
      `[linear] needs x [..., in] and weight [out, in]; got x ${show(x)}, weight ${show(weight)}`,
      {
        x: x.shape,
        weight: weight.shape,
      },
    );
  }
  const N = weight.shape[0]!;
  if (bias !== undefined && (bias.rank !== 1 || bias.shape[0] !== N)) {
    throw new ShapeError(`[linear] bias must be [out] = [${N}]; got ${show(bias)}`, {
      bias: bias.shape,
      out: N,
    });
  }
  const rows = asRows(x, weight.shape[1]!) as Tensor<FloatDType>;
  const result = allocate(engine, x.dtype as FloatDType, [...x.shape.slice(0, -1), N]);
  const out = result.rank === 2 ? result : result.reshape([rows.shape[0]!, N]);
  return { plan: { engine, x: rows, weight, bias, out } as unknown as LinearPlan, result };
}
/** Checks the upstream gradient of a linear map; throws ShapeError, DTypeError, DeviceError. */
export function checkLinearGradient(x: Tensor, weight: Tensor, dOut: Tensor): void {
  oneEngine("linear backward", x, weight, dOut);
  floatOnly("linear backward", x);
  sameDType("linear backward", x, weight, dOut);
  if (x.rank < 1 || weight.rank !== 2 || weight.shape[1] !== x.shape[x.rank - 1]) {
    throw new ShapeError(
      `[linear backward] needs x [..., in] and weight [out, in]; got x ${show(x)}, weight ${show(weight)}`,
      { x: x.shape, weight: weight.shape },
    );
  }
  const shape = [...x.shape.slice(0, -1), weight.shape[0]!];
  if (dOut.shape.join() !== shape.join()) {
    throw new ShapeError(`[linear backward] the gradient must be [${shape.join(", ")}]; got ${show(dOut)}`, {
      dOut: dOut.shape,
      shape,
    });
  }
}
