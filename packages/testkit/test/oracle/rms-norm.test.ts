import { expect, test } from "bun:test";
import fc from "fast-check";
import {
  assertClose,
  checkGradient,
  createRng,
  dotProduct,
  rmsNormBackwardOracle,
  rmsNormOracle,
} from "../../src/index.ts";

test("known answer: the whole tensor, eps 1e-5", () => {
  const { y } = rmsNormOracle([1, 2, 3], { n: 3, eps: 1e-5 });
  assertClose(y, [0.462909554, 0.925819108, 1.388728662], { abs: 1e-9 });
});

test("rows are normalised one by one", () => {
  const { y, rstd } = rmsNormOracle([3, 4, 6, 8], { n: 2, eps: 0 });
  const r = Math.sqrt(2) / 5;
  assertClose(y, [3 * r, 4 * r, 3 * r, 4 * r], { rel: 1e-15 });
  assertClose(rstd, [r, r / 2], { rel: 1e-15 });
});

test("unitOffset multiplies by one more than the weight", () => {
  const options = { n: 2, eps: 1e-6 };
  const plain = rmsNormOracle([1, 2], { ...options, weight: [1.5, 0] }).y;
  assertClose(rmsNormOracle([1, 2], { ...options, weight: [0.5, -1], unitOffset: true }).y, plain);
});

test("a row of zeros stays zero", () => {
  expect([...rmsNormOracle([0, 0], { n: 2, eps: 1e-6 }).y]).toEqual([0, 0]);
});

test("backward equals central differences", () => {
  const arbitrary = fc.record({
    rows: fc.integer({ min: 1, max: 3 }),
    n: fc.integer({ min: 1, max: 5 }),
    eps: fc.constantFrom(1e-5, 0.1),
    weighted: fc.boolean(),
    unitOffset: fc.boolean(),
    seed: fc.nat(999),
  });
  fc.assert(
    fc.property(arbitrary, ({ rows, n, eps, weighted, unitOffset, seed }) => {
      const rng = createRng(seed);
      // Magnitudes from 0.5 up: near 0 the function bends faster than the step of the differences.
      const x = rng.uniformArray(rows * n, 0.5, 2).map((value) => (rng.uniform() < 0.5 ? -value : value));
      const [dy, weight] = [rng.normalArray(rows * n), rng.normalArray(n)];
      const options = { n, eps, unitOffset, weight: weighted ? weight : undefined };
      const loss = (z: Float64Array, w: Float64Array): number =>
        dotProduct(dy, rmsNormOracle(z, { ...options, weight: weighted ? w : undefined }).y);
      const { dx, dWeight } = rmsNormBackwardOracle(x, dy, options);
      checkGradient((z) => loss(z, weight), x, dx, { name: "dx" });
      if (weighted) checkGradient((w) => loss(x, w), weight, dWeight, { name: "dWeight" });
    }),
    { numRuns: 60 },
  );
});

test("sizes that do not fit are refused", () => {
  expect(() => rmsNormOracle([1, 2, 3], { n: 2, eps: 0 })).toThrow(/whole rows of 2 elements; got 3/);
  expect(() => rmsNormOracle([1, 2], { n: 2, eps: 0, weight: [1] })).toThrow(/weight must have 2/);
});
