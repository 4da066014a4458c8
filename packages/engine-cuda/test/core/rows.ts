import { type DType, type Engine, isFloat } from "@heed/tensor";
import {
  ALL,
  type Element,
  elements,
  expectElements,
  FLOATS,
  type Layout,
  NUMBERS,
  place,
  PRECISION,
  rounded,
} from "@heed/testkit/core/strided";
import { describe, expect, test } from "bun:test";

const line = (n: number): Layout => ({ shape: [n], strides: [1], offset: 0, length: n });
const grid = (rows: number, columns: number): Layout => ({
  shape: [rows, columns],
  strides: [columns, 1],
  offset: 0,
  length: rows * columns,
});
/** Small whole numbers of a dtype. */
function whole(dtype: DType, n: number, seed = 37): Element[] {
  return Array.from({ length: n }, (_, i) => {
    const x = dtype === "bool" ? i % 2 : ((i * seed) % 23) - (dtype === "uint8" ? 0 : 11);
    return dtype === "int64" ? BigInt(x) : dtype === "uint8" ? Math.abs(x) : x;
  });
}
/** Reductions that are cut into pieces, along rows and down columns. */
export function longReduceSuite(engine: Engine): void {
  describe("long reductions", () => {
    test.each([...NUMBERS])("%s: sums, maxima and minima of whole numbers are exact", async (dtype) => {
      for (const [rows, columns] of [
        [1, 70_001],
        [3, 9000],
        [9001, 3],
        [5000, 40],
      ] as const) {
        const values = whole(dtype, rows * columns);
        using x = place(engine, dtype, grid(rows, columns), values);
        for (const axis of [0, 1]) {
          const kept = axis === 0 ? [1, columns] : [rows, 1];
          for (const op of ["sum", "max", "min"] as const) {
            using out = place(engine, dtype, { ...grid(kept[0]!, kept[1]!) });
            engine.reduce(op, x, out);
            const expected = Array.from({ length: kept[0]! * kept[1]! }, (_, i) => {
              const group = Array.from({ length: axis === 0 ? rows : columns }, (__, j) =>
                Number(values[axis === 0 ? j * columns + i : i * columns + j]),
              );
              if (op === "sum") return group.reduce((a, b) => a + b, 0);
              return op === "max" ? Math.max(...group) : Math.min(...group);
            });
            await expectElements(
              out,
              expected.map((v) => rounded(dtype, dtype === "int64" ? BigInt(v) : v)),
            );
          }
        }
      }
    });
    test.each([...FLOATS])("%s: one NaN among many is the maximum and the minimum", async (dtype) => {
      for (const at of [0, 77, 69_999]) {
        const values = whole(dtype, 70_000);
        values[at] = NaN;
        using x = place(engine, dtype, line(70_000), values);
        for (const op of ["sum", "max", "min"] as const) {
          using out = place(engine, dtype, line(1));
          engine.reduce(op, x, out);
          await expectElements(out, [NaN]);
        }
      }
    });
    test("a sum has the same bits every time", async () => {
      const values = Array.from({ length: 60_000 }, (_, i) => Math.fround(Math.sin(i) * 2 ** (i % 20)));
      using x = place(engine, "float32", line(60_000), values);
      const seen = new Set<Element>();
      for (let i = 0; i < 5; i++) {
        using out = place(engine, "float32", line(1));
        engine.reduce("sum", x, out);
        seen.add((await elements(out))[0]!);
      }
      expect(seen.size).toBe(1);
    });
  });
}
function softmaxRow(row: readonly number[]): number[] {
  const most = Math.max(...row);
  const powers = row.map((v) => (most === -Infinity ? 0 : Math.exp(v - most)));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((v) => (sum === 0 ? 0 : v / sum));
}
/** Rows of every kind: one lane to a row, a warp, a block; more rows than blocks. */
export function softmaxRowsSuite(engine: Engine): void {
  describe("softmax of rows of many lengths", () => {
    test.each([...FLOATS])("%s", async (dtype) => {
      for (const [rows, n] of [
        [5, 1],
        [700, 3],
        [9, 40],
        [3, 600],
        [2, 5003],
      ] as const) {
        const values = Array.from({ length: rows * n }, (_, i) =>
          rounded(dtype, 8 * Math.sin(i)),
        ) as number[];
        values[1] = -Infinity;
        using x = place(engine, dtype, grid(rows, n), values);
        using out = place(engine, dtype, grid(rows, n));
        engine.softmax(x, out);
        const expected = Array.from({ length: rows }, (_, r) =>
          softmaxRow(values.slice(r * n, r * n + n)),
        ).flat();
        // As the suite of the core methods: exp doubles the error of its argument's rounding.
        const { ulp, tiny } = PRECISION[dtype];
        const inside = 20 * (dtype === "float64" ? 2 ** -52 : 2 ** -23);
        await expectElements(out, expected, (i) => (inside + ulp) * Math.abs(expected[i]!) + tiny);
      }
    });
  });
}
/** Indices by the hundred, repeated, wide and out of range. */
export function indexSuite(engine: Engine): void {
  describe("many indices", () => {
    const indices = Array.from({ length: 150 }, (_, i) => (i * i + (i >> 3)) % 13);
    test.each([...NUMBERS])("scatterAdd of %s adds repeated rows", async (dtype) => {
      for (const width of [1, 5, 64, 700]) {
        const start = whole(dtype, 14 * width, 3);
        const values = whole(dtype, 150 * width);
        using out = place(engine, dtype, grid(14, width), start);
        using x = place(engine, dtype, grid(150, width), values);
        using rows = place(engine, "int32", line(150), indices);
        engine.scatterAdd(x, rows, out);
        const expected = start.map(Number);
        indices.forEach((r, i) => {
          for (let j = 0; j < width; j++) expected[r * width + j]! += Number(values[i * width + j]);
        });
        await expectElements(
          out,
          expected.map((v) => rounded(dtype, dtype === "int64" ? BigInt(v) : v)),
        );
      }
    });
    test("scatterAdd adds in ascending order of the indices, with one rounding", async () => {
      // 2^24 + 1 rounds to 2^24 in float32, so the order of 2^24, 1 and -2^24 shows: 0 here, 1 in others.
      using out = place(engine, "float32", line(1), [2 ** 24]);
      using x = place(engine, "float32", line(40), [1, -(2 ** 24), ...new Array<number>(38).fill(0)]);
      using rows = place(engine, "int32", line(40), new Array<number>(40).fill(0));
      engine.scatterAdd(x, rows, out);
      await expectElements(out, [0]);
      using half = place(engine, "float16", line(1), [2048]);
      using small = place(engine, "float16", line(4), [1, 1, 1, 1]); // each alone would be lost
      using same = place(engine, "int64", line(4), [0n, 0n, 0n, 0n]);
      engine.scatterAdd(small, same, half);
      await expectElements(half, [2052]);
    });
    test.each([...ALL])("an index of %s out of range gives NaN, or 0 where there is none", async (dtype) => {
      const values = whole(dtype, 3 * 20);
      using x = place(engine, dtype, grid(3, 20), values);
      using rows = place(engine, "int64", line(5), [2n, -1n, 3n, 0n, 2n ** 40n]);
      using out = place(engine, dtype, grid(5, 20));
      engine.gather(x, rows, out);
      const none: Element = isFloat(dtype) ? NaN : dtype === "int64" ? 0n : 0;
      const expected = [2, -1, 3, 0, -1].flatMap((r) =>
        r < 0 || r > 2 ? new Array<Element>(20).fill(none) : values.slice(r * 20, r * 20 + 20),
      );
      await expectElements(out, expected);
    });
    test("scatterAdd leaves out an index out of range", async () => {
      using out = place(engine, "float32", grid(2, 4), [1, 2, 3, 4, 5, 6, 7, 8]);
      using x = place(engine, "float32", grid(3, 4), new Array<number>(12).fill(1));
      using rows = place(engine, "int32", line(3), [-1, 1, 2]);
      engine.scatterAdd(x, rows, out);
      await expectElements(out, [1, 2, 3, 4, 6, 7, 8, 9]);
    });
  });
}
/** Elementwise work of more units than threads, and every conversion in vectors. */
export function largeSuite(engine: Engine): void {
  describe("large tensors", () => {
    test.each([...NUMBERS])("add of %s: threads take several units", async (dtype) => {
      const n = 100_003;
      using a = place(engine, dtype, line(n), whole(dtype, n));
      using b = place(engine, dtype, line(n), whole(dtype, n, 5));
      using out = place(engine, dtype, line(n));
      engine.binary("add", a, b, out);
      const [x, y] = [whole(dtype, n), whole(dtype, n, 5)];
      await expectElements(
        out,
        x.map((v, i) => (typeof v === "bigint" ? v + (y[i] as bigint) : v + (y[i] as number))),
      );
    });
    test.each(ALL.flatMap((from) => ALL.map((to) => [from, to] as const)))(
      "%s to %s in vectors",
      async (from, to) => {
        const n = 1037;
        const values = whole(from, n).map((v) => (typeof v === "bigint" ? (v < 0n ? -v : v) : Math.abs(v)));
        using x = place(engine, from, line(n), values);
        using out = place(engine, to, line(n));
        engine.copy(x, out);
        await expectElements(
          out,
          values.map((v) =>
            from === to
              ? v
              : to === "bool"
                ? Number(Number(v) !== 0)
                : to === "int64"
                  ? BigInt(v)
                  : Number(v),
          ),
        );
      },
    );
    test("an expanded row is added to a matrix", async () => {
      const [rows, columns] = [50, 96];
      using a = place(engine, "bfloat16", grid(rows, columns), whole("bfloat16", rows * columns));
      using b = place(
        engine,
        "bfloat16",
        { shape: [rows, columns], strides: [0, 1], offset: 0, length: columns },
        whole("bfloat16", columns),
      );
      using c = place(
        engine,
        "bfloat16",
        { shape: [rows, columns], strides: [1, 0], offset: 0, length: rows },
        whole("bfloat16", rows),
      );
      for (const other of [b, c]) {
        using out = place(engine, "bfloat16", grid(rows, columns));
        engine.binary("add", a, other, out);
        const [x, y] = [(await elements(a)) as number[], (await elements(other)) as number[]];
        await expectElements(
          out,
          x.map((v, i) => v + y[i]!),
        );
      }
    });
  });
}
