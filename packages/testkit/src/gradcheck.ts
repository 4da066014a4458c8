/** Gradients against central differences in float64. */
import { TestkitError, requireArgument, requireLength } from "./errors.ts";
import { createRng } from "./rng.ts";
import type { Rng } from "./rng.ts";

/** A scalar function of an array. It must not keep or change its argument. */
export type ScalarFunction = (x: Float64Array) => number;

/**
 * Two central differences leave an error of order h^4 by Richardson extrapolation and about eps / h by rounding;
 * h = eps^(1/5) = 7.4e-4 balances the two near 1e-13 for functions of unit scale.
 */
const defaultStep = 2 ** -10;

/** (4 d(h/2) - d(h)) / 3 for the central difference d of g around 0. */
function richardson(g: (t: number) => number, h: number): number {
  const central = (step: number): number => (g(step) - g(-step)) / (2 * step);
  return (4 * central(h / 2) - central(h)) / 3;
}

/**
 * df/dx[i] by central differences with steps h and h/2, extrapolated (error of order h^4). x is left as it was.
 * The default step is 2^-10 times max(1, |x[i]|).
 */
export function finiteDifference(f: ScalarFunction, x: Float64Array, i: number, h?: number): number {
  requireArgument(i >= 0 && i < x.length, `[finiteDifference] index ${i} outside 0..${x.length - 1}`, { i });
  const moved = Float64Array.from(x);
  const step = h ?? defaultStep * Math.max(1, Math.abs(x[i]!));
  return richardson((t) => {
    moved[i] = x[i]! + t;
    return f(moved);
  }, step);
}

/** d/dt f(x + t * direction) at t = 0, by the same differences; one number that judges every coordinate at once. */
export function directionalDerivative(
  f: ScalarFunction,
  x: Float64Array,
  direction: ArrayLike<number>,
  h: number = defaultStep,
): number {
  requireLength("directionalDerivative", "direction", direction, x.length);
  return richardson((t) => f(x.map((value, i) => value + t * direction[i]!)), h);
}

/** sum(a * b), the scalar that an upstream gradient makes of an output. */
export function dotProduct(a: ArrayLike<number>, b: ArrayLike<number>): number {
  requireLength("dotProduct", "b", b, a.length);
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

/** A random upstream gradient: normal, so that no symmetry of the output hides an error. */
export function randomUpstream(rng: Rng, length: number): Float64Array {
  return rng.normalArray(length);
}

/** How {@link checkGradient} and {@link checkDirectionalGradient} judge. */
export interface GradientCheckOptions {
  /** Allowed difference as a share of the largest gradient seen. Default 1e-8. */
  readonly rel?: number | undefined;
  /** Allowed difference besides. Default 1e-9: differences of a function of unit scale are no better. */
  readonly abs?: number | undefined;
  /** Step; see {@link finiteDifference}. */
  readonly h?: number | undefined;
  /** Name in the message. Default "gradient". */
  readonly name?: string | undefined;
  /** Check so many coordinates, drawn without repetition. Default all. */
  readonly samples?: number | undefined;
  /** Seed of the draw. Default 1. */
  readonly seed?: number | undefined;
}

/**
 * Compares `grad` with central differences of f at x, in all coordinates or in a sample. Throws a TestkitError
 * with code "gradient" that names the worst coordinate and both values; NaN in either fails.
 */
export function checkGradient(
  f: ScalarFunction,
  x: Float64Array,
  grad: ArrayLike<number>,
  options: GradientCheckOptions = {},
): void {
  const { rel = 1e-8, abs = 1e-9, h, name = "gradient", samples = x.length, seed = 1 } = options;
  requireLength("checkGradient", "grad", grad, x.length);
  const coordinates =
    samples >= x.length ? Array.from(x.keys()) : createRng(seed).permutation(x.length).slice(0, samples);
  let magnitude = 0;
  let worst = { i: -1, numeric: 0, difference: 0 };
  for (const i of coordinates) {
    const numeric = finiteDifference(f, x, i, h);
    const difference = Math.abs(numeric - grad[i]!);
    magnitude = Math.max(magnitude, Math.abs(numeric));
    if (Number.isNaN(difference) || difference > worst.difference) worst = { i, numeric, difference };
    if (Number.isNaN(difference)) break;
  }
  const allowed = rel * magnitude + abs;
  if (worst.difference <= allowed) return;
  throw new TestkitError(
    "gradient",
    `${name}[${worst.i}]: got ${grad[worst.i]}, central difference ${worst.numeric}; ` +
      `difference ${worst.difference.toExponential(3)} exceeds ${allowed.toExponential(3)} ` +
      `(${coordinates.length} of ${x.length} coordinates checked)`,
    { ...worst, actual: grad[worst.i], allowed },
  );
}

/**
 * Compares grad . direction with the directional derivative of f at x along a random direction: two evaluations'
 * cost for any size. The tolerance is relative to |grad| |direction|. Throws as {@link checkGradient} does.
 */
export function checkDirectionalGradient(
  f: ScalarFunction,
  x: Float64Array,
  grad: ArrayLike<number>,
  options: Omit<GradientCheckOptions, "samples"> = {},
): void {
  const { rel = 1e-8, abs = 1e-9, h, name = "gradient", seed = 1 } = options;
  requireLength("checkDirectionalGradient", "grad", grad, x.length);
  const direction = createRng(seed).normalArray(x.length);
  const analytic = dotProduct(grad, direction);
  const numeric = directionalDerivative(f, x, direction, h);
  const norm = Math.sqrt(dotProduct(grad, grad) * dotProduct(direction, direction));
  const allowed = rel * norm + abs;
  if (Math.abs(analytic - numeric) <= allowed) return;
  throw new TestkitError(
    "gradient",
    `${name}: along a random direction got ${analytic}, central difference ${numeric}; ` +
      `difference ${Math.abs(analytic - numeric).toExponential(3)} exceeds ${allowed.toExponential(3)}`,
    { analytic, numeric, allowed },
  );
}
