import { expect, test } from "bun:test";
import { checkGradient, createRng, dotProduct, linearBackwardOracle, linearOracle } from "../../src/index.ts";

test("rows of x meet rows of the weight, and the bias is added to each", () => {
  const dims = { M: 2, K: 2, N: 3 };
  const out = linearOracle([1, 2, 3, 4], [1, 0, 0, 1, 1, 1], [10, 20, 30], dims);
  expect([...out]).toEqual([11, 22, 33, 13, 24, 37]);
  expect([...linearOracle([1, 2, 3, 4], [1, 0, 0, 1, 1, 1], undefined, dims)]).toEqual([1, 2, 3, 3, 4, 7]);
});

test("backward equals central differences", () => {
  const dims = { M: 3, K: 4, N: 2 };
  const rng = createRng(1);
  const [x, weight, bias, dOut] = [12, 8, 2, 6].map((length) => rng.normalArray(length)) as [
    Float64Array,
    Float64Array,
    Float64Array,
    Float64Array,
  ];
  const { dx, dWeight, dBias } = linearBackwardOracle(x, weight, dOut, dims);
  checkGradient((z) => dotProduct(dOut, linearOracle(z, weight, bias, dims)), x, dx);
  checkGradient((z) => dotProduct(dOut, linearOracle(x, z, bias, dims)), weight, dWeight);
  checkGradient((z) => dotProduct(dOut, linearOracle(x, weight, z, dims)), bias, dBias);
});

test("no inputs leave the bias, no rows leave nothing", () => {
  expect([...linearOracle([], [], [5, 6], { M: 1, K: 0, N: 2 })]).toEqual([5, 6]);
  expect(linearOracle([], [1], undefined, { M: 0, K: 1, N: 1 }).length).toBe(0);
});

test("sizes that do not fit are refused", () => {
  expect(() => linearOracle([1], [1, 2], undefined, { M: 1, K: 2, N: 1 })).toThrow(
    /x must have 2 elements; got 1/,
  );
  expect(() => linearBackwardOracle([1], [1], [1, 2], { M: 1, K: 1, N: 1 })).toThrow(/dOut must have 1/);
});
