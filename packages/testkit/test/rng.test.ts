import { expect, test } from "bun:test";
import { createRng } from "../src/index.ts";

test("the same seed gives the same numbers, another seed others", () => {
  const draw = (seed: number): number[] => [...createRng(seed).normalArray(8)];
  expect(draw(1)).toEqual(draw(1));
  expect(draw(1)).not.toEqual(draw(2));
});

test("numbers are pinned, so that a seed in a failure report stays good", () => {
  const rng = createRng(42);
  expect([rng.bits(), rng.bits(), rng.bits()]).toEqual([695857468, 3046671632, 1167015482]);
});

test("uniform numbers fill their interval", () => {
  const x = createRng(3).uniformArray(20000, -2, 4);
  expect(Math.min(...x)).toBeGreaterThanOrEqual(-2);
  expect(Math.max(...x)).toBeLessThan(4);
  const mean = x.reduce((a, b) => a + b) / x.length;
  expect(Math.abs(mean - 1)).toBeLessThan(0.05);
});

test("normal numbers have mean 0, variance 1 and kurtosis 3", () => {
  const x = createRng(4).normalArray(20000);
  const moment = (n: number): number => x.reduce((a, b) => a + b ** n, 0) / x.length;
  expect(Math.abs(moment(1))).toBeLessThan(0.03);
  expect(Math.abs(moment(2) - 1)).toBeLessThan(0.05);
  expect(Math.abs(moment(4) - 3)).toBeLessThan(0.3);
});

test("integers reach both ends and permutations hold every index once", () => {
  const rng = createRng(5);
  const seen = new Set(Array.from({ length: 200 }, () => rng.int(-1, 2)));
  expect([...seen].sort((a, b) => a - b)).toEqual([-1, 0, 1, 2]);
  expect(rng.permutation(50).sort((a, b) => a - b)).toEqual(Array.from({ length: 50 }, (_, i) => i));
  expect(rng.permutation(0)).toEqual([]);
});
