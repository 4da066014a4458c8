/** RMS norm, forward and backward: kernel and composed form by the oracle. */
import { rmsNorm, rmsNormBackward, type RmsNormOptions, type Tensor } from "@heed/tensor";
import fc from "fast-check";
import { viewRecipe, type ViewRecipe } from "../arbitraries/views.ts";
import { type FloatDType, floatDTypes, roundArray } from "../dtype.ts";
import { rmsNormBackwardOracle, rmsNormOracle } from "../oracle/rms-norm.ts";
import { createRng } from "../rng.ts";
import { assertMeaning, bothForms, largest, place, placeView, results, type Subject } from "./subject.ts";

/** x of any rank, normalised from one of its axes on. */
export interface RmsNormProblem {
  readonly shape: readonly number[];
  /** 0 .. rank - 1. */
  readonly axis: number;
  readonly isAxisNegative: boolean;
  readonly eps: number;
  readonly unitOffset: boolean;
  /** undefined: no weight. */
  readonly weight: FloatDType | undefined;
  readonly seed: number;
  readonly x: ViewRecipe;
  readonly dOut: ViewRecipe;
}
/** RMS norm problems of rank 1 to 5. */
export function rmsNormProblem(): fc.Arbitrary<RmsNormProblem> {
  return fc.array(fc.integer({ min: 1, max: 6 }), { minLength: 1, maxLength: 5 }).chain((shape) =>
    fc.record({
      shape: fc.constant(shape),
      axis: fc.oneof(fc.constant(shape.length - 1), fc.nat({ max: shape.length - 1 })),
      isAxisNegative: fc.boolean(),
      eps: fc.constantFrom(1e-6, 1e-5, 0.25),
      unitOffset: fc.boolean(),
      weight: fc.constantFrom(undefined, ...floatDTypes),
      seed: fc.nat({ max: 0xffff }),
      x: viewRecipe(shape),
      dOut: viewRecipe(shape),
    }),
  );
}
function draw(p: RmsNormProblem, dtype: FloatDType) {
  const size = p.shape.reduce((a, n) => a * n, 1);
  const n = p.shape.slice(p.axis).reduce((a, d) => a * d, 1);
  const rng = createRng(p.seed);
  const x = roundArray(dtype, rng.normalArray(size));
  // A float64 weight is read in the accumulator's dtype.
  const values = rng.normalArray(n);
  const wide = dtype === "float64" ? values : roundArray("float32", values);
  const weight = p.weight && roundArray(p.weight, wide);
  const dOut = roundArray(dtype, rng.normalArray(size));
  return { n, x, weight, dOut, oracle: { n, eps: p.eps, weight, unitOffset: p.unitOffset } };
}
function options(p: RmsNormProblem): RmsNormOptions {
  const axis = p.isAxisNegative ? p.axis - p.shape.length : p.axis;
  return {
    eps: p.eps,
    unitOffset: p.unitOffset,
    ...(p.axis < p.shape.length - 1 || p.isAxisNegative ? { axis } : {}),
  };
}
function placeWeight(
  { engine }: Subject,
  p: RmsNormProblem,
  weight: Float64Array | undefined,
): Tensor | undefined {
  return weight && p.weight && place(engine, p.weight, weight, p.shape.slice(p.axis));
}
/** Throws a TestkitError with code "mismatch" unless forward and backward agree with the oracle. */
export async function checkRmsNorm(subject: Subject, p: RmsNormProblem): Promise<void> {
  const { engine, dtype } = subject;
  const { x, weight, oracle } = draw(p, dtype);
  const { fused, composed } = await bothForms(subject, (mode) =>
    results(() => {
      const w = placeWeight(subject, p, weight);
      return { y: rmsNorm(placeView(engine, dtype, x, p.x), w, { ...options(p), fused: mode }) };
    }),
  );
  assertMeaning({
    fused: fused.y,
    composed: composed.y,
    oracle: rmsNormOracle(x, oracle).y,
    dtype,
    shape: p.shape,
  });
}
/** Throws a TestkitError with code "mismatch" unless both gradients agree with the oracle. */
export async function checkRmsNormBackward(subject: Subject, p: RmsNormProblem): Promise<void> {
  const { engine, dtype } = subject;
  const { x, weight, dOut, oracle, n } = draw(p, dtype);
  const { fused, composed } = await bothForms(subject, (mode) =>
    results(() => {
      const w = placeWeight(subject, p, weight);
      const upstream = placeView(engine, dtype, dOut, p.dOut);
      const g = rmsNormBackward(placeView(engine, dtype, x, p.x), w, upstream, {
        ...options(p),
        fused: mode,
      });
      return { dx: g.x, dWeight: g.weight };
    }),
  );
  const expected = rmsNormBackwardOracle(x, dOut, oracle);
  const gain = (weight ? largest(weight) : 1) + (p.unitOffset ? 1 : 0);
  const normed = { n, eps: p.eps };
  const rstd = largest(rmsNormOracle(x, normed).rstd);
  assertMeaning({
    name: "dx",
    fused: fused.dx,
    composed: composed.dx,
    oracle: expected.dx,
    dtype,
    shape: p.shape,
    termScale: rstd * gain * largest(dOut), // dx is a difference of terms of that size
  });
  if (weight === undefined || p.weight === undefined) return;
  assertMeaning({
    name: "dWeight",
    fused: fused.dWeight!,
    composed: composed.dWeight!,
    oracle: expected.dWeight,
    dtype: narrower(dtype, p.weight),
    shape: p.shape.slice(p.axis),
    termScale: Math.sqrt(x.length / n) * largest(dOut) * largest(rmsNormOracle(x, normed).y),
  });
}
/** The dtype whose rounding a gradient shows that was computed for `x` and stored as `weight`. */
function narrower(x: FloatDType, weight: FloatDType): FloatDType {
  const computed = x === "float64" ? "float64" : "float32";
  return floatDTypes.indexOf(weight) > floatDTypes.indexOf(computed) ? weight : computed;
}
