import { assertClose, inverseFrequencies } from "@heed/testkit";
import { expect, test } from "bun:test";
import { ropeFrequencies } from "../src/index.ts";
import { scaledFrequencies } from "./support/oracle.ts";

const LLAMA3 = {
  type: "llama3",
  factor: 8,
  lowFreqFactor: 1,
  highFreqFactor: 4,
  originalMaxPositions: 8192,
} as const;

test("without scaling, frequencies are base^(-2j / rotaryDim)", () => {
  assertClose(ropeFrequencies(128, 10000, { type: "none" }), inverseFrequencies(10000, 128), { rel: 1e-15 });
  expect([...ropeFrequencies(4, 100, { type: "none" })]).toEqual([1, 0.1]);
});
test("linear scaling divides every frequency", () => {
  assertClose(
    ropeFrequencies(8, 10000, { type: "linear", factor: 4 }),
    inverseFrequencies(10000, 8).map((f) => f / 4),
    { rel: 1e-15 },
  );
});
test("llama3 keeps high frequencies, divides low ones and joins them in between", () => {
  const plain = inverseFrequencies(500000, 128);
  const scaled = ropeFrequencies(128, 500000, LLAMA3);
  assertClose(scaled, scaledFrequencies(500000, 128, LLAMA3), { rel: 1e-15 });
  // Llama 3.1: wavelengths below 8192 / 4 are pairs 0..28, those above 8192 are pairs 35..63.
  const ratio = Array.from(scaled, (f, j) => plain[j]! / f);
  expect(ratio.slice(0, 29).every((r) => r === 1)).toBe(true);
  expect(ratio.slice(29, 35).every((r, i, all) => r > 1 && r < 8 && (i === 0 || r > all[i - 1]!))).toBe(true);
  expect(ratio.slice(35).every((r) => Math.abs(r - 8) < 1e-12)).toBe(true);
});
test("the options of a missing number are named", () => {
  const { factor: _, ...rest } = LLAMA3;
  expect(() => ropeFrequencies(8, 10000, rest as never)).toThrow("scaling.factor");
});
