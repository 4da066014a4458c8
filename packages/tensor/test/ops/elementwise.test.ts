import {
  add,
  binary,
  type BinaryOp,
  type DType,
  DTypeError,
  div,
  maskNegInf,
  maskZero,
  maximum,
  minimum,
  ones,
  pow,
  scope,
  ShapeError,
  sigmoid,
  silu,
  sub,
  tensor,
  type Tensor,
  toFloat64,
  unary,
  type UnaryOp,
  zeros,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { assertClose, compare, floatDTypes, roundArray, roundTo, unitRoundoff } from "@heed/testkit";
import { engines } from "../engines.ts";

const SPECIAL = [0, -0, 1, -1, 0.5, -2.25, 3, 80, -80, Infinity, -Infinity, NaN];
const UNARY: Readonly<Record<Exclude<UnaryOp, "not">, (x: number) => number>> = {
  neg: (x) => -x,
  abs: Math.abs,
  exp: Math.exp,
  log: Math.log,
  sqrt: Math.sqrt,
  rsqrt: (x) => 1 / Math.sqrt(x),
  square: (x) => x * x,
  reciprocal: (x) => 1 / x,
  tanh: Math.tanh,
  sigmoid: (x) => 1 / (1 + Math.exp(-x)),
  silu: (x) => x / (1 + Math.exp(-x)),
  isFinite: (x) => +Number.isFinite(x),
};
/**
 * Unit roundoffs an engine may be off: none where IEEE 754 asks for the nearest value, 2 ulp (4) for exp, log and tanh, and a rounding
 * for each further step of a formula.
 */
const ROUNDINGS: Readonly<Record<keyof typeof UNARY, number>> = {
  neg: 0,
  abs: 0,
  exp: 4,
  log: 4,
  sqrt: 0,
  rsqrt: 2,
  square: 0,
  reciprocal: 0,
  tanh: 4,
  sigmoid: 6,
  silu: 7,
  isFinite: 0,
};
const ARITHMETIC: Readonly<Partial<Record<BinaryOp, (a: number, b: number) => number>>> = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  div: (a, b) => a / b,
  max: Math.max,
  min: Math.min,
  equal: (a, b) => +(a === b),
  less: (a, b) => +(a < b),
  lessEqual: (a, b) => +(a <= b),
};
/** Two shapes that broadcast. */
const shapes = fc
  .array(fc.tuple(fc.integer({ min: 1, max: 4 }), fc.constantFrom("both", "a", "b")), { maxLength: 4 })
  .chain((axes) => fc.record({ axes: fc.constant(axes), cut: fc.nat({ max: axes.length }) }))
  .map(({ axes, cut }) => ({
    out: axes.map(([n]) => n),
    a: axes.map(([n, who]) => (who === "b" ? 1 : n)),
    b: axes.slice(cut).map(([n, who]) => (who === "a" ? 1 : n)),
    leading: axes.slice(0, cut).every(([n, who]) => who !== "b" || n === 1),
  }))
  .filter(({ leading }) => leading);

