import {
  ArgumentError,
  DTypeError,
  type FloatDType,
  max,
  mean,
  min,
  ones,
  type ReduceOptions,
  scope,
  ShapeError,
  sum,
  tensor,
  type Tensor,
  toFloat64,
  zeros,
} from "@heed/tensor";
import { embedInView, floatDTypes, roundArray, roundTo, viewLayout, viewRecipe } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { engines } from "../engines.ts";
import { place } from "../place.ts";

const OPS = {
  sum: (x: readonly number[]) => x.reduce((a, b) => a + b, 0),
  max: (x: readonly number[]) => Math.max(...x),
  min: (x: readonly number[]) => Math.min(...x),
  mean: (x: readonly number[]) => x.reduce((a, b) => a + b, 0) / x.length,
};
const FUNCTIONS: Record<keyof typeof OPS, (x: Tensor<FloatDType>, options: ReduceOptions) => Tensor> = {
  sum,
  max,
  min,
  mean,
};
/** A shape, some of its axes, and how the tensor lies in memory. */
const problem = fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 4 }).chain((shape) =>
  fc.record({
    recipe: viewRecipe(shape),
    axes: fc.subarray(shape.map((_, i) => i)),
    negative: fc.boolean(),
    keepDims: fc.boolean(),
    seed: fc.nat({ max: 1000 }),
  }),
);

describe.each([...engines])("reductions on %s", (engine) => {
  for (const name of Object.keys(OPS) as (keyof typeof OPS)[]) {
    test(`${name} over any axes of any view agrees with brute force`, () => {
      fc.assert(
        fc.property(
          problem,
          fc.constantFrom(...floatDTypes),
          ({ recipe, axes, negative, keepDims, seed }, dtype) => {
            const { shape } = recipe;
            const size = shape.reduce((a, n) => a * n, 1);
            // Quarters of small numbers add up exactly in every dtype. Adding 0 leaves no -0: which zero is the smaller is not said.
            const x = Float64Array.from(
              { length: size },
              (_, i) => Math.round(Math.cos(seed + i) * 6) / 4 + 0,
            );
            const groups = new Map<number, number[]>();
            x.forEach((value, flat) => {
              let key = 0;
              let rest = flat;
              let step = 1;
              for (let axis = shape.length - 1; axis >= 0; axis--) {
                const i = rest % shape[axis]!;
                rest = Math.floor(rest / shape[axis]!);
                if (axes.includes(axis)) continue;
                key += i * step;
                step *= shape[axis]!;
              }
              groups.set(key, [...(groups.get(key) ?? []), value]);
            });
            const { strides, offset } = viewLayout(recipe);
            const base = embedInView(recipe, x);
            const got = scope(() => {
              const t = place(engine, dtype, base, shape, strides, offset);
              const out = FUNCTIONS[name](t, {
                axes: axes.map((a) => (negative ? a - shape.length : a)),
                keepDims,
              });
              const kept = shape
                .map((n, i) => (axes.includes(i) ? 1 : n))
                .filter((_, i) => keepDims || !axes.includes(i));
              expect(out.shape).toEqual(kept);
              return [...toFloat64(out)];
            });
            const expected = [...groups]
              .sort(([a], [b]) => a - b)
              .map(([, values]) => roundTo(dtype, OPS[name](values)));
            expect(got).toEqual(expected);
          },
        ),
        { numRuns: 60 },
      );
    });
  }
  test("16-bit floats accumulate in float32 and round once", () => {
    scope(() => {
      // In float16 itself the sum would stop growing at 2048, in bfloat16 at 256.
      expect([...toFloat64(sum(ones([4096], { engine, dtype: "float16" })))]).toEqual([4096]);
      expect([...toFloat64(sum(ones([4096], { engine, dtype: "bfloat16" })))]).toEqual([4096]);
      expect([
        ...toFloat64(mean(tensor(Array<number>(10).fill(60000), undefined, { engine, dtype: "float16" }))),
      ]).toEqual([roundArray("float16", [60000])[0]!]);
    });
  });
  test("a NaN shows in sum, max and min wherever it stands", () => {
    for (const values of [
      [NaN, 1, 2],
      [1, NaN, 2],
      [1, 2, NaN],
    ]) {
      for (const op of [sum, max, min]) {
        expect(scope(() => [...toFloat64(op(tensor(values, undefined, { engine })))])).toEqual([NaN]);
      }
    }
  });
  test("integers reduce exactly", () => {
    scope(() => {
      const x = tensor(
        [
          [1, -5],
          [7, 2],
        ],
        undefined,
        { engine, dtype: "int64" },
      );
      expect([...sum(x).data]).toEqual([5n]);
      expect([...max(x, { axes: [0] }).data]).toEqual([7n, 2n]);
      expect([...min(x, { axes: [1] }).data]).toEqual([-5n, 2n]);
    });
  });
  test("the sum of nothing is 0, its mean NaN, its max not defined", () => {
    scope(() => {
      const none = zeros([2, 0], { engine });
      expect([...toFloat64(sum(none, { axes: [1] }))]).toEqual([0, 0]);
      expect([...toFloat64(mean(none, { axes: [1] }))]).toEqual([NaN, NaN]);
      expect(sum(none, { axes: [0] }).shape).toEqual([0]);
      expect(() => max(none, { axes: [1] })).toThrow(ArgumentError);
      expect(max(none, { axes: [0] }).shape).toEqual([0]);
    });
  });
  test("axes outside the rank and dtypes without a sum are refused", () => {
    scope(() => {
      const x = ones([2, 2], { engine });
      expect(() => sum(x, { axes: [2] })).toThrow(ShapeError);
      expect(() => sum(x, { axes: [-3] })).toThrow(ShapeError);
      expect(() => sum(x, { axes: [0.5] })).toThrow(ShapeError);
      expect(() => sum(ones([2], { engine, dtype: "bool" }))).toThrow(DTypeError);
      expect(() => sum(ones([2], { engine, dtype: "uint8" }))).toThrow(DTypeError);
      expect(() => mean(ones([2], { engine, dtype: "int32" }) as Tensor as Tensor<"float32">)).toThrow(
        DTypeError,
      );
    });
  });
});
