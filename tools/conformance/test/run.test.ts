import { expect, test } from "bun:test";
import { portable } from "@heed/engine-cpu";
import { memoryUsage, tensor } from "@heed/tensor";
import type { VectorTensor } from "@heed/testkit";
import type { ConformanceSet } from "../discover.ts";
import { runSets, Unsupported } from "../run.ts";
import type { CaseResult, Runner } from "../run.ts";

const engine = portable();
const expected: VectorTensor = { dtype: "float32", shape: [2], data: Float32Array.of(1, 2) };
const cases = ["one", "two"].map((name) => ({ name, params: {}, tensors: {} }));
const set = { kind: "sdpa", name: "s/set", vectors: { cases } } as unknown as ConformanceSet;

/** Runs both cases by a runner that gives the values under the name Y. */
const giving =
  (values: readonly number[], shape: readonly number[] = [values.length]): Runner =>
  () => [{ name: "Y", value: tensor(values, shape, { engine }), expected, rel: 1e-5 }];
const run = (runner: Runner, filter?: string): Promise<CaseResult[]> =>
  runSets([set], runner, engine, filter);

test("a case passes when all its results agree", async () => {
  const results = await run(giving([1, 2]));
  expect(results).toEqual(
    ["one", "two"].map((name) => ({
      set: "s/set",
      name,
      status: "passed",
      checks: [{ name: "Y", relative: 0, allowed: 1e-5 }],
    })),
  );
});

test("a difference, a NaN, another shape and another dtype each fail in words", async () => {
  const reason = async (runner: Runner): Promise<string | undefined> => (await run(runner, "one"))[0]!.reason;
  expect(await reason(giving([1.001, 2]))).toMatch(
    /^Y: worst at \[0\]: got 1\.001.*, expected 1; difference/,
  );
  expect(await reason(giving([NaN, 2]))).toBe("Y: NaNs disagree at [0]: got NaN, expected 1 (1 elements)");
  expect(await reason(giving([1, 2], [1, 2]))).toBe("Y: got float32[1, 2], expected float32[2]");
  const wide: Runner = () => [
    { name: "Y", value: tensor([1, 2], [2], { dtype: "float64", engine }), expected, rel: 1 },
  ];
  expect(await reason(wide)).toBe("Y: got float64[2], expected float32[2]");
});

test("one wrong result among right ones fails the case", async () => {
  const mixed: Runner = (...args) => [...(giving([1, 2])(...args) as []), ...(giving([1, 3])(...args) as [])];
  expect((await run(mixed, "one"))[0]).toMatchObject({
    status: "failed",
    checks: [{}, { fault: expect.any(String) }],
  });
});

test("an error of the library is a failure of its case and of no other", async () => {
  const throwing: Runner = (s, index, e) => {
    if (index === 0) throw new RangeError("too big");
    return giving([1, 2])(s, index, e);
  };
  expect(await run(throwing)).toMatchObject([
    { name: "one", status: "failed", reason: "RangeError: too big" },
    { name: "two", status: "passed" },
  ]);
});

test("a case that compares nothing has not passed", async () => {
  expect((await run(() => []))[0]).toMatchObject({
    status: "failed",
    reason: "the case names no output to compare",
  });
});

test("an unsupported case carries its reason and has not passed", async () => {
  expect((await run(() => new Unsupported("no layer")))[0]).toMatchObject({
    status: "unsupported",
    reason: "no layer",
  });
});

test("a broken set is a failure", async () => {
  const broken = { kind: "broken", name: "b", reason: "cut" } as const;
  expect(await runSets([broken], giving([]), engine)).toMatchObject([
    { set: "b", status: "failed", reason: "cut" },
  ]);
});

test("the filter looks at set and case together", async () => {
  const names = async (filter: string) => (await run(giving([1, 2]), filter)).map(({ name }) => name);
  expect(await names("set/two")).toEqual(["two"]);
  expect(await names("s/set")).toEqual(["one", "two"]);
  expect(await names("three")).toEqual([]);
});

test("no memory is held afterwards, whatever became of the case", async () => {
  const before = memoryUsage();
  const spilling: Runner = () => {
    tensor([1, 2, 3], [3], { engine });
    throw new Error("after allocating");
  };
  await run(giving([1, 2]));
  await run(giving([7, 7], [1, 2]));
  await run(spilling);
  expect(memoryUsage().bytes).toBe(before.bytes);
});
