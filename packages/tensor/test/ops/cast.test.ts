import {
  cast,
  concat,
  copyInto,
  ArgumentError,
  type DType,
  DTypeError,
  ones,
  scope,
  ShapeError,
  tensor,
  type Tensor,
  toFloat64,
  zeros,
} from "@heed/tensor";
import { floatDTypes, roundTo } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { engines } from "../engines.ts";

describe.each([...engines])("cast, concat and copyInto on %s", (engine) => {
  const list = (t: Tensor): number[] => [...toFloat64(t)];

  // Besides any double: just beside the middle between two values of a narrower type, where a second rounding would show.
  const beside = fc.tuple(fc.constantFrom(8, 11, 24), fc.nat({ max: 9 }), fc.constantFrom(-1, 0, 1));
  const number = fc.oneof(
    fc.double(),
    beside.map(([bits, n, side]) => 1 + (2 * n + 1) * 2 ** -bits + side * 2 ** -45),
  );
  test("floats round to nearest even, from each float dtype to each", () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...floatDTypes),
        fc.constantFrom(...floatDTypes),
        fc.array(number, { maxLength: 20 }),
        (a, b, xs) => {
          const values = xs.map((x) => roundTo(a, x));
          const got = scope(() => list(cast(tensor(values, undefined, { engine, dtype: a }), b)));
          expect(got).toEqual(values.map((x) => roundTo(b, x)));
        },
      ),
    );
  });
  test("a float becomes an integer toward zero, saturating, NaN as 0", () => {
    scope(() => {
      const x = tensor([1.9, -1.9, 1e10, -1e10, 1e30, -1e30, Infinity, -Infinity, NaN], undefined, {
        engine,
      });
      expect(list(cast(x, "int32"))).toEqual([
        1,
        -1,
        2 ** 31 - 1,
        -(2 ** 31),
        2 ** 31 - 1,
        -(2 ** 31),
        2 ** 31 - 1,
        -(2 ** 31),
        0,
      ]);
      expect(list(cast(x, "uint8"))).toEqual([1, 0, 255, 0, 255, 0, 255, 0, 0]);
      expect([...cast(x, "int64").data]).toEqual([
        1n,
        -1n,
        10000000000n,
        -10000000000n,
        2n ** 63n - 1n,
        -(2n ** 63n),
        2n ** 63n - 1n,
        -(2n ** 63n),
        0n,
      ]);
      expect(list(cast(x, "bool"))).toEqual([1, 1, 1, 1, 1, 1, 1, 1, 1]);
      expect(list(cast(tensor([0, -0, 0.1], undefined, { engine }), "bool"))).toEqual([0, 0, 1]);
    });
  });
  test("numbers given for an integer dtype convert as a cast does", () => {
    for (const dtype of ["int32", "int64", "uint8", "bool"] as const) {
      for (const x of [1.9, -1.9, 3e9, -3e9, 1e30, -1e30, NaN, Infinity, 0]) {
        scope(() => {
          const given = tensor([x], undefined, { engine, dtype });
          const wide = tensor(Float64Array.of(x), undefined, { engine });
          expect(list(given)).toEqual(list(cast(wide, dtype)));
        });
      }
    }
  });
  test("int64 and int32 go to each other and to bool by value", () => {
    scope(() => {
      const x = tensor([0, 1, -7, 100], undefined, { engine, dtype: "int64" });
      expect(list(cast(x, "int32"))).toEqual([0, 1, -7, 100]);
      expect([...cast(cast(x, "int32"), "int64").data]).toEqual([0n, 1n, -7n, 100n]);
      expect(list(cast(x, "bool"))).toEqual([0, 1, 1, 1]);
      expect(list(cast(x, "float16"))).toEqual([0, 1, -7, 100]);
    });
  });
  test("a cast to the same dtype is a second handle on the same memory", () => {
    using x = ones([2], { engine });
    using same = cast(x, "float32");
    expect(same.storage).toBe(x.storage);
    expect(same).not.toBe(x);
  });
  test("a cast reads any view and gives a contiguous tensor", () => {
    scope(() => {
      const x = tensor(
        [
          [1, 2],
          [3, 4],
        ],
        undefined,
        { engine },
      );
      const y = cast(x.transpose(), "float16");
      expect(y.isContiguous).toBe(true);
      expect(list(y)).toEqual([1, 3, 2, 4]);
      expect(list(cast(ones([1], { engine }).broadcastTo([3]), "float64"))).toEqual([1, 1, 1]);
    });
  });
  test("concat joins along any axis, empty parts and views included, in every dtype", () => {
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
        const a = tensor(
          [
            [1, 0],
            [0, 1],
          ],
          undefined,
          { engine, dtype },
        );
        const b = tensor([[1], [1]], undefined, { engine, dtype });
        expect(list(concat([a, b], 1))).toEqual([1, 0, 1, 0, 1, 1]);
        expect(list(concat([a.transpose(), a, zeros([0, 2], { engine, dtype })], -2))).toEqual([
          1, 0, 0, 1, 1, 0, 0, 1,
        ]);
      });
    }
  });
  test("concat of nothing, of shapes or dtypes that differ and along no axis is refused", () => {
    scope(() => {
      const a = ones([2, 2], { engine });
      expect(() => concat([])).toThrow(ArgumentError);
      expect(() => concat([a, ones([2, 3], { engine })])).toThrow(ShapeError);
      expect(() => concat([a, ones([2], { engine })])).toThrow(ShapeError);
      expect(() => concat([a, a], 2)).toThrow(ShapeError);
      expect(() => concat([ones([], { engine })])).toThrow(ShapeError);
      expect(() => concat<DType>([a, ones([2, 2], { engine, dtype: "float64" })])).toThrow(DTypeError);
    });
  });
  test("copyInto writes through a view, converting", () => {
    scope(() => {
      const out = zeros([2, 3], { engine, dtype: "float16" });
      copyInto(tensor([1, 2], undefined, { engine }), out.select(1, 2));
      expect(list(out)).toEqual([0, 0, 1, 0, 0, 2]);
      expect(() => copyInto(ones([3], { engine }), out)).toThrow(ShapeError);
    });
  });
});
