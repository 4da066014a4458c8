import type { BinaryOp, DType, Engine, Tensor, UnaryOp } from "@heed/tensor";
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

interface Case {
  readonly dtypes: readonly DType[];
  /** Bool results; the operands' dtype otherwise. */
  readonly gives?: "bool";
  /** Error allowed, in units of the last place of the dtype; 0 where IEEE 754 fixes the result. */
  readonly ulps: number;
}
interface UnaryCase extends Case {
  readonly f: (x: number) => number;
  readonly int64?: (x: bigint) => bigint;
}
interface BinaryCase extends Case {
  readonly f: (a: number, b: number) => number;
  readonly int64?: (a: bigint, b: bigint) => Element;
}
const abs64 = (x: bigint): bigint => (x < 0n ? -x : x);
const UNARY: Readonly<Record<UnaryOp, UnaryCase>> = {
  neg: { dtypes: NUMBERS, ulps: 0, f: (x) => -x, int64: (x) => -x },
  abs: { dtypes: NUMBERS, ulps: 0, f: (x) => (x < 0 ? -x : x), int64: abs64 },
  square: { dtypes: NUMBERS, ulps: 0, f: (x) => x * x, int64: (x) => x * x },
  exp: { dtypes: FLOATS, ulps: 4, f: (x) => Math.exp(x) },
  log: { dtypes: FLOATS, ulps: 4, f: (x) => Math.log(x) },
  sqrt: { dtypes: FLOATS, ulps: 0, f: (x) => Math.sqrt(x) },
  rsqrt: { dtypes: FLOATS, ulps: 2, f: (x) => 1 / Math.sqrt(x) },
  reciprocal: { dtypes: FLOATS, ulps: 0, f: (x) => 1 / x },
  tanh: { dtypes: FLOATS, ulps: 4, f: (x) => Math.tanh(x) },
  sigmoid: { dtypes: FLOATS, ulps: 4, f: (x) => 1 / (1 + Math.exp(-x)) },
  silu: { dtypes: FLOATS, ulps: 6, f: (x) => x / (1 + Math.exp(-x)) },
  isFinite: { dtypes: FLOATS, ulps: 0, gives: "bool", f: (x) => Number(x - x === 0) },
  not: { dtypes: ["bool"], ulps: 0, f: (x) => 1 - x },
};
const larger = (a: number, b: number): number => (a !== a || b !== b ? NaN : a > b ? a : b);
/** C's pow, where 1 ** NaN is 1. */
const power = (a: number, b: number): number =>
  a === 1 || (a === -1 && b - b !== 0 && b === b) ? 1 : a ** b;
