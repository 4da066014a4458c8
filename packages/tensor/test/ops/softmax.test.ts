import {
  DTypeError,
  ones,
  scope,
  ShapeError,
  softmax,
  tensor,
  type Tensor,
  toFloat64,
  zeros,
} from "@heed/tensor";
import { assertClose, createRng, floatDTypes, roundArray, toleranceFor } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { engines } from "../engines.ts";

describe.each([...engines])("softmax on %s", (engine) => {
  const run = (rows: number[][]): number[] =>
    scope(() => [...toFloat64(softmax(tensor(rows, undefined, { engine })))]);

  test("agrees with exp(x) / sum in every float dtype, for every length about a vector's", () => {
    for (const dtype of floatDTypes) {
      for (const n of [1, 2, 3, 7, 8, 9, 16, 17, 33, 100]) {
        const x = roundArray(dtype, createRng(n).normalArray(2 * n));
        const row = (r: number): number[] => {
          const e = Array.from(x.subarray(r * n, (r + 1) * n), Math.exp);
          const z = e.reduce((a, b) => a + b);
          return e.map((v) => v / z);
        };
        const got = scope(() => toFloat64(softmax(tensor([...x], [2, n], { engine, dtype }))));
        const { storage, accumulation } = toleranceFor(dtype);
        assertClose(got, [...row(0), ...row(1)], { rel: storage + 8 * accumulation, name: `${dtype}, ${n}` });
      }
    }
  });
  test("reads any view", () => {
    scope(() => {
      const x = tensor(
        [
          [1, 5],
          [2, 6],
          [3, 7],
        ],
        undefined,
        { engine, dtype: "float64" },
      );
      const dense = toFloat64(softmax(x.transpose().contiguous()));
      expect([...toFloat64(softmax(x.transpose()))]).toEqual([...dense]);
    });
  });
  test("large scores do not overflow", () => {
    expect(
      run([
        [1000, 1000],
        [-1000, 0],
      ]),
    ).toEqual([0.5, 0.5, 0, 1]);
  });
  test("a row that is -Infinity throughout gives zeros, a NaN shows", () => {
    expect(
      run([
        [-Infinity, -Infinity],
        [-Infinity, 3],
      ]),
    ).toEqual([0, 0, 0, 1]);
    expect(
      run([
        [NaN, 1],
        [0, NaN],
      ]),
    ).toEqual([NaN, NaN, NaN, NaN]);
  });
  test("a scalar and an integer are refused; empty tensors are empty", () => {
    scope(() => {
      expect(() => softmax(ones([], { engine }))).toThrow(ShapeError);
      expect(() => softmax(ones([2], { engine, dtype: "int32" }) as Tensor as Tensor<"float32">)).toThrow(
        DTypeError,
      );
      expect(softmax(zeros([2, 0], { engine })).shape).toEqual([2, 0]);
    });
  });
});
