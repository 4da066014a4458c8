import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  assertClose,
  attentionBackwardOracle,
  attentionData,
  attentionOracle,
  attentionProblem,
  biasAt,
  broadcastMask,
  createRng,
  isVisible,
} from "../../src/index.ts";
import type { AttentionDims, AttentionOracleOptions } from "../../src/index.ts";

const dims = (part: Partial<AttentionDims>): AttentionDims => ({
  B: 1,
  S: 1,
  Sk: 1,
  Hq: 1,
  Hkv: 1,
  D: 1,
  Dv: 1,
  ...part,
});

describe("known answers", () => {
  const q = [1, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4];
  const k = [1, 0, 0, 0, 1, 0, 0, 0, 1, 5, 6, 7];
  const v = [1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6];
  const three = dims({ S: 3, Sk: 3, D: 4, Dv: 4 });

  test("bidirectional rows with equal scores average the values", () => {
    const { out } = attentionOracle(q, k, v, { dims: three });
    const row = [5, 16 / 3, 17 / 3, 6];
    assertClose(out.subarray(0, 8), [...row, ...row], { rel: 1e-15 });
  });

  test("causal rows average the values so far", () => {
    const { out } = attentionOracle(q, k, v, { dims: three, isCausal: true });
    assertClose(out.subarray(0, 8), [1, 2, 3, 4, 3, 4, 5, 6], { rel: 1e-15 });
  });

  test("a single key is copied and its score is the log-sum-exp", () => {
    const { out, lse } = attentionOracle([3], [5], [7], { dims: dims({}), scale: 0.5 });
    expect([...out]).toEqual([7]);
    expect([...lse]).toEqual([7.5]);
  });

  test("the softcap comes before the bias", () => {
    const mask = broadcastMask("additive", [100], [1, 1], dims({}));
    const { lse } = attentionOracle([30], [1], [1], { dims: dims({}), softcap: 2, mask });
    expect(lse[0]).toBeCloseTo(2 * Math.tanh(15) + 100, 12);
  });

  test("a sink takes its share and gives nothing", () => {
    const { out, lse } = attentionOracle([0], [0], [8], { dims: dims({}), sinks: [Math.log(3)] });
    assertClose(out, [2], { rel: 1e-15 });
    assertClose(lse, [Math.log(4)], { rel: 1e-15 });
  });

  test("query heads of a group read the same key head, by floor(h / G)", () => {
    const options = { dims: dims({ Hq: 4, Hkv: 2 }) };
    expect([...attentionOracle([1, 1, 1, 1], [1, 1], [10, 20], options).out]).toEqual([10, 10, 20, 20]);
    const dOut = [1, 2, 3, 4];
    expect([...attentionBackwardOracle([1, 1, 1, 1], [1, 1], [10, 20], dOut, options).dv]).toEqual([3, 7]);
  });
});

describe("visibility", () => {
  /** Keys that each query sees, as text. */
  const seen = (options: AttentionOracleOptions): string[] =>
    Array.from({ length: options.dims.S }, (_, i) =>
      Array.from({ length: options.dims.Sk }, (_, j) => (isVisible(options, 0, 0, i, j) ? j : "")).join(""),
    );

  test("causal is bottom right by default and top left with offset 0", () => {
    expect(seen({ dims: dims({ S: 2, Sk: 4 }), isCausal: true })).toEqual(["012", "0123"]);
    expect(seen({ dims: dims({ S: 2, Sk: 4 }), isCausal: true, queryOffset: 0 })).toEqual(["0", "01"]);
  });

  test("more queries than keys leaves the first without any", () => {
    expect(seen({ dims: dims({ S: 4, Sk: 2 }), isCausal: true })).toEqual(["", "", "0", "01"]);
  });

  test("a window counts from the query's position on both sides", () => {
    const five = dims({ S: 5, Sk: 5 });
    expect(seen({ dims: five, window: { left: 1, right: 0 } })).toEqual(["0", "01", "12", "23", "34"]);
    expect(seen({ dims: five, window: { right: 1 } })).toEqual(["01", "012", "0123", "01234", "01234"]);
    expect(seen({ dims: dims({ S: 2, Sk: 5 }), window: { left: 1, right: 1 }, queryOffset: 1 })).toEqual([
      "012",
      "123",
    ]);
  });

  test("a length hides the rest and moves the default offset", () => {
    expect(seen({ dims: dims({ S: 2, Sk: 5 }), isCausal: true, kvLengths: [3] })).toEqual(["01", "012"]);
  });

  test("ALiBi measures the distance from the position, on either side", () => {
    const options = { dims: dims({ S: 1, Sk: 3 }), alibiSlopes: [0.5], queryOffset: 1 };
    expect([0, 1, 2].map((j) => biasAt(options, 0, 0, 0, j))).toEqual([-0.5, 0, -0.5]);
  });
});

