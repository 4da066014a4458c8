import { describe, expect, test } from "bun:test";
import { TestkitError, assertClose, compare, formatIndex } from "../src/index.ts";

describe("compare", () => {
  test("reports a NaN against a number before any difference", () => {
    const found = compare([1, NaN, 1e9], [1, 2, 3]);
    expect(found.mismatch).toEqual({ kind: "nan", index: 1, count: 1, actual: NaN, expected: 2 });
  });

  test("reports a number where NaN was expected", () => {
    expect(compare([1, 2], [1, NaN]).mismatch).toMatchObject({ kind: "nan", index: 1 });
  });

  test("accepts NaN where NaN was expected", () => {
    expect(compare([NaN, 2], [NaN, 2])).toMatchObject({ maxAbs: 0, worstIndex: 1 });
    expect(compare([NaN], [NaN]).mismatch).toBeUndefined();
  });

  test("tells +Inf from -Inf, and either from a number", () => {
    const pairs = [
      [Infinity, -Infinity],
      [Infinity, 1e308],
      [0, -Infinity],
    ] as const;
    for (const [actual, expected] of pairs)
      expect(compare([0, actual], [0, expected]).mismatch).toMatchObject({
        kind: "infinity",
        index: 1,
        actual,
        expected,
      });
    expect(compare([Infinity, -Infinity], [Infinity, -Infinity]).mismatch).toBeUndefined();
  });

  test("a NaN against an infinity is a NaN mismatch", () => {
    expect(compare([NaN], [Infinity]).mismatch?.kind).toBe("nan");
  });

  test("counts every offending element and gives the first", () => {
    expect(compare([0, NaN, NaN, 1], [0, 1, 2, 1]).mismatch).toMatchObject({ index: 1, count: 2 });
  });

  test("reports a difference of length whichever side is shorter", () => {
    expect(compare([1, 2], [1, 2, 3]).mismatch).toMatchObject({ kind: "length", actual: 2, expected: 3 });
    expect(compare([1, 2, 3], [1]).mismatch).toMatchObject({ kind: "length", count: 2 });
    expect(compare([], [1]).mismatch?.kind).toBe("length");
  });

  test("two empty arrays agree", () => {
    expect(compare([], [])).toMatchObject({ worstIndex: -1, maxAbs: 0, magnitude: 0, relative: 0 });
  });

  test("finds the worst element and measures it against the largest magnitude", () => {
    const found = compare([1, 2.5, -8], [1, 2, -10]);
    expect(found).toMatchObject({ worstIndex: 2, actual: -8, expected: -10, maxAbs: 2, magnitude: 10 });
    expect(found.relative).toBeCloseTo(0.2, 15);
  });

  test("infinities do not enter the magnitude", () => {
    expect(compare([Infinity, 1], [Infinity, 2])).toMatchObject({ magnitude: 2, relative: 0.5 });
  });

  test("an error where everything should be zero is infinitely large relatively", () => {
    expect(compare([1e-30], [0]).relative).toBe(Infinity);
    expect(compare([-0], [0]).maxAbs).toBe(0);
  });
});

describe("assertClose", () => {
  test("names the tensor, the index per axis and both values", () => {
    const act = () =>
      assertClose([0, 1, 2, 3, 4, 9], [0, 1, 2, 3, 4, 5], { name: "dq", shape: [2, 3], rel: 0.1 });
    expect(act).toThrow(/^dq: worst at \[1, 2\]: got 9, expected 5; difference 4\.000e\+0/);
  });

  test("throws a typed error that carries the values", () => {
    try {
      assertClose([1], [2]);
      expect.unreachable();
    } catch (error) {
      expect(error).toBeInstanceOf(TestkitError);
      expect((error as TestkitError).code).toBe("mismatch");
      expect((error as TestkitError).details).toMatchObject({ actual: 1, expected: 2, maxAbs: 1 });
    }
  });

  test("no tolerance forgives a NaN, an infinity or a length", () => {
    const loose = { rel: Infinity, abs: Infinity };
    expect(() => assertClose([NaN], [1], loose)).toThrow(/NaNs disagree at \[0\]: got NaN, expected 1/);
    expect(() => assertClose([Infinity], [1], loose)).toThrow(/infinities disagree/);
    expect(() => assertClose([1], [1, 2], loose)).toThrow(/got 1 elements, expected 2/);
  });

  test("allows exactly rel * magnitude + abs", () => {
    assertClose([10.5, 4], [10, 4], { rel: 0.05 });
    assertClose([10.5, 4], [10, 4], { rel: 0.025, abs: 0.25 });
    expect(() => assertClose([10.5, 4], [10, 4], { rel: 0.049 })).toThrow(/exceeds/);
  });

  test("is exact by default", () => {
    expect(() => assertClose([1 + 2 ** -52], [1])).toThrow();
  });

  test("a difference that overflows is not close", () => {
    expect(() => assertClose([1e308], [-1e308], { rel: 1 })).toThrow(/difference Infinity/);
  });

  test("refuses a NaN or negative tolerance", () => {
    expect(() => assertClose([1], [1], { rel: NaN })).toThrow(/tolerances/);
    expect(() => assertClose([1], [1], { abs: -1 })).toThrow(/tolerances/);
  });
});

test("formatIndex unravels row-major", () => {
  expect(formatIndex(23, [2, 3, 4])).toBe("[1, 2, 3]");
  expect(formatIndex(5)).toBe("[5]");
});
