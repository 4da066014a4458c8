import { type FloatDType, Tensor, tensor } from "@heed/tensor";
import { encodeArray } from "@heed/testkit";

/** A strided view into a base of numbers, rounded to `dtype`. */
export function place<D extends FloatDType>(
  engine: string,
  dtype: D,
  base: ArrayLike<number>,
  shape: readonly number[],
  strides: readonly number[],
  offset: number,
): Tensor<D> {
  using whole = tensor(encodeArray(dtype, base) as never, [base.length], { engine, dtype });
  whole.storage.retain();
  return new Tensor(whole.engine, whole.storage, dtype, shape, strides, offset);
}
