import { accumulatorOf, type FloatDType } from "../../core/dtype.ts";
import { ArgumentError, ShapeError } from "../../core/errors.ts";
import { normalizeAxis, sizeOf, type Shape } from "../../core/shape.ts";
import { allocate, show, type Tensor } from "../../core/tensor.ts";
import type { Engine } from "../../engine/engine.ts";
import { cast } from "../../ops/cast.ts";
import { floatOnly, oneEngine, sameDType } from "../../ops/check.ts";
import type { RmsNormOptions } from "./options.ts";

declare const checked: unique symbol;
/** A checked RMS norm. Only {@link planRmsNorm} makes one. */
export interface RmsNormPlan {
  readonly [checked]: true;
  readonly engine: Engine;
  readonly x: Tensor<FloatDType>; // [A, B, C, n], any strides
  readonly weight: Tensor | undefined; // [n], accumulator dtype of x
  readonly out: Tensor<FloatDType>; // as x
  readonly eps: number;
  /** Multiply by 1 + weight (Gemma). */
  readonly unitOffset: boolean;
}
/** A checked backward problem; gradients are written with `=`. */
export interface RmsNormBackwardPlan extends Omit<RmsNormPlan, "out"> {
  readonly dOut: Tensor<FloatDType>; // as x
  readonly dx: Tensor<FloatDType>; // as x
  readonly dWeight: Tensor | undefined; // [n], accumulator dtype; present with weight
}
/** x as [A, B, C, n] with the axes from `axis` on flattened into n: a view where strides allow one, else of a copy. */
function canonical(x: Tensor, axis: number): Tensor<FloatDType> {
  const lead = x.shape.slice(0, axis);
  const n = sizeOf(x.shape.slice(axis));
  if (axis <= 3 && axis === x.rank - 1) {
    let view = x;
    for (let i = lead.length; i < 3; i++) view = view.unsqueeze(0);
    return view as Tensor<FloatDType>;
  }
  const shape: Shape = [1, 1, sizeOf(lead), n];
  return (x.isContiguous || x.size === 0 ? x : x.contiguous()).reshape(shape) as Tensor<FloatDType>;
}
/** The fields of a plan besides x: weight flat in the accumulator's dtype. Throws as {@link planRmsNorm}. */
export function checkRmsNorm(
  x: Tensor,
  weight: Tensor | undefined,
  o: RmsNormOptions,
): Pick<RmsNormPlan, "weight" | "eps" | "unitOffset"> & { readonly axis: number } {
  floatOnly("rmsNorm", x);
  const axis = normalizeAxis(o.axis ?? -1, x.rank, "rmsNorm");
  const normalized = x.shape.slice(axis);
  const eps = o.eps ?? 1e-6;
  if (!Number.isFinite(eps) || eps < 0)
    throw new ArgumentError(`[rmsNorm] eps must be at least 0; got ${eps}`, { eps });
  if (sizeOf(normalized) === 0)
    throw new ShapeError(`[rmsNorm] has nothing to normalise over; got ${show(x)}, axis ${axis}`, {
      x: x.shape,
      axis,
    });
  if (weight !== undefined) {
    floatOnly("rmsNorm", weight);
    if (weight.shape.join() !== normalized.join()) {
      throw new ShapeError(
        `[rmsNorm] weight must be [${normalized.join(", ")}], as x from axis ${axis} on; got ${show(weight)} for x ${show(x)}`,
        {
          weight: weight.shape,
          x: x.shape,
          axis,
        },
      );
    }
  }
  const flat = weight && cast(weight.contiguous().reshape([-1]), accumulatorOf(x.dtype as FloatDType));
  return { weight: flat, eps, unitOffset: o.unitOffset ?? false, axis };
}
function prepare(
  x: Tensor,
  weight: Tensor | undefined,
  o: RmsNormOptions,
): Pick<RmsNormPlan, "x" | "weight" | "eps" | "unitOffset"> & { axis: number } {
  const parts = checkRmsNorm(x, weight, o);
  return { ...parts, x: canonical(x, parts.axis) };
}
/**
 * Checks an RMS norm and allocates its result. Temporaries belong to the caller's scope. Throws ShapeError, DTypeError, ArgumentError,
 * DeviceError, DisposedError, OutOfMemoryError.
 */
export function planRmsNorm(
  x: Tensor,
  weight: Tensor | undefined,
  o: RmsNormOptions,
): { plan: RmsNormPlan; result: Tensor } {
  const engine = oneEngine("rmsNorm", x, weight);
  const { axis, ...parts } = prepare(x, weight, o);
  const result = allocate(engine, x.dtype, x.shape);
  return { plan: { engine, ...parts, out: canonical(result, axis) } as unknown as RmsNormPlan, result };
}
/** As {@link planRmsNorm}, for the gradients of sum(dOut * rmsNorm(x)). */
export function planRmsNormBackward(
  x: Tensor,
  weight: Tensor | undefined,
  dOut: Tensor,
  o: RmsNormOptions,
): { plan: RmsNormBackwardPlan; dx: Tensor; dWeight: Tensor | undefined } {
  const engine = oneEngine("rmsNorm backward", x, weight, dOut);
  sameDType("rmsNorm backward", x, dOut);
  if (dOut.shape.join() !== x.shape.join()) {
    throw new ShapeError(
      `[rmsNorm backward] the gradient must have x's shape; got ${show(dOut)} for x ${show(x)}`,
      { dOut: dOut.shape },
    );
  }
  const { axis, ...parts } = prepare(x, weight, o);
  const dx = allocate(engine, x.dtype, x.shape);
  const dWeight = parts.weight && allocate(engine, parts.weight.dtype, parts.weight.shape);
  const plan = { engine, ...parts, dOut: canonical(dOut, axis), dx: canonical(dx, axis), dWeight };
  return { plan: plan as unknown as RmsNormBackwardPlan, dx, dWeight };
}
