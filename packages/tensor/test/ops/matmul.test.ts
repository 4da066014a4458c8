import {
  cast,
  DTypeError,
  full,
  matmul,
  ones,
  randn,
  scope,
  ShapeError,
  tensor,
  type Tensor,
  toFloat64,
  zeros,
} from "@heed/tensor";
import {
  assertClose,
  createRng,
  embedInView,
  type FloatDType,
  floatDTypes,
  roundArray,
  toleranceFor,
  viewLayout,
  viewRecipe,
} from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { engines } from "../engines.ts";
import { place } from "../place.ts";

/** Leading axes of a and b that broadcast to `lead`. */
const problem = fc
  .record({
    lead: fc.array(fc.integer({ min: 1, max: 3 }), { maxLength: 2 }),
    thinA: fc.boolean(),
    thinB: fc.boolean(),
    M: fc.integer({ min: 1, max: 9 }),
    K: fc.integer({ min: 1, max: 9 }),
    N: fc.integer({ min: 1, max: 9 }),
    alpha: fc.constantFrom(1, -0.5, 3),
    beta: fc.constantFrom(undefined, 0, 1, 0.25),
    seed: fc.nat({ max: 1000 }),
  })
  .chain((p) => {
    const leadA = p.thinA ? p.lead.map(() => 1) : p.lead;
    const leadB = p.thinB ? [] : p.lead;
    const lead = p.thinA && p.thinB ? leadA : p.lead;
    return fc.record({
      ...Object.fromEntries(Object.entries({ ...p, lead }).map(([k, v]) => [k, fc.constant(v)])),
      a: viewRecipe([...leadA, p.M, p.K]),
      b: viewRecipe([...leadB, p.K, p.N]),
      out: viewRecipe([...lead, p.M, p.N]),
    } as { [K in keyof typeof p]: fc.Arbitrary<(typeof p)[K]> } & Record<
      "a" | "b" | "out",
      ReturnType<typeof viewRecipe>
    >);
  });

