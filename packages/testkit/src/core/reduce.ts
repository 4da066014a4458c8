import { type DType, type Engine, isFloat, type ReduceOp } from "@heed/tensor";
import { describe, test } from "bun:test";
import fc from "fast-check";
import {
  type Element,
  elements,
  elementsOf,
  expectElements,
  FLOATS,
  type Layout,
  layouts,
  NUMBERS,
  place,
  PRECISION,
  rounded,
  shapes,
} from "./strided.ts";

/** The elements that each result is reduced from, row-major in the kept shape. */
function groups(x: readonly Element[], shape: readonly number[], kept: readonly number[]): Element[][] {
  const out: Element[][] = Array.from({ length: kept.reduce((a, n) => a * n, 1) }, () => []);
  x.forEach((value, flat) => {
    let rest = flat;
    let to = 0;
    let step = 1;
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      if (kept[axis] !== 1) to += (rest % shape[axis]!) * step;
      step *= kept[axis]!;
      rest = Math.floor(rest / shape[axis]!);
    }
    out[to]!.push(value);
  });
  return out;
}
function reduced(op: ReduceOp, group: readonly Element[]): Element {
  if (group.some((x) => Number.isNaN(x))) return NaN;
  return group.reduce((a, b) => {
    if (op === "sum") return (a as number) + (b as number); // two numbers or two bigints
    return (op === "max" ? a > b : a < b) ? a : b;
  });
}
function wrapped(dtype: DType, x: Element): Element {
  if (dtype === "int32") return Number(BigInt.asIntN(32, BigInt(x)));
  return typeof x === "bigint" ? BigInt.asIntN(64, x) : x;
}
interface Problem {
  readonly values: Element[];
  readonly at: Layout;
  readonly outAt: Layout;
}
function problems(dtype: DType): fc.Arbitrary<Problem> {
  return shapes(0, 4)
    .chain((shape) => fc.tuple(fc.constant(shape), fc.subarray(shape.map((_, i) => i))))
    .chain(([shape, axes]) =>
      fc.record({
        values: elementsOf(dtype, shape),
        at: layouts(shape, true),
        outAt: layouts(
          shape.map((n, i) => (axes.includes(i) ? 1 : n)),
          false,
        ),
      }),
    );
}
export function reduceSuite(engine: Engine): void {
  describe("reduce", () => {
    const cases = (["sum", "max", "min"] as const).flatMap((op) =>
      NUMBERS.map((dtype) => [op, dtype] as const),
    );
    test.each(cases)("%s of %s over any axes", async (op, dtype) => {
      await fc.assert(
        fc.asyncProperty(problems(dtype), async ({ values, at, outAt }) => {
          using x = place(engine, dtype, at, values);
          using out = place(engine, dtype, outAt);
          engine.reduce(op, x, out);
          const parts = groups(await elements(x), at.shape, outAt.shape);
          const expected = parts.map((p) => rounded(dtype, wrapped(dtype, reduced(op, p))));
          const size = (p: readonly Element[]): number =>
            p.reduce<number>((a, v) => a + Math.abs(Number(v)), 0);
          // n - 1 roundings of float64 or float32 (Higham 2002, section 4.2), ours included, and one of the dtype.
          const { ulp, tiny } = PRECISION[dtype];
          const along = (x.size / out.size) * (dtype === "float64" ? 2 ** -52 : 2 ** -24);
          const exact = op !== "sum" || !isFloat(dtype);
          await expectElements(out, expected, (i) =>
            exact ? 0 : along * size(parts[i]!) + ulp * Math.abs(Number(expected[i])) + tiny,
          );
        }),
        { numRuns: 60 },
      );
    });
    test.each([...FLOATS])("a long sum of %s does not drift", async (dtype) => {
      const n = 40_000;
      using x = place(
        engine,
        dtype,
        { shape: [n], strides: [0], offset: 0, length: 1 },
        new Array<number>(n).fill(0.125),
      );
      using out = place(engine, dtype, { shape: [1], strides: [1], offset: 0, length: 1 });
      engine.reduce("sum", x, out);
      await expectElements(out, [n * 0.125], () => n * 0.125 * PRECISION[dtype].ulp);
    });
  });
  describe("softmax", () => {
    test.each([...FLOATS])("of %s over the last axis", async (dtype) => {
      const problem = shapes(1, 3).chain((shape) =>
        fc.record({
          values: elementsOf(dtype, shape),
          at: layouts(shape, true),
          outAt: layouts(shape, false),
        }),
      );
      await fc.assert(
        fc.asyncProperty(problem, async ({ values, at, outAt }) => {
          using x = place(engine, dtype, at, values);
          using out = place(engine, dtype, outAt);
          engine.softmax(x, out);
          const expected = softmaxRows((await elements(x)) as number[], at.shape.at(-1)!);
          // exp doubles the relative error of its argument's rounding: up to 16 units for arguments down to -16.
          const { ulp, tiny } = PRECISION[dtype];
          const inside = 20 * (dtype === "float64" ? 2 ** -52 : 2 ** -23);
          await expectElements(out, expected, (i) => (inside + ulp) * Math.abs(expected[i]!) + tiny);
        }),
        { numRuns: 60 },
      );
    });
    test.each([...FLOATS])("a row of %s that is -Infinity throughout gives zeros", async (dtype) => {
      const at = { shape: [2, 19], strides: [19, 1], offset: 0, length: 38 };
      using x = place(
        engine,
        dtype,
        at,
        Array.from({ length: 38 }, (_, i) => (i < 19 ? -Infinity : 0)),
      );
      using out = place(engine, dtype, at);
      engine.softmax(x, out);
      await expectElements(
        out,
        Array.from({ length: 38 }, (_, i) => (i < 19 ? 0 : 1 / 19)),
        () => PRECISION[dtype].ulp,
      );
    });
  });
}
function softmaxRows(x: readonly number[], n: number): number[] {
  return x.map((value, i) => {
    const row = x.slice(i - (i % n), i - (i % n) + n);
    const max = Math.max(...row);
    if (max === -Infinity) return 0;
    return Math.exp(value - max) / row.reduce((a, v) => a + Math.exp(v - max), 0);
  });
}
