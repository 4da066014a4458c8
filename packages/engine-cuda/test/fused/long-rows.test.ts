/** Kernels over rows on the emulated device where the suites' rows are too short: a block to a row, sums of weights beyond registers. */
import {
  kvAppend,
  type QuantisedGroups,
  type QuantisedRows,
  rmsNormBackward,
  rope,
  scope,
  sealPages,
  tensor,
  type Tensor,
} from "@heed/tensor";
import { createRng, encodeRowOracle, type ViewRecipe, viewRecipe } from "@heed/testkit";
import { checkKvAppend, checkQuantisedAppend } from "@heed/testkit/conformance/kv-append";
import { checkNormRopeAppend, type NormRopeAppendProblem } from "@heed/testkit/conformance/norm-rope-append";
import { checkRmsNorm, checkRmsNormBackward, type RmsNormProblem } from "@heed/testkit/conformance/rms-norm";
import { elements, poisonedEngine, type Subject } from "@heed/testkit/conformance/subject";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import "../../src/index.ts";
import { emulatedMissing, ENGINE } from "../support.ts";

const DTYPES = ["float64", "float32", "float16", "bfloat16"] as const;
const kernel = (dtype: Subject["dtype"]): Subject => ({
  engine: poisonedEngine(ENGINE),
  dtype,
  fused: "require",
});
function dense(shape: readonly number[]): ViewRecipe {
  const zeros = shape.map(() => 0);
  return { shape, order: shape.map((_, i) => i), before: zeros, after: zeros, step: shape.map(() => 1) };
}
/** Rows that lie densely, or in any strides. */
const views = (shape: readonly number[]): fc.Arbitrary<ViewRecipe> =>
  fc.oneof(fc.constant(dense(shape)), viewRecipe(shape));
function normProblem(shape: readonly number[]): fc.Arbitrary<RmsNormProblem> {
  return fc.record({
    shape: fc.constant(shape),
    axis: fc.constant(shape.length - 1),
    isAxisNegative: fc.constant(false),
    eps: fc.constantFrom(1e-6, 0.25),
    unitOffset: fc.boolean(),
    weight: fc.constantFrom(undefined, "float32" as const, "bfloat16" as const),
    seed: fc.nat({ max: 0xffff }),
    x: views(shape),
    dOut: views(shape),
  });
}
/** Whole vectors and not; a warp and a block; in all dtypes some within the registers of either pass and some beyond; rows in turn. */
const SHAPES = [
  [100, 128],
  [140, 1032],
  [70, 4112],
  [3, 31, 24],
  [9, 1032],
  [9, 1041],
  [5, 4100],
  [2, 8200],
];
describe.skipIf(emulatedMissing !== undefined)("long rows on cuda-emulated", () => {
  for (const dtype of DTYPES)
    for (const shape of SHAPES) {
      test(`the norm of ${dtype} [${shape.join(", ")}] agrees with the oracle, forward and backward`, async () => {
        const property = fc.asyncProperty(normProblem(shape), async (p) => {
          await checkRmsNorm(kernel(dtype), p);
          await checkRmsNormBackward(kernel(dtype), { ...p, weight: p.weight ?? "float32" });
        });
        await fc.assert(property, { numRuns: 3 });
      });
    }
  for (const dtype of DTYPES)
    for (const D of [136, 137]) {
      test(`heads of ${D} normalised together keep their bits, ${dtype}`, async () => {
        const [Hq, Hkv, Dv, T] = [9, 2, 1100, 3];
        const problem = fc.record({
          ...constants({ Hq, Hkv, D, Dv, P: 2, pageSize: 2, slots: [3, -1, 0], pageDtype: dtype }),
          norm: fc.constantFrom(
            { q: "all", k: "head", dtype: "float32" } as const,
            { q: "all", k: "all", dtype: "float32" } as const,
            { q: "none", k: "all", dtype: "bfloat16" } as const,
          ),
          unitOffset: fc.boolean(),
          eps: fc.constant(1e-6),
          half: fc.constantFrom(undefined, 68, 37),
          pairing: fc.constantFrom("half" as const, "interleaved" as const),
          isMerged: fc.boolean(),
          views: fc.record({ q: views([T, Hq, D]), k: views([T, Hkv, D]), v: views([T, Hkv, Dv]) }),
          seed: fc.nat({ max: 0xffff }),
        }) as fc.Arbitrary<NormRopeAppendProblem>;
        const property = fc.asyncProperty(problem, (p) => checkNormRopeAppend(kernel(dtype), p));
        await fc.assert(property, { numRuns: 6 });
      });
    }
  for (const dtype of DTYPES) {
    test(`${dtype} rows of 1100 numbers go to pages as floats and as the oracle's codes`, async () => {
      for (const seed of [1, 2, 3]) {
        const slots = [4, -1, 0, 5];
        const p = { P: 3, pageSize: 2, Hkv: 2, D: 1100, Dv: 40, slots, pageDtype: "float16" as const, seed };
        await checkKvAppend(kernel(dtype), p);
        await checkQuantisedAppend(kernel(dtype), p, "int8");
        await checkQuantisedAppend(kernel(dtype), p, "float8e4m3");
      }
    });
  }
  for (const dtype of DTYPES) {
    test(`${dtype} rows of many tokens go to pages vector by vector`, async () => {
      const slots = Array.from({ length: 70 }, (_, t) => (t % 9 === 4 ? -1 : (t * 29) % 72));
      const p = { P: 9, pageSize: 8, Hkv: 8, D: 136, Dv: 128, slots, pageDtype: dtype, seed: 7 };
      await checkKvAppend(kernel(dtype), p);
    });
  }
});
function constants<T extends object>(values: T): { [K in keyof T]: fc.Arbitrary<T[K]> } {
  const entries = Object.entries(values).map(([key, value]) => [key, fc.constant(value)]);
  return Object.fromEntries(entries) as { [K in keyof T]: fc.Arbitrary<T[K]> };
}

