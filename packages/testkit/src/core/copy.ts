import { type DType, type DTypeArrays, DTYPES, type Engine, isFloat, sizeOf } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  ALL,
  type Element,
  elements,
  elementsOf,
  expectElements,
  layouts,
  place,
  PRECISION,
  rounded,
  shapes,
} from "./strided.ts";

const RANGE: Readonly<Partial<Record<DType, readonly [bigint, bigint]>>> = {
  int32: [-(2n ** 31n), 2n ** 31n - 1n],
  int64: [-(2n ** 63n), 2n ** 63n - 1n],
  uint8: [0n, 255n],
};
const sized = (to: DType, x: bigint): Element => (to === "int64" ? x : Number(x));

/** A float as an integer: toward zero, held to the range, NaN as 0. */
function saturated(to: DType, x: number): Element {
  const [low, high] = RANGE[to]!;
  if (Number.isNaN(x)) return sized(to, 0n);
  if (x <= Number(low)) return sized(to, low);
  if (x >= Number(high)) return sized(to, high);
  return sized(to, BigInt(Math.trunc(x)));
}
function wrapped(to: DType, x: bigint): Element {
  const [low, high] = RANGE[to]!;
  const n = high - low + 1n;
  return sized(to, ((((x - low) % n) + n) % n) + low);
}
function converted(from: DType, to: DType, x: Element): Element {
  if (from === to) return x;
  if (to === "bool") return Number(x) === 0 ? 0 : 1;
  if (isFloat(to)) return rounded(to, Number(x));
  return isFloat(from) ? saturated(to, x as number) : wrapped(to, BigInt(x));
}
const pairs = ALL.flatMap((from) => ALL.map((to) => [from, to] as const));

export function copySuite(engine: Engine): void {
  describe("copy", () => {
    test.each(pairs)("%s to %s", async (from, to) => {
      // A whole number of more than 53 bits may be rounded twice on its way.
      const loose = from === "int64" && isFloat(to) ? PRECISION[to].ulp : 0;
      const problem = shapes(0, 4).chain((shape) =>
        fc.record({
          values: elementsOf(from, shape),
          at: layouts(shape, true),
          outAt: layouts(shape, false),
        }),
      );
      await fc.assert(
        fc.asyncProperty(problem, async ({ values, at, outAt }) => {
          using x = place(engine, from, at, values);
          using out = place(engine, to, outAt);
          engine.copy(x, out);
          const expected = (await elements(x)).map((v) => converted(from, to, v));
          await expectElements(out, expected, (i) => loose * Math.abs(Number(expected[i])));
        }),
        { numRuns: 30 },
      );
    });
    test.each([...ALL])("a large transpose of %s keeps every bit", async (dtype) => {
      const [rows, columns] = [67, 130];
      const at = { shape: [columns, rows], strides: [1, columns], offset: 0, length: rows * columns };
      const outAt = { shape: [columns, rows], strides: [rows, 1], offset: 0, length: rows * columns };
      const values = Array.from({ length: rows * columns }, (_, i) => {
        const x = dtype === "bool" ? i % 2 : (i * 37) % 251;
        return dtype === "int64" ? BigInt(x) : x;
      });
      using x = place(engine, dtype, at, values);
      using out = place(engine, dtype, outAt);
      engine.copy(x, out);
      await expectElements(out, await elements(x));
    });
    test.each(["float64", "float32"] as const)(
      "%s at the edges of int32, int64 and uint8 saturates",
      async (dtype) => {
        const edges = [
          2 ** 31,
          -(2 ** 31),
          2 ** 63,
          -(2 ** 63),
          1e30,
          -1e30,
          255,
          256,
          -1,
          -0.9,
          255.9,
          NaN,
          Infinity,
          -Infinity,
        ];
        for (const to of ["int32", "int64", "uint8"] as const) {
          const at = { shape: [edges.length], strides: [1], offset: 0, length: edges.length };
          using x = place(engine, dtype, at, edges);
          using out = place(engine, to, at);
          engine.copy(x, out);
          await expectElements(
            out,
            edges.map((v) => saturated(to, v)),
          );
        }
      },
    );
    test.each(["float16", "bfloat16"] as const)("float64 and int32 to %s are rounded once", async (to) => {
      // Just beside the middle of two neighbours: rounded to float32 first, they would lie on it and go to the even one.
      const bits = to === "float16" ? 10 : 7;
      const middles = [1, 3].map((n) => 1 + n * 2 ** -(bits + 1));
      const values = middles.flatMap((m) => [m + 2 ** -40, m - 2 ** -40, -m - 2 ** -40, -m + 2 ** -40]);
      const whole = to === "bfloat16" ? middles.flatMap((m) => [m * 2 ** 30 + 1, m * 2 ** 30 - 1]) : [];
      for (const [from, given] of [
        ["float64", values],
        ["int32", whole],
      ] as const) {
        if (given.length === 0) continue;
        const at = { shape: [given.length], strides: [1], offset: 0, length: given.length };
        using x = place(engine, from, at, given);
        using out = place(engine, to, at);
        engine.copy(x, out);
        await expectElements(
          out,
          given.map((v) => rounded(to, v)),
        );
      }
    });
  });
  describe("upload and read", () => {
    test.each([...ALL])("%s comes back as it went in, and strided reads are row-major", async (dtype) => {
      const shape = [3, 5];
      const host = new DTYPES[dtype].array(sizeOf(shape)) as Float32Array<ArrayBuffer>;
      for (let i = 0; i < host.length; i++)
        host[i] = (dtype === "int64" ? BigInt(i) : dtype === "bool" ? i % 2 : i) as number;
      const layout = { shape, strides: [5, 1], offset: 0, length: 15 };
      using x = place(engine, dtype, layout);
      engine.upload(host as unknown as DTypeArrays[DType], x);
      expect(await engine.read(x)).toEqual(host as unknown as DTypeArrays[DType]);
      using turned = x.transpose();
      const read = (await engine.read(turned)) as Float32Array;
      expect(Array.from(read)).toEqual(
        Array.from({ length: 15 }, (_, i) => host[(i % 3) * 5 + Math.floor(i / 3)]!),
      );
    });
    test("what was read is a copy", async () => {
      using x = place(engine, "float32", { shape: [2], strides: [1], offset: 0, length: 2 }, [1, 2]);
      const before = (await engine.read(x)) as Float32Array;
      engine.upload(Float32Array.of(3, 4), x);
      await engine.sync();
      expect(Array.from(before)).toEqual([1, 2]);
    });
  });
}
