import {
  ArgumentError,
  type FloatDType,
  rmsNorm,
  rmsNormBackward,
  type RmsNormOptions,
  scope,
  type Tensor,
} from "@heed/tensor";
import { notNegative } from "./check.ts";

/** Options of {@link qkNorm}. */
export interface QkNormOptions {
  /** Added to the mean of squares. Default 1e-6. */
  readonly eps?: number | undefined;
  /**
   * What the mean of squares is taken over: "head", the last axis, one statistic for every head of every
   * token (default), or "tensor", one for all of q and one for all of k.
   */
  readonly over?: "head" | "tensor" | undefined;
}
/** Queries and keys, or gradients of them. */
export interface QkPair<D extends FloatDType = FloatDType> {
  readonly q: Tensor<D>;
  readonly k: Tensor<D>;
}
/** A forward pass of {@link qkNorm} that can be differentiated. Dispose it when the gradients are taken. */
export interface QkNormVjp<D extends FloatDType = FloatDType> extends QkPair<D> {
  /**
   * Gradients of sum(dq * q + dk * k) with respect to what was normalised; may be called again. Throws
   * ShapeError, DTypeError, DeviceError, DisposedError.
   */
  backward(dq: Tensor<NoInfer<D>>, dk: Tensor<NoInfer<D>>): QkPair<D>;
  /** What the backward pass keeps alive: handles on the operands, which must not be changed before it. */
  readonly saved: readonly Tensor[];
  /** Frees `saved`, not `q` and `k`. */
  [Symbol.dispose](): void;
}
function resolve({ eps = 1e-6, over = "head" }: QkNormOptions): (x: Tensor) => RmsNormOptions {
  notNegative("qkNorm", "eps", eps);
  if (over !== "head" && over !== "tensor")
    throw new ArgumentError(`[qkNorm] over must be "head" or "tensor"; got ${String(over)}`, { over });
  return (x) => ({ eps, axis: over === "head" ? -1 : -x.rank });
}
/**
 * Query-key normalisation without weights (Henry et al. 2020, arXiv:2010.04245): q and k, of any shapes [...,
 * D], each times rsqrt(mean(x^2) + eps), which bounds the scores. Statistics in float32 (float64 for
 * float64). Throws ArgumentError, ShapeError (nothing to normalise over), DTypeError, DisposedError,
 * OutOfMemoryError.
 */
export function qkNorm<D extends FloatDType>(
  q: Tensor<D>,
  k: Tensor<NoInfer<D>>,
  options: QkNormOptions = {},
): QkPair<D> {
  const rule = resolve(options);
  return scope(() => ({
    q: rmsNorm(q, undefined, rule(q)),
    k: rmsNorm(k as Tensor<D>, undefined, rule(k)),
  }));
}
/** {@link qkNorm} with its backward pass. Same errors. */
export function qkNormVjp<D extends FloatDType>(
  q: Tensor<D>,
  k: Tensor<NoInfer<D>>,
  options: QkNormOptions = {},
): QkNormVjp<D> {
  const rule = resolve(options);
  return scope(() => {
    const saved = [q.alias(), k.alias()] as const;
    const back = (x: Tensor, d: Tensor): Tensor<D> =>
      rmsNormBackward(x, undefined, d, rule(x)).x as Tensor<D>;
    return {
      ...qkNorm(q, k, options),
      saved,
      backward: (dq, dk) => scope(() => ({ q: back(saved[0], dq), k: back(saved[1], dk) })),
      [Symbol.dispose]: () => saved.forEach((t) => t[Symbol.dispose]()),
    };
  });
}
