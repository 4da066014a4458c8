import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  assertClose,
  checkGradient,
  createRng,
  dotProduct,
  inverseFrequencies,
  ropeBackwardOracle,
  ropeOracle,
} from "../../src/index.ts";
import type { RopePairing } from "../../src/index.ts";

const invFreq = inverseFrequencies(10000, 4);

test("known answer: rotate-half at positions 0 and 1", () => {
  const x = [1, 2, 3, 4, 5, 6, 7, 8];
  const y = ropeOracle(x, { H: 1, D: 4, pairing: "half", positions: [0, 1], invFreq });
  const row = [-3.1887853643145765, 5.919701335826659, 7.9894710651164615, 8.059599003338322];
  assertClose(y, [1, 2, 3, 4, ...row], { rel: 1e-15 });
});

test("interleaved is rotate-half under the permutation of a head", () => {
  const x = createRng(1).normalArray(4);
  const common = { H: 1, D: 4, positions: [7], invFreq };
  const [a, b, c, d] = ropeOracle(x, { ...common, pairing: "interleaved" });
  const permuted = Float64Array.of(x[0]!, x[2]!, x[1]!, x[3]!);
  assertClose([a!, c!, b!, d!], ropeOracle(permuted, { ...common, pairing: "half" }));
});

test("elements beyond rotaryDim pass through untouched", () => {
  const x = createRng(2).normalArray(6);
  const y = ropeOracle(x, { H: 1, D: 6, rotaryDim: 4, pairing: "half", positions: [3], invFreq });
  expect([...y.subarray(4)]).toEqual([...x.subarray(4)]);
  expect(y[3]).not.toBe(x[3]!);
});

test("attentionFactor scales what is rotated", () => {
  const x = createRng(3).normalArray(4);
  const options = { H: 1, D: 4, pairing: "half" as const, positions: [5], invFreq };
  const scaled = ropeOracle(x, { ...options, attentionFactor: 1.5 });
  assertClose(
    scaled,
    ropeOracle(x, options).map((value) => 1.5 * value),
    { rel: 1e-15 },
  );
});

describe("properties", () => {
  const pairing = fc.constantFrom<RopePairing>("half", "interleaved");
  const half = fc.integer({ min: 1, max: 3 });
  const position = fc.integer({ min: 0, max: 100 });
  const arbitrary = fc.record({
    pairing,
    half,
    H: fc.integer({ min: 1, max: 2 }),
    rest: fc.nat(2),
    p: position,
    t: position,
    seed: fc.nat(999),
  });

  test("the product of rotated vectors depends on the distance of their positions only", () => {
    fc.assert(
      fc.property(arbitrary, ({ pairing, half, p, t, seed }) => {
        const D = 2 * half;
        const rng = createRng(seed);
        const [a, b] = [rng.normalArray(D), rng.normalArray(D)];
        const at = (x: Float64Array, position: number): Float64Array =>
          ropeOracle(x, { H: 1, D, pairing, positions: [position], invFreq: inverseFrequencies(100, D) });
        assertClose([dotProduct(at(a, p), at(b, p + t))], [dotProduct(at(a, 0), at(b, t))], {
          rel: 1e-9,
          abs: 1e-9,
        });
      }),
    );
  });

  test("backward equals central differences", () => {
    fc.assert(
      fc.property(arbitrary, ({ pairing, half, H, rest, p, t, seed }) => {
        const D = 2 * half + rest;
        const rng = createRng(seed);
        const [x, dy] = [rng.normalArray(2 * H * D), rng.normalArray(2 * H * D)];
        const frequencies = inverseFrequencies(50, 2 * half);
        const options = {
          H,
          D,
          rotaryDim: 2 * half,
          pairing,
          positions: [p, t],
          invFreq: frequencies,
          attentionFactor: 1.2,
        };
        checkGradient((z) => dotProduct(dy, ropeOracle(z, options)), x, ropeBackwardOracle(dy, options));
      }),
      { numRuns: 40 },
    );
  });
});

test("sizes that do not fit are refused", () => {
  const options = { H: 1, D: 4, pairing: "half" as const, positions: [0], invFreq };
  expect(() => ropeOracle([1, 2, 3, 4], { ...options, rotaryDim: 6, invFreq: [1, 1, 1] })).toThrow(
    /at most 4; got 6/,
  );
  expect(() => ropeOracle([1, 2, 3, 4], { ...options, positions: [0, 1] })).toThrow(/positions/);
  expect(() => ropeOracle([1, 2, 3, 4], { ...options, invFreq: [1] })).toThrow(/invFreq/);
});