describe("rows that see nothing", () => {
  const blind = dims({ S: 2, Sk: 1, D: 2, Dv: 2 });
  const operands = [
    [1, 2, 3, 4],
    [NaN, NaN],
    [Infinity, NaN],
  ] as const;
  const mask = broadcastMask("boolean", [0], [1, 1], blind);

  test("give 0 and -inf, and zero gradients", () => {
    const { out, lse } = attentionOracle(...operands, { dims: blind, mask });
    expect([...out]).toEqual([0, 0, 0, 0]);
    expect([...lse]).toEqual([-Infinity, -Infinity]);
    const gradients = attentionBackwardOracle(...operands, [1, 1, 1, 1], { dims: blind, mask });
    for (const gradient of Object.values(gradients) as Float64Array[])
      expect(gradient.every((x) => x === 0)).toBe(true);
  });

  test("give 0 and the sink, with a sink", () => {
    const { out, lse } = attentionOracle(...operands, { dims: blind, mask, sinks: [1.5] });
    expect([...out]).toEqual([0, 0, 0, 0]);
    expect([...lse]).toEqual([1.5, 1.5]);
    expect([
      ...attentionBackwardOracle(...operands, [1, 1, 1, 1], { dims: blind, mask, sinks: [1.5] }).dSinks,
    ]).toEqual([0]);
  });
});

test("keys and values that no query sees change no bit, whatever they hold", () => {
  fc.assert(
    fc.property(attentionProblem(), (problem) => {
      const { q, k, v, dOut, options } = attentionData(problem);
      const { B, S, Sk, Hq, Hkv, D, Dv } = problem.dims;
      const poisonedK = k.slice();
      const poisonedV = v.slice();
      for (let b = 0; b < B; b++)
        for (let j = 0; j < Sk; j++)
          for (let kv = 0; kv < Hkv; kv++) {
            const G = Hq / Hkv;
            const reader = (n: number): boolean =>
              isVisible(options, b, kv * G + Math.floor(n / S), n % S, j);
            if (Array.from({ length: G * S }, (_, n) => reader(n)).some(Boolean)) continue;
            const row = (b * Sk + j) * Hkv + kv;
            poisonedK.fill(NaN, row * D, (row + 1) * D);
            poisonedV.fill(Infinity, row * Dv, (row + 1) * Dv);
          }
      const clean = {
        ...attentionOracle(q, k, v, options),
        ...attentionBackwardOracle(q, k, v, dOut, options),
      };
      const poisoned = {
        ...attentionOracle(q, poisonedK, poisonedV, options),
        ...attentionBackwardOracle(q, poisonedK, poisonedV, dOut, options),
      };
      expect(poisoned).toEqual(clean);
    }),
  );
});

describe("scores", () => {
  const small = dims({ S: 2, Sk: 3, Hq: 2, D: 2, Dv: 2 });
  const rng = createRng(9);
  const [q, k, v] = [rng.normalArray(8), rng.normalArray(6), rng.normalArray(6)];
  const options = { dims: small, softcap: 1.5, isCausal: true, alibiSlopes: [0.5, 0.25] };
  const scores = (stage: "raw" | "softcapped" | "masked" | "probabilities"): Float64Array =>
    attentionOracle(q, k, v, { ...options, scores: stage }).scores!;

  test("raw are scaled products, softcapped their bounded form", () => {
    const first = (q[0]! * k[0]! + q[1]! * k[1]!) / Math.sqrt(2);
    expect(scores("raw")[0]).toBeCloseTo(first, 14);
    assertClose(
      scores("softcapped"),
      scores("raw").map((s) => 1.5 * Math.tanh(s / 1.5)),
    );
  });

  test("masked add the bias and hide with -inf", () => {
    const masked = scores("masked");
    expect(masked[2]).toBe(-Infinity); // head 0, query 0 at position 1, key 2
    expect(masked[0]).toBe(scores("softcapped")[0]! - 0.5);
  });

  test("probabilities sum to 1 and exponentiate the masked scores less lse", () => {
    const { lse } = attentionOracle(q, k, v, options);
    const masked = scores("masked");
    const expected = masked.map((s, n) => Math.exp(s - lse[Math.floor(n / 3)]!));
    assertClose(scores("probabilities"), expected, { rel: 1e-14 });
  });
});

test("sizes that do not fit are refused with the numbers", () => {
  expect(() => attentionOracle([1], [1], [1], { dims: dims({ Hq: 3, Hkv: 2 }) })).toThrow(
    "[attentionOracle] query heads must be a multiple of key heads; got Hq 3, Hkv 2",
  );
  expect(() => attentionOracle([1, 2], [1], [1], { dims: dims({}) })).toThrow(
    /q must have 1 elements; got 2/,
  );
  expect(() => attentionOracle([1], [1], [1], { dims: dims({}), kvLengths: [2] })).toThrow(/kvLengths\[0\]/);
});