describe.each([...engines])("matmul on %s", (engine) => {
  const pairs = [
    ...floatDTypes.map((dtype) => [dtype, dtype] as const),
    ["float32", "float16"] as const,
    ["float32", "bfloat16"] as const,
  ];
  for (const [dtype, right] of pairs) {
    test(`${dtype} by ${right}: alpha a b + beta out agrees with straight loops, for batches, broadcasts and strides`, () => {
      fc.assert(
        fc.property(problem, ({ lead, M, K, N, alpha, beta, seed, a, b, out, thinA, thinB }) => {
          const rng = createRng(seed);
          const draw = (shape: readonly number[], as: FloatDType = dtype): Float64Array =>
            roundArray(as, rng.normalArray(shape.reduce((x, n) => x * n, 1)));
          const [x, y, z] = [draw(a.shape), draw(b.shape, right), draw(out.shape)];
          const batch = lead.reduce((p, n) => p * n, 1);
          const expected = new Float64Array(batch * M * N);
          for (let i = 0; i < batch; i++)
            for (let m = 0; m < M; m++)
              for (let n = 0; n < N; n++) {
                let s = 0;
                for (let k = 0; k < K; k++)
                  s += x[((thinA ? 0 : i) * M + m) * K + k]! * y[((thinB ? 0 : i) * K + k) * N + n]!;
                const at = (i * M + m) * N + n;
                expected[at] = alpha * s + (beta === undefined ? 0 : beta * z[at]!);
              }
          const got = scope(() => {
            const view = (r: typeof a, data: Float64Array, as: FloatDType = dtype): Tensor<"float32"> => {
              const { strides, offset } = viewLayout(r);
              return place(
                engine,
                as,
                embedInView(r, data),
                r.shape,
                strides,
                offset,
              ) as Tensor as Tensor<"float32">;
            };
            const target = beta === undefined ? undefined : view(out, z);
            const c = matmul(view(a, x), view(b, y, right), {
              alpha,
              ...(beta !== undefined && { beta }),
              ...(target && { out: target }),
            });
            if (target !== undefined) expect(c).toBe(target);
            expect(c.shape).toEqual([...lead, M, N]);
            return toFloat64(c);
          });
          const { storage, accumulation } = toleranceFor(dtype);
          const rel = storage + 2 * K * accumulation;
          assertClose(got, expected, { rel, abs: rel * 9 * Math.abs(alpha), name: dtype });
        }),
        { numRuns: 60 },
      );
    });
  }
  test("beta 0 does not read out, NaN included", () => {
    scope(() => {
      const out = full([2, 2], NaN, { engine });
      matmul(ones([2, 3], { engine }), ones([3, 2], { engine }), { out });
      expect([...out.data]).toEqual([3, 3, 3, 3]);
    });
  });
  test("a product over no elements is beta out, and 0 by default", () => {
    scope(() => {
      const [a, b] = [zeros([2, 0], { engine }), zeros([0, 2], { engine })];
      expect([...toFloat64(matmul(a, b))]).toEqual([0, 0, 0, 0]);
      const out = full([2, 2], 3, { engine });
      expect([...toFloat64(matmul(a, b, { out, beta: 2 }))]).toEqual([6, 6, 6, 6]);
      const nan = full([2, 2], NaN, { engine });
      expect([...toFloat64(matmul(a, b, { out: nan }))]).toEqual([0, 0, 0, 0]);
    });
  });
  test("16-bit weights head by head give what they give as float32, in a view of the result too", () => {
    scope(() => {
      const [T, H, K, N] = [3, 4, 20, 5];
      const x = randn([T, H, K], { engine, seed: 1 });
      for (const dtype of ["float16", "bfloat16"] as const) {
        const weight = cast(randn([H, N, K], { engine, seed: 2 }), dtype);
        const out = zeros([T, H, N + 2], { engine });
        const part = out.slice(-1, 0, N);
        matmul(x.transpose(0, 1), weight.transpose(), { out: part.transpose(0, 1) });
        const wide = matmul(x.transpose(0, 1), cast(weight, "float32").transpose()).transpose(0, 1);
        expect(toFloat64(part)).toEqual(toFloat64(wide));
        expect([...toFloat64(out.slice(-1, N))]).toEqual(new Array<number>(T * H * 2).fill(0));
      }
    });
  });
  test("empty results are empty", () => {
    scope(() => {
      expect(matmul(zeros([0, 3], { engine }), ones([3, 2], { engine })).shape).toEqual([0, 2]);
      expect(matmul(zeros([0, 2, 3], { engine }), ones([3, 2], { engine })).shape).toEqual([0, 2, 2]);
    });
  });
  test("shapes and dtypes that do not fit are refused in words", () => {
    scope(() => {
      const a = ones([2, 3], { engine });
      expect(() => matmul(a, ones([2, 3], { engine }))).toThrow("float32[2, 3] and float32[2, 3]");
      expect(() => matmul(ones([3], { engine }), a)).toThrow(ShapeError);
      expect(() => matmul(ones([2, 2, 3], { engine }), ones([3, 3, 2], { engine }))).toThrow(ShapeError);
      expect(() => matmul(a, ones([3, 2], { engine }), { out: ones([3, 2], { engine }) })).toThrow(
        ShapeError,
      );
      const half = ones([3, 2], { engine, dtype: "float16" }) as Tensor as Tensor<"float32">;
      expect(() => matmul(half, a)).toThrow(DTypeError);
      expect(() => matmul(a, half, { out: ones([2, 2], { engine, dtype: "float16" }) })).toThrow(DTypeError);
      const double = ones([2, 3], { engine, dtype: "float64" });
      expect(() => matmul(double, half as Tensor as Tensor<"float64">)).toThrow(DTypeError);
      const bytes = ones([3, 2], { engine, dtype: "uint8" }) as Tensor as Tensor<"float32">;
      expect(() => matmul(a, bytes)).toThrow(DTypeError);
      const whole = tensor([[1]], undefined, { engine, dtype: "int32" }) as Tensor as Tensor<"float32">;
      expect(() => matmul(whole, whole)).toThrow(DTypeError);
    });
  });
});
