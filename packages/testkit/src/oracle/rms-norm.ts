/**
 * Root mean square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467) in float64, over rows of n elements:
 *
 *     r = 1 / sqrt(mean(x^2) + eps);  y = x * r * w           w = weight, or 1 + weight (Gemma), or 1
 *     g = dy * w;  dx = r * (g - x * r^2 * mean(g * x));  dWeight = sum over rows of dy * x * r
 */
import { requireArgument, requireLength } from "../errors.ts";

/** How {@link rmsNormOracle} normalises. */
export interface RmsNormOracleOptions {
  /** Trailing elements normalised together; x.length for the whole tensor. */
  readonly n: number;
  readonly eps: number;
  /** Weight [n]. Default: none. */
  readonly weight?: ArrayLike<number> | undefined;
  /** Multiply by 1 + weight instead of weight. */
  readonly unitOffset?: boolean | undefined;
}

/** What {@link rmsNormOracle} returns. */
export interface RmsNormResult {
  /** The shape of x. */
  readonly y: Float64Array;
  /** 1 / sqrt(mean(x^2) + eps) per row. */
  readonly rstd: Float64Array;
}

/** What {@link rmsNormBackwardOracle} returns. */
export interface RmsNormGradients {
  /** The shape of x. */
  readonly dx: Float64Array;
  /** [n]; the gradient a weight would have if there is none. */
  readonly dWeight: Float64Array;
}

function factorAt({ weight, unitOffset }: RmsNormOracleOptions, c: number): number {
  if (!weight) return 1;
  return unitOffset ? 1 + weight[c]! : weight[c]!;
}

/** y = x * r * w over rows of n elements. Throws a TestkitError with code "argument" for sizes that do not fit. */
export function rmsNormOracle(x: ArrayLike<number>, options: RmsNormOracleOptions): RmsNormResult {
  const { n, eps, weight } = options;
  requireArgument(
    n > 0 && x.length % n === 0,
    `[rmsNormOracle] x must have whole rows of ${n} elements; got ${x.length}`,
    { length: x.length, n },
  );
  if (weight) requireLength("rmsNormOracle", "weight", weight, n);
  const y = new Float64Array(x.length);
  const rstd = new Float64Array(x.length / n);
  for (let row = 0; row < rstd.length; row++) {
    let squares = 0;
    for (let c = 0; c < n; c++) squares += x[row * n + c]! ** 2;
    rstd[row] = 1 / Math.sqrt(squares / n + eps);
    for (let c = 0; c < n; c++) y[row * n + c] = x[row * n + c]! * rstd[row]! * factorAt(options, c);
  }
  return { y, rstd };
}

/** Gradients of sum(dy * y) with respect to x and the weight. Throws as {@link rmsNormOracle} does. */
export function rmsNormBackwardOracle(
  x: ArrayLike<number>,
  dy: ArrayLike<number>,
  options: RmsNormOracleOptions,
): RmsNormGradients {
  const { n } = options;
  const { rstd } = rmsNormOracle(x, options);
  requireLength("rmsNormBackwardOracle", "dy", dy, x.length);
  const dx = new Float64Array(x.length);
  const dWeight = new Float64Array(n);
  for (let row = 0; row < rstd.length; row++) {
    const r = rstd[row]!;
    let sum = 0;
    for (let c = 0; c < n; c++) {
      sum += dy[row * n + c]! * factorAt(options, c) * x[row * n + c]!;
      dWeight[c]! += dy[row * n + c]! * x[row * n + c]! * r;
    }
    for (let c = 0; c < n; c++)
      dx[row * n + c] = r * (dy[row * n + c]! * factorAt(options, c) - (x[row * n + c]! * r * r * sum) / n);
  }
  return { dx, dWeight };
}
