import {
  ArgumentError,
  type DType,
  DTypeError,
  gather,
  ones,
  scatterAdd,
  scope,
  ShapeError,
  tensor,
  type Tensor,
  toFloat64,
  zeros,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { engines } from "../engines.ts";

describe.each([...engines])("gather and scatterAdd on %s", (engine) => {
  const int = (values: number[], dtype: "int32" | "int64" = "int32"): Tensor =>
    tensor(values, undefined, { engine, dtype });

  test("gather takes rows by indices of any shape, from any view, in every dtype", () => {
    const dtypes: DType[] = ["float64", "float32", "float16", "bfloat16", "int32", "int64", "uint8", "bool"];
    fc.assert(
      fc.property(
        fc.constantFrom(...dtypes),
        fc.constantFrom("int32" as const, "int64" as const),
        fc.array(fc.nat({ max: 3 }), { minLength: 1, maxLength: 6 }),
        fc.boolean(),
        (dtype, kind, indices, turned) => {
          scope(() => {
            const values = Array.from({ length: 12 }, (_, i) => (dtype === "bool" ? i % 2 : i));
            const base = tensor(values, turned ? [3, 4] : [4, 3], { engine, dtype });
            const x = turned ? base.transpose() : base; // [4, 3]
            const at = (row: number, column: number): number =>
              values[turned ? column * 4 + row : row * 3 + column]!;
            const out = gather(x, int(indices, kind));
            expect(out.shape).toEqual([indices.length, 3]);
            expect([...toFloat64(out)]).toEqual(
              indices.flatMap((row) => [0, 1, 2].map((column) => at(row, column))),
            );
          });
        },
      ),
      { numRuns: 60 },
    );
    scope(() => {
      const table = tensor(
        [
          [1, 2],
          [3, 4],
        ],
        undefined,
        { engine },
      );
      expect(gather(table, tensor([[1, 0, 1]], undefined, { engine, dtype: "int32" })).shape).toEqual([
        1, 3, 2,
      ]);
      expect([...toFloat64(gather(table.select(1, 1), int([1])))]).toEqual([4]);
    });
  });
  test("scatterAdd adds up rows that share an index, and is the gradient of gather", () => {
    scope(() => {
      const out = ones([3, 2], { engine });
      const x = tensor(
        [
          [1, 2],
          [10, 20],
          [100, 200],
        ],
        undefined,
        { engine },
      );
      scatterAdd(x, int([2, 0, 2]), out);
      expect([...out.data]).toEqual([11, 21, 1, 1, 102, 203]);
    });
  });
  test("an index out of range is refused before anything is written, with its position", () => {
    scope(() => {
      const x = ones([3, 2], { engine });
      for (const bad of [-1, 3, 2 ** 31 - 1, -(2 ** 31)]) {
        expect(() => gather(x, int([0, bad]))).toThrow(ArgumentError);
        expect(() => gather(x, int([0, bad]))).toThrow(`index ${bad} at position 1`);
        const out = zeros([3, 2], { engine });
        expect(() => scatterAdd(x, int([0, 1, bad]), out)).toThrow(ArgumentError);
        expect([...out.data]).toEqual(Array(6).fill(0));
      }
      const huge = tensor(BigInt64Array.of(2n ** 62n), undefined, { engine, dtype: "int64" });
      expect(() => gather(x, huge)).toThrow(ArgumentError);
    });
  });
  test("no indices, no columns and no rows are fine", () => {
    scope(() => {
      expect(gather(ones([3, 2], { engine }), int([])).shape).toEqual([0, 2]);
      expect(gather(zeros([3, 0], { engine }), int([1])).shape).toEqual([1, 0]);
      expect(gather(zeros([0, 2], { engine }), int([])).shape).toEqual([0, 2]);
      expect(() => gather(zeros([0, 2], { engine }), int([0]))).toThrow(ArgumentError);
      scatterAdd(zeros([0, 2], { engine }), int([]), ones([3, 2], { engine }));
    });
  });
  test("shapes and dtypes that do not fit are refused", () => {
    scope(() => {
      const x = ones([3, 2], { engine });
      expect(() => gather(x, ones([1], { engine }))).toThrow(DTypeError);
      expect(() => gather(ones([], { engine }), int([0]))).toThrow(ShapeError);
      expect(() => scatterAdd(x, int([0, 1]), x)).toThrow(ShapeError);
      expect(() => scatterAdd(x, int([0, 1, 2]), ones([3, 3], { engine }))).toThrow(ShapeError);
      expect(() => scatterAdd(x, int([0, 1, 2]), ones([3, 2], { engine, dtype: "float64" }))).toThrow(
        DTypeError,
      );
      const tall = ones([1, 1, 1, 1, 1], { engine });
      expect(() => gather(tall, tensor([[[[[0]]]]], undefined, { engine, dtype: "int32" }))).toThrow(
        ShapeError,
      );
    });
  });
});
