import { expect, test } from "bun:test";
import { attentionOracle, keepFactors, philoxOracle } from "../../src/index.ts";

test("Philox4x32-10 gives the known answers of Random123", () => {
  const words = (hex: string): number[] => hex.split(" ").map((word) => Number(`0x${word}`));
  const ones = 0xffffffff;
  expect(philoxOracle([0, 0, 0, 0], 0n)).toEqual(words("6627e8d5 e169c58d bc57ac4c 9b00dbd8"));
  expect(philoxOracle([ones, ones, ones, ones], 0xffffffff_ffffffffn)).toEqual(
    words("408f276d 41c83b0e a20bc7c6 6d5451fd"),
  );
  expect(philoxOracle(words("243f6a88 85a308d3 13198a2e 03707344"), 0x299f31d0_a4093822n)).toEqual(
    words("d16cfe09 94fdcceb 5001e420 24126ea1"),
  );
});
test("a row of factors is 0 or 1 / (1 - probability), and longer rows begin with shorter ones", () => {
  const dropout = { probability: 0.25, seed: 5 };
  const long = keepFactors(dropout, [1, 2, 3], 97);
  expect([...new Set(long)].toSorted()).toEqual([0, 4 / 3]);
  expect([...keepFactors(dropout, [1, 2, 3], 42)]).toEqual([...long.subarray(0, 42)]);
  expect([...keepFactors({ probability: 0, seed: 5 }, [0, 0, 0], 3)]).toEqual([1, 1, 1]);
  expect(() => keepFactors({ probability: 1, seed: 5 }, [0, 0, 0], 3)).toThrow("must be in [0, 1); got 1");
});
test("the expectation of the output over seeds is the output without dropout", () => {
  const dims = { B: 1, S: 1, Sk: 3, Hq: 1, Hkv: 1, D: 1, Dv: 1 };
  const [q, k, v] = [[1], [0, 1, 2], [1, -2, 5]];
  const plain = attentionOracle(q, k, v, { dims }).out[0]!;
  const draws = Array.from({ length: 4000 }, (_, seed) => {
    return attentionOracle(q, k, v, { dims, dropout: { probability: 0.3, seed } }).out[0]!;
  });
  const mean = draws.reduce((a, x) => a + x, 0) / draws.length;
  const variance = draws.reduce((a, x) => a + (x - mean) ** 2, 0) / draws.length;
  expect(Math.abs(mean - plain)).toBeLessThan(4 * Math.sqrt(variance / draws.length));
});
