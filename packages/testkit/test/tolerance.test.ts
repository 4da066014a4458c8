import { describe, expect, test } from "bun:test";
import {
  assertFusedBound,
  conformanceTolerance,
  fusedBound,
  toleranceFor,
  unitRoundoff,
} from "../src/index.ts";

describe("fusedBound", () => {
  const oracle = [1, -4, 2];
  const off = (by: number): number[] => [1, -4 + by, 2];

  test("accepts twice the composed form's error and refuses three times", () => {
    const composed = off(1e-3);
    expect(fusedBound({ fused: off(2e-3), composed, oracle, dtype: "float32" }).ok).toBe(true);
    expect(fusedBound({ fused: off(3e-3), composed, oracle, dtype: "float32" }).ok).toBe(false);
  });

  test("a composed form that happens to be exact leaves a floor of a few roundings", () => {
    const floor = (unitRoundoff.float32 + 8 * unitRoundoff.float32) * 4;
    const judge = (by: number): boolean =>
      fusedBound({ fused: off(by), composed: oracle, oracle, dtype: "float32" }).ok;
    expect(judge(0.9 * floor)).toBe(true);
    expect(judge(1.1 * floor)).toBe(false);
  });

  test("the floor of a 16-bit type is one rounding at the store", () => {
    const { floor } = fusedBound({ fused: oracle, composed: oracle, oracle, dtype: "bfloat16" });
    expect(floor / 4).toBeGreaterThan(unitRoundoff.bfloat16);
    expect(floor / 4).toBeLessThan(1.01 * unitRoundoff.bfloat16);
  });

  test("terms that cancel, and errors that grow, raise the floor", () => {
    const input = { fused: oracle, composed: oracle, oracle, dtype: "float32" } as const;
    const u = unitRoundoff.float32;
    expect(fusedBound({ ...input, termScale: 100 }).floor).toBe(9 * u * 100);
    expect(fusedBound({ ...input, termScale: 1 }).floor).toBe(9 * u * 4);
    expect(fusedBound({ ...input, conditioning: 3 }).floor).toBe(25 * u * 4);
  });

  test("NaN in either form fails however bad the other is", () => {
    const bad = [1, NaN, 2];
    expect(fusedBound({ fused: bad, composed: bad, oracle, dtype: "float32" }).ok).toBe(false);
    expect(() => assertFusedBound({ fused: bad, composed: oracle, oracle, dtype: "float32" })).toThrow(
      /fused nan mismatch at \[1\]: got NaN, oracle -4/,
    );
    expect(() => assertFusedBound({ fused: oracle, composed: bad, oracle, dtype: "float32" })).toThrow(
      /composed nan mismatch/,
    );
  });

  test("the message gives both errors and the bound", () => {
    const act = () =>
      assertFusedBound({
        fused: off(1),
        composed: oracle,
        oracle,
        dtype: "float16",
        name: "attention",
        shape: [3],
      });
    expect(act).toThrow(
      /^attention float16: fused error 1\.000e\+0 at \[1\] \(got -3, oracle -4\); composed error/,
    );
  });
});

test("16-bit types accumulate in float32", () => {
  expect(toleranceFor("float16")).toEqual({ storage: 2 ** -11, accumulation: 2 ** -24 });
  expect(toleranceFor("float64")).toEqual({ storage: 2 ** -53, accumulation: 2 ** -53 });
});

test("conformance tolerances are those of the vectors", () => {
  expect(conformanceTolerance("float32", "forward")).toBe(1e-5);
  expect(conformanceTolerance("float32", "gradient")).toBe(1e-4);
  expect(conformanceTolerance("float32", "model")).toBe(2e-5);
  expect(conformanceTolerance("float64", "gradient")).toBe(1e-12);
});
