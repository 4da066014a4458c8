import {
  DeviceError,
  DisposedError,
  DTypeError,
  linear,
  linearBackward,
  ones,
  scope,
  ShapeError,
  type Tensor,
  tensor,
  toFloat64,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { fakeEngine } from "../../engine/fake.ts";
import { engines } from "../../engines.ts";
import { refuses } from "../../misuse.ts";

const on = { engine: "portable" } as const;
const make = (...shape: number[]): Tensor<"float32"> => ones(shape, on);
const any = (x: unknown): never => x as never;
const [x, w] = [make(2, 3), make(4, 3)];
const half = ones([4, 3], { ...on, dtype: "float16" });
const disposed = make(4, 3);
disposed[Symbol.dispose]();

refuses({
  "a scalar": [() => linear(make(), w), ShapeError, "x [..., in] and weight [out, in]"],
  "a weight of rank 1": [() => linear(x, make(3)), ShapeError, "weight float32[3]"],
  "a weight the other way round": [() => linear(x, make(3, 4)), ShapeError, "weight float32[3, 4]"],
  "a bias of another length": [() => linear(x, w, { bias: make(3) }), ShapeError, "[out] = [4]"],
  "a bias of rank 2": [() => linear(x, w, { bias: make(1, 4) }), ShapeError, "bias"],
  "a bias of another dtype": [
    () => linear(x, half, { bias: ones([4], { ...on, dtype: "float16" }) }),
    DTypeError,
    "one dtype",
  ],
  "a 16-bit x with a float32 weight": [() => linear(half, w), DTypeError, "one dtype"],
  "a float64 x with a 16-bit weight": [
    () => linear(ones([2, 3], { ...on, dtype: "float64" }), half),
    DTypeError,
    "one dtype",
  ],
  "an integer x": [() => linear(any(ones([2, 3], { ...on, dtype: "int32" })), w), DTypeError, "float dtype"],
  "an integer weight": [() => linear(x, ones([4, 3], { ...on, dtype: "int32" })), DTypeError, "one dtype"],
  "a disposed weight": [() => linear(x, disposed), DisposedError, "disposed"],
  "a weight on another engine": [
    () => linear(x, ones([4, 3], { engine: fakeEngine() })),
    DeviceError,
    "different engines",
  ],
  "an upstream gradient of another shape": [() => linearBackward(x, w, make(2, 3)), ShapeError, "[2, 4]"],
  "a gradient for a weight of rank 1": [
    () => linearBackward(x, make(3), make(2, 4)),
    ShapeError,
    "weight float32[3]",
  ],
  "a gradient for a weight that does not fit": [
    () => linearBackward(x, make(4, 5), make(2, 4)),
    ShapeError,
    "weight",
  ],
  "a gradient in integers": [
    () =>
      linearBackward(
        ones([1, 1], { ...on, dtype: "int32" }),
        ones([1, 1], { ...on, dtype: "int32" }),
        ones([1, 1], { ...on, dtype: "int32" }),
      ),
    DTypeError,
    "float dtype",
  ],
  "an upstream gradient of another dtype": [
    () => linearBackward(x, w, ones([2, 4], { ...on, dtype: "float64" })),
    DTypeError,
    "one dtype",
  ],
});
describe.each([...engines])("linear on %s", (engine) => {
  const list = (t: Tensor): number[] => [...toFloat64(t)];

  test("without inputs the result is the bias, or 0", () => {
    scope(() => {
      const none = ones([2, 2, 0], { engine });
      const weight = ones([3, 0], { engine });
      const bias = tensor([1, 2, 3], undefined, { engine });
      expect(list(linear(none, weight, { bias }))).toEqual([1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3]);
      expect(linear(none, weight).shape).toEqual([2, 2, 3]);
      expect(list(linear(none, weight))).toEqual(Array(12).fill(0));
      const g = linearBackward(none, weight, ones([2, 2, 3], { engine }));
      expect([g.x.shape, g.weight.shape]).toEqual([
        [2, 2, 0],
        [3, 0],
      ]);
      expect(list(g.bias)).toEqual([4, 4, 4]);
    });
  });
  test("without rows or outputs the result is empty, and gradients of parameters are 0", () => {
    scope(() => {
      expect(linear(ones([0, 3], { engine }), ones([4, 3], { engine })).shape).toEqual([0, 4]);
      expect(linear(ones([2, 3], { engine }), ones([0, 3], { engine })).shape).toEqual([2, 0]);
      const g = linearBackward(
        ones([2, 0, 3], { engine }),
        ones([4, 3], { engine }),
        ones([2, 0, 4], { engine }),
      );
      expect(g.x.shape).toEqual([2, 0, 3]);
      expect(list(g.weight)).toEqual(Array(12).fill(0));
      expect(list(g.bias)).toEqual([0, 0, 0, 0]);
      const h = linearBackward(ones([2, 3], { engine }), ones([0, 3], { engine }), ones([2, 0], { engine }));
      expect(list(h.x)).toEqual(Array(6).fill(0));
      expect([h.weight.shape, h.bias.shape]).toEqual([[0, 3], [0]]);
    });
  });
  test("a vector is one row", () => {
    scope(() => {
      const y = linear(
        tensor([1, 2], undefined, { engine }),
        tensor(
          [
            [3, 4],
            [5, 6],
            [7, 8],
          ],
          undefined,
          { engine },
        ),
      );
      expect(y.shape).toEqual([3]);
      expect(list(y)).toEqual([11, 17, 23]);
    });
  });
  test("one product by a merged weight gives the numbers of the three it merges", () => {
    scope(() => {
      const x = tensor([1, 2, 3, 4], [2, 2], { engine });
      const merged = tensor([1, 0, 0, 1, 1, 1], [3, 2], { engine });
      const all = linear(x, merged);
      for (let i = 0; i < 3; i++) {
        expect(list(linear(x, merged.slice(0, i, i + 1)))).toEqual(list(all.slice(1, i, i + 1)));
      }
    });
  });
});
