import {
  ArgumentError,
  DeviceError,
  DisposedError,
  DTypeError,
  ones,
  rmsNorm,
  rmsNormBackward,
  scope,
  ShapeError,
  type Tensor,
  tensor,
  toFloat64,
  zeros,
} from "@heed/tensor";
import { assertClose } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { fakeEngine } from "../../engine/fake.ts";
import { engines } from "../../engines.ts";
import { refuses } from "../../misuse.ts";

const on = { engine: "portable" } as const;
const make = (...shape: number[]): Tensor<"float32"> => ones(shape, on);
const any = (x: unknown): never => x as never;
const x = make(2, 3, 4);
const disposed = make(4);
disposed[Symbol.dispose]();

refuses({
  "a scalar": [() => rmsNorm(make()), ShapeError, "axis"],
  "an axis outside the rank": [() => rmsNorm(x, undefined, { axis: 3 }), ShapeError, "axis"],
  "a fractional axis": [() => rmsNorm(x, undefined, { axis: 0.5 }), ShapeError, "axis"],
  "a weight of another length": [() => rmsNorm(x, make(3)), ShapeError, "weight must be [4]"],
  "a weight that only broadcasts": [() => rmsNorm(x, make(1)), ShapeError, "weight must be [4]"],
  "a flat weight for two axes": [
    () => rmsNorm(x, make(12), { axis: 1 }),
    ShapeError,
    "weight must be [3, 4]",
  ],
  "an integer weight": [() => rmsNorm(x, ones([4], { ...on, dtype: "int32" })), DTypeError, "float dtype"],
  integers: [() => rmsNorm(any(ones([4], { ...on, dtype: "int32" }))), DTypeError, "float dtype"],
  "nothing to normalise over": [() => rmsNorm(make(2, 0)), ShapeError, "nothing to normalise"],
  "a negative eps": [() => rmsNorm(x, undefined, { eps: -1e-6 }), ArgumentError, "eps"],
  "an eps of NaN": [() => rmsNorm(x, undefined, { eps: NaN }), ArgumentError, "eps"],
  "a disposed weight": [() => rmsNorm(x, disposed), DisposedError, "disposed"],
  "a weight on another engine": [
    () => rmsNorm(x, ones([4], { engine: fakeEngine() })),
    DeviceError,
    "different engines",
  ],
  "an upstream gradient of another shape": [
    () => rmsNormBackward(x, undefined, make(2, 3)),
    ShapeError,
    "x's shape",
  ],
  "an upstream gradient of another dtype": [
    () => rmsNormBackward(x, undefined, ones([2, 3, 4], { ...on, dtype: "float16" })),
    DTypeError,
    "one dtype",
  ],
});
describe.each([...engines])("rmsNorm on %s", (engine) => {
  const list = (t: Tensor): number[] => [...toFloat64(t)];

  test("known answer: [1, 2, 3] over the whole tensor with eps 1e-5", () => {
    const got = scope(() =>
      list(
        rmsNorm(tensor([1, 2, 3], [3, 1], { engine, dtype: "float64" }), undefined, { eps: 1e-5, axis: 0 }),
      ),
    );
    assertClose(got, [0.462909554, 0.925819108, 1.388728662], { abs: 5e-10 });
  });
  test("zeros stay zero, with eps 0 they are NaN as the formula says", () => {
    scope(() => {
      expect(list(rmsNorm(zeros([2], { engine })))).toEqual([0, 0]);
      expect(list(rmsNorm(zeros([2], { engine }), undefined, { eps: 0 }))).toEqual([NaN, NaN]);
    });
  });
  test("float16 squares do not overflow: statistics are float32", () => {
    scope(() =>
      expect(list(rmsNorm(tensor([60000, 60000], undefined, { engine, dtype: "float16" })))).toEqual([1, 1]),
    );
  });
  test("no rows give an empty result, an empty gradient and a zero weight gradient", () => {
    scope(() => {
      const none = ones([0, 4], { engine });
      expect(rmsNorm(none, ones([4], { engine })).shape).toEqual([0, 4]);
      const g = rmsNormBackward(none, ones([4], { engine }), none);
      expect(g.x.shape).toEqual([0, 4]);
      expect(list(g.weight!)).toEqual([0, 0, 0, 0]);
    });
  });
  test("a gradient without a weight has none for it", () => {
    scope(() =>
      expect(
        rmsNormBackward(ones([2, 4], { engine }), undefined, ones([2, 4], { engine })).weight,
      ).toBeUndefined(),
    );
  });
});
