import type { FloatDType } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import { allocate, computed, show, type Tensor } from "../core/tensor.ts";
import { floatOnly, oneEngine } from "./check.ts";

/** exp(x - max) / sum over the last axis; a row that is -Infinity throughout gives zeros. Throws ShapeError for a scalar, DTypeError. */
export function softmax<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
  const engine = oneEngine("softmax", x);
  floatOnly("softmax", x);
  if (x.rank === 0)
    throw new ShapeError(`[softmax] needs at least one axis; got ${show(x)}`, { shape: x.shape });
  return computed(allocate(engine, x.dtype, x.shape), (out) => {
    if (out.size > 0) engine.softmax(x, out);
  });
}
