import { accumulatorOf, type DType, type FloatDType } from "../core/dtype.ts";
import { ArgumentError, DTypeError } from "../core/errors.ts";
import { normalizeAxis } from "../core/shape.ts";
import { allocate, computed, show, type Tensor } from "../core/tensor.ts";
import type { ReduceOp } from "../engine/engine.ts";
import { cast } from "./cast.ts";
import { floatOnly, oneEngine } from "./check.ts";
import { fill } from "./create.ts";
import { binary } from "./elementwise.ts";

/** Options of the reductions. */
export interface ReduceOptions {
  /** Axes to reduce, negative from the end. Default all. */
  readonly axes?: readonly number[];
  /** Keep reduced axes with length 1. Default false. */
  readonly keepDims?: boolean;
}
const EMPTY: Readonly<Record<ReduceOp, number | undefined>> = { sum: 0, max: undefined, min: undefined };

/** Reduces axes of x with `op`. Throws DTypeError for uint8 and bool, ArgumentError for the max or min of nothing, ShapeError. */
export function reduce<D extends DType>(op: ReduceOp, x: Tensor<D>, options: ReduceOptions = {}): Tensor<D> {
  const engine = oneEngine(op, x);
  if (x.dtype === "uint8" || x.dtype === "bool") {
    throw new DTypeError(`[${op}] takes float, int32 or int64 tensors; got ${show(x)}; convert with cast()`, {
      dtype: x.dtype,
    });
  }
  const axes = new Set((options.axes ?? x.shape.map((_, i) => i)).map((a) => normalizeAxis(a, x.rank, op)));
  const kept = x.shape.map((n, i) => (axes.has(i) ? 1 : n));
  const out = computed(allocate(engine, x.dtype, kept), (out) => {
    if (out.size > 0 && x.size === 0) {
      const identity = EMPTY[op];
      if (identity === undefined)
        throw new ArgumentError(`[${op}] of no elements is not defined; got ${show(x)}`, { shape: x.shape });
      fill(out, identity);
    } else if (out.size > 0) engine.reduce(op, x, out);
  });
  if (options.keepDims === true) return out;
  using wide = out;
  return wide.reshape(kept.filter((_, i) => !axes.has(i)));
}
/** Sum over axes; 16-bit floats accumulate in float32. */
export function sum<D extends DType>(x: Tensor<D>, options?: ReduceOptions): Tensor<D> {
  return reduce("sum", x, options);
}
/** Largest element over axes; NaN when one is NaN. Of 0 and -0 it may give either. */
export function max<D extends DType>(x: Tensor<D>, options?: ReduceOptions): Tensor<D> {
  return reduce("max", x, options);
}
/** Smallest element over axes; NaN when one is NaN. Of 0 and -0 it may give either. */
export function min<D extends DType>(x: Tensor<D>, options?: ReduceOptions): Tensor<D> {
  return reduce("min", x, options);
}
/** Mean over axes, NaN over none; floats only. 16-bit floats go through float32, so that a long sum cannot overflow them. */
export function mean<D extends FloatDType>(x: Tensor<D>, options: ReduceOptions = {}): Tensor<D> {
  floatOnly("mean", x);
  using wide = cast(x, accumulatorOf(x.dtype));
  const out = computed(reduce("sum", wide, options), (out) => {
    binary("div", out, wide.size / out.size, out);
  });
  if (out.dtype === (x.dtype as FloatDType)) return out as Tensor as Tensor<D>;
  using sum = out;
  return cast(sum, x.dtype);
}