describe.each([...engines])("elementwise on %s", (engine) => {
  const from = <D extends DType = "float32">(values: number[], dtype?: D): Tensor<D> =>
    tensor(values, undefined, { engine, dtype: (dtype ?? "float32") as D });
  const list = (t: Tensor): number[] => [...toFloat64(t)];

  for (const op of Object.keys(UNARY) as (keyof typeof UNARY)[]) {
    test(`${op} agrees with its formula on ordinary and special values, in every float dtype`, () => {
      for (const dtype of floatDTypes) {
        const x = roundArray(dtype, SPECIAL);
        const got = scope(() => list(unary(op, from([...x], dtype))));
        const exact = Float64Array.from(x, UNARY[op]);
        const expected = op === "isFinite" ? exact : roundArray(dtype, exact);
        for (let i = 0; i < got.length; i++) {
          const abs =
            ROUNDINGS[op] * unitRoundoff[dtype] * Math.abs(expected[i]!) +
            (dtype === "float64" ? 5e-324 : 2 ** -149);
          assertClose([got[i]!], [expected[i]!], {
            abs: Number.isFinite(abs) ? abs : 0,
            name: `${op}(${x[i]}) ${dtype}`,
          });
        }
      }
    });
  }
  for (const op of Object.keys(ARITHMETIC) as BinaryOp[]) {
    test(`${op} broadcasts by NumPy's rule and rounds once`, () => {
      fc.assert(
        fc.property(shapes, fc.constantFrom(...floatDTypes), fc.nat(), ({ a, b, out }, dtype, seed) => {
          const size = (s: readonly number[]): number => s.reduce((x, y) => x * y, 1);
          // Adding 0 leaves no -0: which zero is the larger is not said.
          const values = (n: number, k: number): Float64Array =>
            Float64Array.from({ length: n }, (_, i) =>
              roundTo(dtype, Math.round(Math.sin(seed + k + i) * 8) / 4 + 0),
            );
          const [x, y] = [values(size(a), 0), values(size(b), 7)];
          const got = scope(() => {
            const t = binary(op, tensor([...x], a, { engine, dtype }), tensor([...y], b, { engine, dtype }));
            expect(t.shape).toEqual(out);
            return list(t);
          });
          const place = (flat: number, shape: readonly number[]): number => {
            let at = 0;
            let step = 1;
            for (let axis = out.length - 1; axis >= 0; axis--) {
              const i = flat % out[axis]!;
              flat = Math.floor(flat / out[axis]!);
              const n = shape[axis - out.length + shape.length];
              if (n === undefined) continue;
              if (n > 1) at += i * step;
              step *= n;
            }
            return at;
          };
          const exact = Float64Array.from({ length: size(out) }, (_, i) =>
            ARITHMETIC[op]!(x[place(i, a)]!, y[place(i, b)]!),
          );
          expect(got).toEqual([...roundArray(dtype, exact)]);
        }),
        { numRuns: 40 },
      );
    });
  }
  test("pow agrees with its formula", () => {
    const [x, y] = [
      [2, 3, 0.5, 4, 0],
      [3, 0, 2, -0.5, 2],
    ];
    const got = scope(() => list(pow(from(x, "float64"), from(y, "float64"))));
    assertClose(got, [8, 1, 0.25, 0.5, 0], { rel: 4 * unitRoundoff.float64 });
  });
  test("a mask selects: NaN and infinities that are not selected are gone", () => {
    for (const dtype of floatDTypes) {
      scope(() => {
        const x = from([1, NaN, -Infinity, 2, NaN], dtype);
        const mask = from([1, 0, 0, 0, 1], "bool");
        expect(list(maskZero(x, mask))).toEqual([1, 0, 0, 0, NaN]);
        expect(list(maskNegInf(x, mask))).toEqual([1, -Infinity, -Infinity, -Infinity, NaN]);
      });
    }
  });
  test("max and min carry a NaN of either side through", () => {
    scope(() => {
      const [a, b] = [from([NaN, 1, 2]), from([1, NaN, 3])];
      expect(list(maximum(a, b))).toEqual([NaN, NaN, 3]);
      expect(list(minimum(a, b))).toEqual([NaN, NaN, 2]);
    });
  });
  test("sigmoid and silu neither overflow nor turn NaN far out", () => {
    scope(() => {
      const x = from([-1e4, 1e4, -Infinity, Infinity]);
      expect(list(sigmoid(x))).toEqual([0, 1, 0, 1]);
      expect(list(silu(from([-1e4, 1e4])))).toEqual([-0, 1e4]);
    });
  });
  test("logic works on bools", () => {
    scope(() => {
      const [a, b] = [from([0, 0, 1, 1], "bool"), from([0, 1, 0, 1], "bool")];
      expect(list(binary("and", a, b))).toEqual([0, 0, 0, 1]);
      expect(list(binary("or", a, b))).toEqual([0, 1, 1, 1]);
      expect(list(unary("not", a))).toEqual([1, 1, 0, 0]);
    });
  });
  test("integers add, compare and wrap as two's complement", () => {
    scope(() => {
      for (const dtype of ["int32", "int64"] as const) {
        expect(list(sub(from([5, -7], dtype), from([8, -7], dtype)))).toEqual([-3, 0]);
        expect(list(binary("less", from([1, 2], dtype), 2))).toEqual([1, 0]);
      }
      expect(list(add(from([2 ** 31 - 1], "int32"), 1))).toEqual([-(2 ** 31)]);
      expect([...add(from([0], "int64"), 2 ** 53 - 1).data]).toEqual([2n ** 53n - 1n]);
    });
  });
  test("a number stands for a tensor of the operand's dtype", () => {
    scope(() => {
      expect(list(add(from([1], "bfloat16"), 2 ** -9))).toEqual([1]); // half the gap between 1 and the next bfloat16: tie to even
      expect(list(div(from([1, 2]), 4))).toEqual([0.25, 0.5]);
    });
  });
  test("out may be an operand, and nothing else is allocated for the result", () => {
    scope(() => {
      const a = from([1, 2]);
      expect(binary("mul", a, 3, a)).toBe(a);
      expect(list(a)).toEqual([3, 6]);
      expect(() => binary("less", a, 3, a)).toThrow(DTypeError);
      expect(() => binary("add", a, from([1, 2, 3]), a)).toThrow(ShapeError);
      expect(() => binary("add", ones([2, 2], { engine }), 1, a)).toThrow(ShapeError);
    });
  });
  test("empty tensors give empty tensors", () => {
    scope(() => {
      const none = zeros([0, 3], { engine });
      expect(add(none, 1).shape).toEqual([0, 3]);
      expect(add(none, zeros([1, 3], { engine })).shape).toEqual([0, 3]);
      expect(unary("exp", none).shape).toEqual([0, 3]);
    });
  });
  test("shapes that do not broadcast and dtypes that do not fit are refused in words", () => {
    scope(() => {
      const a = ones([2, 3], { engine });
      expect(() => add(a, ones([2], { engine }))).toThrow("[2, 3] and [2]");
      expect(() => add(a, ones([4, 3], { engine }))).toThrow(ShapeError);
      const whole = ones([2], { engine, dtype: "int32" }) as Tensor as Tensor<"float32">;
      const byte = ones([2], { engine, dtype: "uint8" });
      const flag = ones([2], { engine, dtype: "bool" });
      expect(() => unary("exp", whole)).toThrow(DTypeError);
      expect(() => unary("not", whole)).toThrow(DTypeError);
      expect(() => add(byte, byte)).toThrow(DTypeError);
      expect(() => add(flag, flag)).toThrow(DTypeError);
      expect(() => binary("and", whole, flag)).toThrow(DTypeError);
      expect(() => maskZero(whole, flag)).toThrow(DTypeError);
    });
  });
});
test("the comparator sees a mask that multiplies instead of selecting", () => {
  expect(compare([NaN], [0]).mismatch?.kind).toBe("nan");
});
