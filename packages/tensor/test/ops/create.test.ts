import {
  arange,
  ArgumentError,
  type DType,
  DTypeError,
  empty,
  fill,
  full,
  inspect,
  type Nested,
  ones,
  OutOfMemoryError,
  randn,
  scope,
  ShapeError,
  tensor,
  type Tensor,
  toFloat64,
  uniform,
  zeros,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { engines } from "../engines.ts";

describe.each([...engines])("tensors created on %s", (engine) => {
  const list = (t: Tensor): number[] => [...toFloat64(t)];

  test("nested lists give their shape, typed arrays their dtype, and both are copied", () => {
    scope(() => {
      const nested = tensor(
        [
          [[1], [2]],
          [[3], [4]],
        ],
        undefined,
        { engine },
      );
      expect([nested.shape, nested.dtype]).toEqual([[2, 2, 1], "float32"]);
      expect(tensor(7, undefined, { engine }).shape).toEqual([]);
      expect(tensor([[], []], undefined, { engine }).shape).toEqual([2, 0]);
      const values = Float64Array.of(1, 2, 3, 4);
      const typed = tensor(values, [2, 2], { engine });
      expect(typed.dtype as DType).toBe("float64");
      values.fill(0);
      expect(list(typed)).toEqual([1, 2, 3, 4]);
      expect(
        tensor(Float64Array.of(1, 2, 3).subarray(1), undefined, { engine, dtype: "float64" }).shape,
      ).toEqual([2]);
    });
  });
  test("the shape given is copied too", () => {
    const shape = [2, 2];
    using t = zeros(shape, { engine });
    const given = [2, 2];
    shape[0] = 9;
    using own = tensor([1, 2, 3, 4], given, { engine });
    given[0] = 9;
    expect([t.shape, own.shape]).toEqual([
      [2, 2],
      [2, 2],
    ]);
  });
  test("lists that are ragged, too deep, endless or no numbers are refused in words", () => {
    const endless: Nested[] = [];
    endless.push(endless);
    const bad: [unknown, new (m: string) => Error][] = [
      [[[1, 2], [3]], ShapeError],
      [[1, [2]], ShapeError],
      [[[1], 2], ShapeError],
      [[[], [1]], ShapeError],
      [endless, ShapeError],
      [[[[[[[[[[1]]]]]]]]], ShapeError],
      ["12", ArgumentError],
      [["a"], ArgumentError],
      [[1, "a"], ArgumentError],
      [[null], ArgumentError],
      [[1, undefined], ArgumentError],
      [null, ArgumentError],
      [{}, ArgumentError],
      [[1n], ArgumentError],
    ];
    for (const [values, type] of bad)
      expect(() => tensor(values as Nested, undefined, { engine })).toThrow(type);
  });
  test("typed arrays must be the dtype's own", () => {
    expect(() => tensor(Uint16Array.of(1) as never, undefined, { engine })).toThrow(DTypeError);
    expect(() => tensor(Int8Array.of(1) as never, undefined, { engine })).toThrow(DTypeError);
    expect(() => tensor(Float64Array.of(1), undefined, { engine, dtype: "float32" })).toThrow(DTypeError);
    expect(() => tensor(Float32Array.of(1), undefined, { engine, dtype: "int8" as DType })).toThrow(
      DTypeError,
    );
    expect(() => zeros([1], { engine, dtype: "toString" as DType })).toThrow(DTypeError);
    using bits = tensor(Uint16Array.of(0x3f80), undefined, { engine, dtype: "bfloat16" });
    expect(list(bits)).toEqual([1]);
  });
  test("values that do not fill the shape are refused", () => {
    expect(() => tensor([1, 2, 3], [2, 2], { engine })).toThrow("3 values do not fill shape [2, 2]");
    expect(() => tensor(Float32Array.of(1), [], { engine })[Symbol.dispose]()).not.toThrow();
    expect(() => tensor([], [2], { engine })).toThrow(ShapeError);
  });
  test("full, ones, zeros, empty and fill hold in every dtype", () => {
    for (const dtype of [
      "float64",
      "float32",
      "float16",
      "bfloat16",
      "int32",
      "int64",
      "uint8",
      "bool",
    ] as DType[]) {
      scope(() => {
        expect(list(ones([2], { engine, dtype }))).toEqual([1, 1]);
        expect(list(zeros([2], { engine, dtype }))).toEqual([0, 0]);
        const t = empty([2, 2], { engine, dtype });
        fill(t, 1);
        fill(t.select(1, 0), 0);
        expect(list(t)).toEqual([0, 1, 0, 1]);
        expect(list(full([0], 3, { engine, dtype }))).toEqual([]);
      });
    }
  });
  test("arange counts up and down, and refuses what has no end", () => {
    scope(() => {
      expect(list(arange(0, 5, 2, { engine }))).toEqual([0, 2, 4]);
      expect(list(arange(3, 0, -1, { engine, dtype: "float16" }))).toEqual([3, 2, 1]);
      expect(list(arange(3, 0, 1, { engine }))).toEqual([]);
      for (const [a, b, c] of [
        [0, 1, 0],
        [0, Infinity, 1],
        [NaN, 1, 1],
        [0, 1, NaN],
      ] as const) {
        expect(() => arange(a, b, c, { engine })).toThrow(ArgumentError);
      }
    });
  });
  test("more memory than there is, is an OutOfMemoryError", () => {
    expect(() => zeros([2 ** 46], { engine })).toThrow(OutOfMemoryError);
  });
  test("inspect shows small tensors and names large ones", () => {
    scope(() => {
      expect(inspect(tensor([[1, 2]], undefined, { engine }).transpose())).toBe("float32[2, 1] 1 2");
      expect(inspect(zeros([100], { engine }))).toBe("float32[100]");
    });
  });
  test("a seed gives the same numbers every time, another seed others", () => {
    scope(() => {
      const draw = (seed: number): number[] => list(randn([50], { engine, seed }));
      expect(draw(1)).toEqual(draw(1));
      expect(draw(1)).not.toEqual(draw(2));
      expect(draw(2 ** 40 + 1)).not.toEqual(draw(1));
    });
  });
  test("randn has the mean and deviation asked for, uniform its bounds", () => {
    scope(() => {
      const n = 20000;
      const x = list(randn([n], { engine, dtype: "float64", mean: 3, std: 2, seed: 5 }));
      const mean = x.reduce((a, b) => a + b) / n;
      const variance = x.reduce((a, b) => a + (b - mean) ** 2, 0) / n;
      // Six standard errors: 6 * 2 / sqrt(n), and 6 * 4 * sqrt(2 / n).
      expect(Math.abs(mean - 3)).toBeLessThan((6 * 2) / Math.sqrt(n));
      expect(Math.abs(variance - 4)).toBeLessThan(6 * 4 * Math.sqrt(2 / n));
      const u = list(uniform([n], { engine, dtype: "float64", low: -1, high: 1, seed: 5 }));
      expect(Math.min(...u)).toBeGreaterThanOrEqual(-1);
      expect(Math.max(...u)).toBeLessThan(1);
      expect(new Set(u).size).toBe(n);
    });
  });
});
