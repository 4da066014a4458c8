import type { DType, Engine } from "@heed/tensor";
import { describe, test } from "bun:test";
import fc from "fast-check";
import {
  elements,
  elementsOf,
  expectElements,
  FLOATS,
  type Layout,
  layouts,
  place,
  PRECISION,
  rounded,
} from "./strided.ts";

interface Problem {
  readonly a: number[];
  readonly b: number[];
  readonly c: number[];
  readonly at: readonly [Layout, Layout, Layout];
  readonly alpha: number;
  readonly beta: number;
}
const axis = fc.oneof(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 70 }));
function problems(dtype: DType, right: DType): fc.Arbitrary<Problem> {
  const lead = fc.array(fc.integer({ min: 1, max: 3 }), { maxLength: 2 });
  return fc.tuple(lead, axis, axis, axis).chain(([L, M, K, N]) => {
    const shapes = [
      [...L, M, K],
      [...L, K, N],
      [...L, M, N],
    ] as const;
    const values = (s: readonly number[], as: DType = dtype): fc.Arbitrary<number[]> =>
      elementsOf(as, s, false) as fc.Arbitrary<number[]>;
    return fc.record({
      a: values(shapes[0]),
      b: values(shapes[1], right),
      c: values(shapes[2]),
      at: fc.tuple(layouts(shapes[0], true), layouts(shapes[1], true), layouts(shapes[2], false)),
      alpha: fc.constantFrom(1, -0.5, 3),
      beta: fc.constantFrom(0, 0, 1, -2),
    });
  });
}
/** alpha * a @ b + beta * c in float64, and the same of absolute values, which bounds the error. */
function product(
  p: Problem,
  a: readonly number[],
  b: readonly number[],
): { value: number[]; size: number[] } {
  const [M, K] = p.at[0].shape.slice(-2) as [number, number];
  const N = p.at[1].shape.at(-1)!;
  const value: number[] = [];
  const size: number[] = [];
  for (let row = 0; row < a.length / K; row++) {
    const matrix = Math.floor(row / M);
    for (let j = 0; j < N; j++) {
      let sum = 0;
      let abs = 0;
      for (let k = 0; k < K; k++) {
        const term = a[row * K + k]! * b[(matrix * K + k) * N + j]!;
        sum += term;
        abs += Math.abs(term);
      }
      const old = p.beta === 0 ? 0 : p.beta * p.c[row * N + j]!;
      value.push(p.alpha * sum + old);
      size.push(Math.abs(p.alpha) * abs + Math.abs(old));
    }
  }
  return { value, size };
}
export function matmulSuite(engine: Engine): void {
  describe("matmul", () => {
    const pairs = [
      ...FLOATS.map((dtype) => [dtype, dtype] as const),
      ["float32", "float16"] as const,
      ["float32", "bfloat16"] as const,
    ];
    test.each(pairs)("alpha a b + beta c of %s by %s", async (dtype, right) => {
      await fc.assert(
        fc.asyncProperty(problems(dtype, right), async (p) => {
          using a = place(engine, dtype, p.at[0], p.a);
          using b = place(engine, right, p.at[1], p.b);
          using c = place(engine, dtype, p.at[2], p.beta === 0 ? undefined : p.c); // NaN where it must not be read
          engine.matmul(a, b, c, p.alpha, p.beta);
          const { value, size } = product(
            p,
            (await elements(a)) as number[],
            (await elements(b)) as number[],
          );
          const K = p.at[0].shape.at(-1)!;
          // K + 2 roundings of the accumulator (Higham 2002, section 3.5), then one of the dtype.
          const unit = dtype === "float64" ? 2 ** -53 : 2 ** -24;
          const { ulp, tiny } = PRECISION[dtype];
          await expectElements(
            c,
            value.map((v) => rounded(dtype, v)),
            (i) => (K + 2) * unit * size[i]! + ulp * Math.abs(value[i]!) + tiny,
          );
        }),
        { numRuns: 60 },
      );
    });
    test.each([...FLOATS])("a product of %s larger than one panel in every direction", async (dtype) => {
      const [M, K, N] = [197, 301, 283];
      const grid = (rows: number, columns: number): Layout => ({
        shape: [rows, columns],
        strides: [columns, 1],
        offset: 0,
        length: rows * columns,
      });
      const whole = (n: number, seed: number): number[] =>
        Array.from({ length: n }, (_, i) => ((i * seed) % 7) - 3);
      using a = place(engine, dtype, grid(M, K), whole(M * K, 5));
      using b = place(engine, dtype, grid(K, N), whole(K * N, 11));
      using c = place(engine, dtype, grid(M, N));
      engine.matmul(a, b, c, 1, 0);
      const p = { a: [], b: [], c: [], at: [grid(M, K), grid(K, N), grid(M, N)], alpha: 1, beta: 0 } as const;
      const { value } = product(
        p as unknown as Problem,
        (await elements(a)) as number[],
        (await elements(b)) as number[],
      );
      await expectElements(
        c,
        value.map((v) => rounded(dtype, v)),
      ); // whole numbers below 2^24: exact before the store
    });
  });
}
