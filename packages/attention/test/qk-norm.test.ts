import "@heed/engine-cpu";
import { ArgumentError, getEngine, memoryUsage, scope, ShapeError, toFloat64, zeros } from "@heed/tensor";
import {
  assertClose,
  checkGradient,
  createRng,
  dotProduct,
  rmsNormBackwardOracle,
  rmsNormOracle,
} from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { qkNorm, type QkNormOptions, qkNormVjp } from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";

interface Case {
  readonly q: readonly number[];
  readonly k: readonly number[];
  readonly over: "head" | "tensor" | undefined;
  readonly eps: number | undefined;
  readonly seed: number;
}
const axis = fc.integer({ min: 1, max: 4 });
const cases = fc.record({
  q: fc.array(axis, { minLength: 1, maxLength: 4 }),
  k: fc.array(axis, { minLength: 1, maxLength: 4 }),
  over: fc.constantFrom("head" as const, "tensor" as const, undefined),
  eps: fc.constantFrom(1e-5, 0.5, undefined),
  seed: fc.nat({ max: 0xffff }),
});
const sizeOf = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);
const normal = (seed: number, shape: readonly number[]): Float64Array =>
  createRng(seed).normalArray(sizeOf(shape));
function oracle(x: Float64Array, shape: readonly number[], { over, eps }: QkNormOptions): Float64Array {
  return rmsNormOracle(x, { n: over === "tensor" ? x.length : shape.at(-1)!, eps: eps ?? 1e-6 }).y;
}

describe.each(engines)("qkNorm on %s", (name) => {
  const engine = getEngine(name);

  test("gives the known values over the whole tensor, and over one row", () => {
    scope(() => {
      for (const over of ["tensor", "head"] as const) {
        const x = upload(Float64Array.of(1, 2, 3), [3], "float64", engine);
        const { q, k } = qkNorm(x, x, { eps: 1e-5, over });
        for (const t of [q, k])
          assertClose(toFloat64(t), [0.462909554, 0.925819108, 1.388728662], { abs: 1e-9 });
      }
    });
  });
  test("over the whole tensor is one statistic for all rows; over a head each row has its own", () => {
    scope(() => {
      const x = upload(Float64Array.of(3, 4, 0, 0), [2, 2], "float64", engine);
      const rows = (over: "head" | "tensor") => [...toFloat64(qkNorm(x, x, { over, eps: 0 }).q)];
      assertClose(rows("tensor"), [1.2, 1.6, 0, 0], { rel: 1e-15 });
      assertClose(rows("head").slice(0, 2), [3 / Math.sqrt(12.5), 4 / Math.sqrt(12.5)], { rel: 1e-15 });
    });
  });
  test("and its gradients are the oracle's, for any shapes of q and k", () => {
    fc.assert(
      fc.property(cases, ({ q, k, seed, ...options }: Case) =>
        scope(() => {
          const values = { q: normal(seed, q), k: normal(seed + 1, k) };
          const upstream = { q: normal(seed + 2, q), k: normal(seed + 3, k) };
          const shapes = { q, k };
          const at = (from: typeof values, key: "q" | "k") =>
            upload(from[key], shapes[key], "float64", engine);
          const pass = qkNormVjp(at(values, "q"), at(values, "k"), options);
          const alone = qkNorm(at(values, "q"), at(values, "k"), options);
          const gradients = pass.backward(at(upstream, "q"), at(upstream, "k"));
          for (const key of ["q", "k"] as const) {
            const shape = shapes[key];
            assertClose(toFloat64(pass[key]), oracle(values[key], shape, options), { rel: 1e-14 });
            expect(toFloat64(alone[key])).toEqual(toFloat64(pass[key]));
            expect(gradients[key].shape).toEqual([...shape]);
            const n = options.over === "tensor" ? sizeOf(shape) : shape.at(-1)!;
            const eps = options.eps ?? 1e-6;
            const { dx } = rmsNormBackwardOracle(values[key], upstream[key], { n, eps });
            assertClose(toFloat64(gradients[key]), dx, { rel: 1e-12, abs: 1e-12, name: key });
            if (eps < 0.5) continue; // near zero the function bends within sqrt(eps), less than any step
            const f = (x: Float64Array) => dotProduct(upstream[key], oracle(x, shape, options));
            checkGradient(f, values[key], toFloat64(gradients[key]), { name: key });
          }
        }),
      ),
      { numRuns: 60 },
    );
  });
  test("keeps the dtype, and rounds a 16-bit result once", () => {
    for (const [dtype, unit] of [
      ["float32", 2 ** -22],
      ["float16", 2 ** -11],
      ["bfloat16", 2 ** -8],
    ] as const) {
      scope(() => {
        const shape = [2, 5, 3, 8];
        const x = upload(normal(1, shape), shape, dtype, engine);
        const pass = qkNormVjp(x, x, { over: "tensor" });
        expect([pass.q.dtype, pass.backward(x, x).k.dtype]).toEqual([dtype, dtype]);
        assertClose(toFloat64(pass.q), oracle(toFloat64(x), shape, { over: "tensor" }), { rel: unit });
      });
    }
  });
  test("two passes before one backward, and a pass after its operands, do not disturb one another", () => {
    scope(() => {
      const at = (seed: number) => upload(normal(seed, [3, 4]), [3, 4], "float64", engine);
      const expected = toFloat64(qkNormVjp(at(1), at(2)).backward(at(3), at(4)).k);
      const k = at(2);
      const first = qkNormVjp(at(1), k);
      k[Symbol.dispose]();
      const second = qkNormVjp(at(5), at(6), { over: "tensor" });
      expect(toFloat64(first.backward(at(3), at(4)).k)).toEqual(expected);
      second.backward(at(3), at(4));
      expect(toFloat64(first.backward(at(3), at(4)).k)).toEqual(expected);
      first[Symbol.dispose]();
      first[Symbol.dispose]();
      expect(first.q.disposed).toBe(false);
      expect(() => first.backward(at(3), at(4))).toThrow("disposed");
    });
  });
  test("leaves nothing behind", () => {
    const before = memoryUsage().storages;
    {
      using x = zeros([2, 3], { engine });
      using pass = qkNormVjp(x, x);
      using q = pass.q;
      using k = pass.k;
      const gradients = pass.backward(q, k);
      gradients.q[Symbol.dispose]();
      gradients.k[Symbol.dispose]();
    }
    expect(memoryUsage().storages).toBe(before);
  });
  test("bad options and operands are typed errors", () => {
    scope(() => {
      const x = zeros([2, 3], { engine });
      expect(() => qkNorm(x, x, { eps: -1 })).toThrow(
        "[qkNorm] eps must be a finite number of at least 0; got -1",
      );
      expect(() => qkNorm(x, x, { over: "rows" as "head" })).toThrow(
        new ArgumentError('[qkNorm] over must be "head" or "tensor"; got rows'),
      );
      expect(() => qkNorm(x, zeros([2, 0], { engine }))).toThrow(ShapeError);
      expect(() => qkNorm(zeros([2, 3], { engine, dtype: "int32" }) as never, x)).toThrow("int32");
      expect(() => qkNormVjp(x, x).backward(x, zeros([3, 2], { engine }))).toThrow(ShapeError);
    });
  });
});
