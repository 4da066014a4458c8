import type { DType } from "../core/dtype.ts";
import { allocate, computed, type Tensor } from "../core/tensor.ts";
import { oneEngine } from "./check.ts";

/**
 * x in another dtype: floats round to nearest even; float to integer truncates toward zero and saturates, NaN becomes 0; to bool is
 * x != 0. A second handle when the dtype is already that one.
 */
export function cast<D extends DType>(x: Tensor, dtype: D): Tensor<D> {
  const engine = oneEngine("cast", x);
  if (x.dtype === dtype) return x.alias() as Tensor as Tensor<D>;
  return computed(allocate(engine, dtype, x.shape), (out) => {
    if (out.size > 0) engine.copy(x, out);
  });
}
