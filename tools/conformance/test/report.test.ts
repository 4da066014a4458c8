import { expect, test } from "bun:test";
import { json, summary, table, worstOf } from "../report.ts";
import type { CaseResult } from "../run.ts";

const results: readonly CaseResult[] = [
  { set: "a", name: "good", status: "passed", checks: [{ name: "Y", relative: 2e-6, allowed: 1e-5 }] },
  { set: "a", name: "near", status: "passed", checks: [{ name: "Y", relative: 1e-3, allowed: 2e-3 }] },
  {
    set: "b",
    name: "bad",
    status: "failed",
    reason: "Y: worst at [0]",
    checks: [{ name: "Y", relative: 1, allowed: 1e-5, fault: "Y: worst at [0]" }],
  },
  { set: "b", name: "one", status: "unsupported", reason: "no layer", checks: [] },
  { set: "b", name: "two", status: "unsupported", reason: "no layer", checks: [] },
];

test("the summary counts passed, failed and skipped", () => {
  expect(summary(results)).toBe("2 passed, 1 failed, 2 skipped");
  expect(summary([])).toBe("0 passed, 0 failed, 0 skipped");
});

test("the worst check is the one nearest to its own tolerance", () => {
  expect(worstOf(results.slice(0, 2))).toMatchObject({ case: "near", relative: 1e-3 });
  expect(worstOf(results.slice(3))).toBeUndefined();
});

test("no error is never the worst, an error where none is allowed always", () => {
  const of = (name: string, relative: number, allowed: number): CaseResult => ({
    set: "s",
    name,
    status: "passed",
    checks: [{ name: "Y", relative, allowed }],
  });
  expect(worstOf([of("exact", 0, 0), of("small", 1e-9, 1e-5)])?.case).toBe("small");
  expect(worstOf([of("large", 1, 1e-5), of("inexact", 1e-9, 0)])?.case).toBe("inexact");
});

test("the table has a line per set, then failures and reasons, and ends in the summary", () => {
  expect(table(results).split("\n")).toEqual([
    "set  passed  failed  skipped  worst error  allowed  in",
    "a         2       0        0       1.0e-3     2e-3  near, Y",
    "b         0       1        2       1.0e+0     1e-5  bad, Y",
    "",
    "failed:",
    "  b/bad: Y: worst at [0]",
    "",
    "unsupported:",
    "  no layer: b/one, b/two",
    "",
    "2 passed, 1 failed, 2 skipped",
  ]);
});

test("JSON carries the engine, counts, worst checks and every case", () => {
  const value = JSON.parse(json(results, { name: "e", description: "d" })) as Record<string, unknown>;
  expect(value).toMatchObject({ engine: { name: "e", description: "d" }, passed: 2, failed: 1, skipped: 2 });
  expect(value.sets).toMatchObject([
    {
      set: "a",
      passed: 2,
      failed: 0,
      skipped: 0,
      worst: { case: "near" },
      cases: [{ name: "good" }, { name: "near" }],
    },
    {
      set: "b",
      failed: 1,
      cases: [{ name: "bad", reason: "Y: worst at [0]" }, { name: "one" }, { name: "two" }],
    },
  ]);
});