describe.skipIf(emulatedMissing !== undefined)("the gradient of a weight", () => {
  const engine = poisonedEngine(ENGINE);
  const gradient = async (x: Float32Array, n: number): Promise<Float64Array> => {
    const weight = scope(() => {
      const rows = tensor(x, [x.length / n, n], { engine });
      const ones = tensor(new Float32Array(n).fill(1), [n], { engine });
      return rmsNormBackward(rows, ones, rows, { fused: "require" }).weight!;
    });
    const values = await elements(weight);
    weight[Symbol.dispose]();
    return values;
  };
  test("over no rows is zero", async () => {
    expect([...(await gradient(new Float32Array(0), 5))]).toEqual([0, 0, 0, 0, 0]);
  });
  for (const n of [24, 5000])
    test(`has the same bits every time, rows of ${n}`, async () => {
      const x = Float32Array.from(createRng(n).normalArray(60 * n));
      const first = await gradient(x, n);
      for (let i = 0; i < 3; i++) expect(await gradient(x, n)).toEqual(first);
    });
});
describe.skipIf(emulatedMissing !== undefined)("numbers halfway between two of a format", () => {
  const engine = poisonedEngine(ENGINE);
  /** Rows with a scale of 1: the largest number is the format's. */
  const TIES = {
    int8: [127, 0.5, 1.5, -2.5, 3.5, -126.5, 0.25, 125.5],
    float8e4m3: [
      448,
      17,
      19,
      -21,
      2 ** -10,
      3 * 2 ** -10,
      -5 * 2 ** -10,
      1.0625,
      1.1875,
      15.5,
      2 ** -6 - 2 ** -10,
    ],
  } as const;
  for (const format of ["int8", "float8e4m3"] as const)
    test(`become the even code of ${format}`, async () => {
      const row = Float64Array.from(TIES[format]);
      const n = row.length;
      const codes = tensor(new Uint8Array(n), [1, 1, 1, n], { engine, dtype: "uint8" });
      scope(() => {
        const pages = (c: Tensor<"uint8">): QuantisedRows => ({
          format,
          codes: c,
          scales: tensor(new Float32Array(1), [1, 1, 1], { engine }),
        });
        const x = tensor(Float32Array.from(row), [1, 1, n], { engine });
        const other = tensor(new Uint8Array(n), [1, 1, 1, n], { engine, dtype: "uint8" });
        const slots = tensor(new Int32Array(1), [1], { engine, dtype: "int32" });
        kvAppend(x, x, pages(codes), pages(other), slots, { fused: "require" });
      });
      expect([...(await elements(codes))]).toEqual([...encodeRowOracle(format, row).codes]);
      codes[Symbol.dispose]();
    });
  test("of float16 or bfloat16 are told from those beside them: float64 is rounded once", async () => {
    for (const [dtype, step] of [
      ["float16", 2 ** -10],
      ["bfloat16", 2 ** -7],
    ] as const) {
      const pages = tensor([[[[0, 0]]]], [1, 1, 1, 2], { engine, dtype });
      scope(() => {
        const near = Float64Array.of(1 + step / 2 + 2 ** -40, 1 + 1.5 * step - 2 ** -40);
        const x = tensor(near, [1, 1, 2], { engine, dtype: "float64" });
        const other = tensor([[[[0, 0]]]], [1, 1, 1, 2], { engine, dtype });
        kvAppend(x, x, pages, other, tensor(new Int32Array(1), [1], { engine, dtype: "int32" }), {
          fused: "require",
        });
      });
      expect([...(await elements(pages))]).toEqual([1 + step, 1 + step]);
      pages[Symbol.dispose]();
    }
  });
});
describe.skipIf(emulatedMissing !== undefined)("numbers that the host cannot see", () => {
  const engine = poisonedEngine(ENGINE);
  const floats = (shape: readonly number[], value: number): Tensor<"float32"> =>
    tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(value), shape, { engine });
  const integers = (...values: readonly number[]): Tensor<"int32"> =>
    tensor(Int32Array.from(values), [values.length], { engine });

  test("a slot outside of the pages is skipped", async () => {
    const pages = floats([2, 1, 2, 4], 0);
    scope(() => {
      const rows = floats([4, 1, 4], 1);
      kvAppend(rows, rows, pages, floats([2, 1, 2, 4], 0), integers(4, -2, 2 ** 30, 3), { fused: "require" });
    });
    expect([...(await elements(pages))]).toEqual([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
    pages[Symbol.dispose]();
  });
  test("a position outside of the tables gives NaN and what passes through", async () => {
    const turned = scope(() => {
      const table = floats([3, 1], 0.5);
      return rope(floats([3, 1, 3], 1), table, table, { positions: integers(2, 3, -1), fused: "require" });
    });
    expect([...(await elements(turned))]).toEqual([0, 1, 1, NaN, NaN, 1, NaN, NaN, 1]);
    turned[Symbol.dispose]();
  });
  test("pages to seal that are not there are skipped", async () => {
    const codes = scope(() => {
      const pages = (): QuantisedGroups => ({
        format: "int4",
        codes: tensor(new Uint8Array(2 * 2 * 16).fill(7), [2, 1, 2, 16], { engine, dtype: "uint8" }),
        scales: floats([2, 1, 1, 4], 0),
        zeros: floats([2, 1, 1, 4], 0),
        residual: floats([1, 1, 2, 4], 0),
      });
      const keys = pages();
      const values = { ...pages(), scales: floats([2, 1, 1, 2], 0), zeros: floats([2, 1, 1, 2], 0) };
      sealPages(keys, values, integers(0, 1, -1, 0), integers(2, 0, 0, 1), { fused: "require" });
      return keys.codes;
    });
    const after = [...(await elements(codes))];
    expect(after).toEqual([...Array<number>(32).fill(7), ...Array<number>(32).fill(0)]);
    codes[Symbol.dispose]();
  });
});