const BINARY: Readonly<Record<BinaryOp, BinaryCase>> = {
  add: { dtypes: NUMBERS, ulps: 0, f: (a, b) => a + b, int64: (a, b) => a + b },
  sub: { dtypes: NUMBERS, ulps: 0, f: (a, b) => a - b, int64: (a, b) => a - b },
  mul: { dtypes: NUMBERS, ulps: 0, f: (a, b) => a * b, int64: (a, b) => a * b },
  div: { dtypes: FLOATS, ulps: 0, f: (a, b) => a / b },
  max: { dtypes: NUMBERS, ulps: 0, f: larger, int64: (a, b) => (a > b ? a : b) },
  min: { dtypes: NUMBERS, ulps: 0, f: (a, b) => -larger(-a, -b), int64: (a, b) => (a < b ? a : b) },
  pow: { dtypes: FLOATS, ulps: 8, f: power },
  equal: {
    dtypes: NUMBERS,
    ulps: 0,
    gives: "bool",
    f: (a, b) => Number(a === b),
    int64: (a, b) => Number(a === b),
  },
  less: {
    dtypes: NUMBERS,
    ulps: 0,
    gives: "bool",
    f: (a, b) => Number(a < b),
    int64: (a, b) => Number(a < b),
  },
  lessEqual: {
    dtypes: NUMBERS,
    ulps: 0,
    gives: "bool",
    f: (a, b) => Number(a <= b),
    int64: (a, b) => Number(a <= b),
  },
  and: { dtypes: ["bool"], ulps: 0, f: (a, b) => Math.min(a, b) },
  or: { dtypes: ["bool"], ulps: 0, f: (a, b) => Math.max(a, b) },
  maskZero: { dtypes: FLOATS, ulps: 0, f: (a, keep) => (keep === 1 ? a : 0) },
  maskNegInf: { dtypes: FLOATS, ulps: 0, f: (a, keep) => (keep === 1 ? a : -Infinity) },
};
/** Exact integer results wrapped to int32, as the products of two need more than a double's 53 bits. */
function throughInt64(dtype: DType, f: (...x: bigint[]) => Element, x: readonly Element[]): Element {
  const exact = f(...x.map(BigInt));
  return typeof exact === "bigint" && dtype === "int32" ? Number(BigInt.asIntN(32, exact)) : exact;
}
function expectation(c: UnaryCase | BinaryCase, dtype: DType, x: readonly Element[]): Element {
  const gives = c.gives ?? dtype;
  if (c.int64 !== undefined && (dtype === "int32" || dtype === "int64")) {
    return rounded(gives, throughInt64(dtype, c.int64 as (...x: bigint[]) => Element, x));
  }
  return rounded(gives, (c.f as (...x: number[]) => number)(...(x as number[])));
}
function tolerances(
  dtype: DType,
  ulps: number,
  expected: readonly Element[],
): ((i: number) => number) | undefined {
  const { ulp, tiny } = PRECISION[dtype];
  // A 16-bit float is computed in float32 and rounded once: next to a tie, one unit of its own.
  const units = ulps === 0 ? 0 : dtype === "float16" || dtype === "bfloat16" ? 1 : ulps;
  return units === 0 ? undefined : (i) => units * ulp * Math.abs(Number(expected[i])) + tiny;
}
/** Operands of one shape, each with its own layout, and a layout for the result. */
function problems(
  operands: readonly DType[],
): fc.Arbitrary<{ values: Element[][]; at: Layout[]; out: Layout }> {
  return shapes(0, 4).chain((shape) =>
    fc.record({
      values: fc.tuple(...operands.map((d) => elementsOf(d, shape))),
      at: fc.tuple(...operands.map(() => layouts(shape, true))),
      out: layouts(shape, false),
    }),
  );
}
async function check(
  engine: Engine,
  c: UnaryCase | BinaryCase,
  operands: readonly DType[],
  run: (x: Tensor[], out: Tensor) => void,
): Promise<void> {
  const dtype = operands[0]!;
  const gives = c.gives ?? dtype;
  await fc.assert(
    fc.asyncProperty(problems(operands), async ({ values, at, out: outAt }) => {
      const x = values.map((v, i) => place(engine, operands[i]!, at[i]!, v));
      using out = place(engine, gives, outAt);
      run(x, out);
      const seen = await Promise.all(x.map(elements));
      const expected = seen[0]!.map((_, i) =>
        expectation(
          c,
          dtype,
          seen.map((v) => v[i]!),
        ),
      );
      await expectElements(out, expected, tolerances(gives, c.ulps, expected));
      for (const t of x) t[Symbol.dispose]();
    }),
    { numRuns: 40 },
  );
}
export function elementwiseSuite(engine: Engine): void {
  describe("elementwise", () => {
    for (const [op, c] of Object.entries(UNARY) as [UnaryOp, UnaryCase][]) {
      test.each([...c.dtypes])(`${op} of %s`, async (dtype) => {
        await check(engine, c, [dtype], ([x], out) => engine.unary(op, x!, out));
      });
    }
    for (const [op, c] of Object.entries(BINARY) as [BinaryOp, BinaryCase][]) {
      const second = (dtype: DType): DType => (op.startsWith("mask") ? "bool" : dtype);
      test.each([...c.dtypes])(`${op} of %s`, async (dtype) => {
        await check(engine, c, [dtype, second(dtype)], ([a, b], out) => engine.binary(op, a!, b!, out));
      });
    }
    test.each([...NUMBERS])("add in place, %s", async (dtype) => {
      const layout = { shape: [3, 67], strides: [-67, 1], offset: 134, length: 201 };
      const numbers = Array.from({ length: 201 }, (_, i) => (dtype === "int64" ? BigInt(i) : i % 32));
      using a = place(engine, dtype, layout, numbers);
      engine.binary("add", a, a, a);
      await expectElements(
        a,
        numbers.map((x) => (typeof x === "bigint" ? 2n * x : 2 * x)),
      );
    });
  });
}
