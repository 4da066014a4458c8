/** Linear maps, forward and backward: kernel and composed form by straight loops in float64. */
import { linear, linearBackward } from "@heed/tensor";
import fc from "fast-check";
import { viewRecipe, type ViewRecipe } from "../arbitraries/views.ts";
import { type FloatDType, roundArray } from "../dtype.ts";
import { createRng } from "../rng.ts";
import { assertMeaning, bothForms, largest, place, placeView, results, type Subject } from "./subject.ts";

/** x [...lead, K] against weight [N, K], each in any strides. */
export interface LinearProblem {
  readonly lead: readonly number[];
  readonly K: number;
  readonly N: number;
  readonly bias: boolean;
  readonly seed: number;
  readonly x: ViewRecipe;
  readonly weight: ViewRecipe;
  readonly dOut: ViewRecipe;
}
/** Linear problems with up to three leading axes. */
export function linearProblem(max: number = 9): fc.Arbitrary<LinearProblem> {
  const axis = fc.integer({ min: 1, max });
  return fc
    .record({
      lead: fc.array(fc.integer({ min: 1, max: 4 }), { maxLength: 3 }),
      K: axis,
      N: axis,
      bias: fc.boolean(),
      seed: fc.nat({ max: 0xffff }),
    })
    .chain((p) =>
      fc.record({
        lead: fc.constant(p.lead),
        K: fc.constant(p.K),
        N: fc.constant(p.N),
        bias: fc.constant(p.bias),
        seed: fc.constant(p.seed),
        x: viewRecipe([...p.lead, p.K]),
        weight: viewRecipe([p.N, p.K]),
        dOut: viewRecipe([...p.lead, p.N]),
      }),
    );
}
/** a [M, K] @ b [K, N], read by strides. */
function product(
  a: (m: number, k: number) => number,
  b: (k: number, n: number) => number,
  [M, K, N]: readonly [number, number, number],
): Float64Array {
  const out = new Float64Array(M * N);
  for (let m = 0; m < M; m++)
    for (let n = 0; n < N; n++) for (let k = 0; k < K; k++) out[m * N + n]! += a(m, k) * b(k, n);
  return out;
}
const rowsOf = (p: LinearProblem): number => p.lead.reduce((a, n) => a * n, 1);

/** out = x @ weight^T + bias; `weightDtype` may be 16-bit beside a float32 x. Throws a TestkitError with code "mismatch". */
export async function checkLinear(
  subject: Subject,
  p: LinearProblem,
  weightDtype: FloatDType = subject.dtype,
): Promise<void> {
  const { engine, dtype } = subject;
  const { K, N, lead } = p;
  const M = rowsOf(p);
  const rng = createRng(p.seed);
  const x = roundArray(dtype, rng.normalArray(M * K));
  const weight = roundArray(weightDtype, rng.normalArray(N * K));
  const bias = roundArray(dtype, rng.normalArray(N));
  const expected = product(
    (m, k) => x[m * K + k]!,
    (k, n) => weight[n * K + k]!,
    [M, K, N],
  ).map((y, at) => (p.bias ? y + bias[at % N]! : y));
  const { fused, composed } = await bothForms(subject, (mode) =>
    results(() => ({
      out: linear(placeView(engine, dtype, x, p.x), placeView(engine, weightDtype, weight, p.weight), {
        bias: p.bias ? place(engine, dtype, bias, [N]) : undefined,
        fused: mode,
      }),
    })),
  );
  const termScale = Math.sqrt(K) * largest(x) * largest(weight);
  assertMeaning({
    fused: fused.out,
    composed: composed.out,
    oracle: expected,
    dtype,
    shape: [...lead, N],
    termScale,
  });
}
/** dx = dOut @ weight, dweight = dOut^T @ x, dbias = the sum of dOut's rows. Throws a TestkitError with code "mismatch". */
export async function checkLinearBackward({ engine, dtype }: Subject, p: LinearProblem): Promise<void> {
  const { K, N, lead } = p;
  const M = rowsOf(p);
  const rng = createRng(p.seed);
  const x = roundArray(dtype, rng.normalArray(M * K));
  const weight = roundArray(dtype, rng.normalArray(N * K));
  const dOut = roundArray(dtype, rng.normalArray(M * N));
  const got = await results(() => {
    const g = linearBackward(
      placeView(engine, dtype, x, p.x),
      placeView(engine, dtype, weight, p.weight),
      placeView(engine, dtype, dOut, p.dOut),
    );
    return { x: g.x, weight: g.weight, bias: g.bias };
  });
  const judge = (
    name: keyof typeof got,
    oracle: Float64Array,
    shape: readonly number[],
    termScale: number,
  ): void => assertMeaning({ name, fused: got[name], composed: got[name], oracle, dtype, shape, termScale });
  const at = (m: number, n: number): number => dOut[m * N + n]!;
  const dx = product(at, (n, k) => weight[n * K + k]!, [M, N, K]);
  judge("x", dx, [...lead, K], Math.sqrt(N) * largest(dOut) * largest(weight));
  const dWeight = product(
    (n, m) => at(m, n),
    (m, k) => x[m * K + k]!,
    [N, M, K],
  );
  judge("weight", dWeight, [N, K], Math.sqrt(M) * largest(dOut) * largest(x));
  const dBias = product(() => 1, at, [1, M, N]);
  judge("bias", dBias, [N], Math.sqrt(M) * largest(dOut));
}
