import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  attentionBackwardOracle,
  attentionData,
  attentionOracle,
  attentionProblem,
  broadcastMask,
  checkDirectionalGradient,
  checkGradient,
  dotProduct,
  sumToMaskShape,
} from "../../src/index.ts";
import type {
  AttentionData,
  AttentionFeature,
  AttentionProblem,
  AttentionProblemLimits,
} from "../../src/index.ts";

type Check = typeof checkGradient;

/** Every gradient of a problem against central differences of sum(dOut * out). */
function checkAll(problem: AttentionProblem, check: Check): void {
  const { q, k, v, dOut, mask, sinks, options }: AttentionData = attentionData(problem);
  const loss = (part: Partial<{ q: Float64Array; k: Float64Array; v: Float64Array }>, more = {}): number =>
    dotProduct(dOut, attentionOracle(part.q ?? q, part.k ?? k, part.v ?? v, { ...options, ...more }).out);
  const { dq, dk, dv, dBias, dSinks } = attentionBackwardOracle(q, k, v, dOut, options);
  check((x) => loss({ q: x }), q, dq, { name: "dq" });
  check((x) => loss({ k: x }), k, dk, { name: "dk" });
  check((x) => loss({ v: x }), v, dv, { name: "dv" });
  if (sinks) check((x) => loss({}, { sinks: x }), sinks, dSinks, { name: "dSinks" });
  if (mask?.kind === "additive") {
    const { shape, data } = mask;
    // A step cannot move an entry of -inf: those must have gradient 0, the others are compared.
    const finite = Array.from(data.keys()).filter((n) => data[n] !== -Infinity);
    const withFinite = (x: Float64Array): number => {
      const moved = data.slice();
      finite.forEach((n, at) => {
        moved[n] = x[at]!;
      });
      return loss({}, { mask: broadcastMask("additive", moved, shape, problem.dims) });
    };
    const dMask = sumToMaskShape(dBias, shape, problem.dims);
    const pick = (x: Float64Array): Float64Array => Float64Array.from(finite, (n) => x[n]!);
    check(withFinite, pick(data), pick(dMask), { name: "dBias" });
    expect(dMask.every((x, n) => x === 0 || data[n] !== -Infinity)).toBe(true);
  }
}

const small: AttentionProblemLimits = { maxB: 2, maxS: 3, maxSk: 4, maxHkv: 2, maxG: 2, maxD: 3 };
const features: readonly AttentionFeature[] = [
  "scale",
  "softcap",
  "isCausal",
  "window",
  "queryOffset",
  "kvLengths",
  "mask",
  "alibi",
  "sinks",
  "dropout",
  "groups",
  "valueDim",
];

describe("attention gradients equal central differences", () => {
  test("without any option", () => {
    fc.assert(
      fc.property(attentionProblem({ ...small, without: features }), (p) => checkAll(p, checkGradient)),
      { numRuns: 15 },
    );
  });

  for (const feature of features) {
    test(`with ${feature}`, () => {
      const without = features.filter((other) => other !== feature);
      fc.assert(
        fc.property(attentionProblem({ ...small, without }), (p) => checkAll(p, checkGradient)),
        { numRuns: 12 },
      );
    });
  }

  test("with options in any combination", () => {
    fc.assert(
      fc.property(attentionProblem(small), (p) => checkAll(p, checkGradient)),
      { numRuns: 60 },
    );
  });

  test("along a random direction, at larger sizes", () => {
    const limits: AttentionProblemLimits = { maxS: 8, maxSk: 12, maxD: 16 };
    fc.assert(
      fc.property(attentionProblem(limits), (p) => checkAll(p, checkDirectionalGradient)),
      { numRuns: 40 },
    );
  });
});

test("the gradient of a bias sums over what it broadcasts", () => {
  const dims = { B: 2, S: 2, Sk: 2, Hq: 2, Hkv: 1, D: 1, Dv: 1 };
  const full = Float64Array.from({ length: 16 }, (_, n) => n);
  expect([...sumToMaskShape(full, [2, 1], dims)]).toEqual([
    0 + 1 + 4 + 5 + 8 + 9 + 12 + 13,
    2 + 3 + 6 + 7 + 10 + 11 + 14 + 15,
  ]);
  expect([...sumToMaskShape(full, [2, 2, 2, 2], dims)]).toEqual([...full]);
  expect(() => sumToMaskShape(full, [3, 1], dims)).toThrow("[3, 1] does not broadcast to [2, 2, 2, 2]");
});
