import { describe, expect, test } from "bun:test";
import { parseArguments } from "../arguments.ts";
import { median, relativeDifference, runBench } from "../harness.ts";
import type { Bench, Result, Subject } from "../harness.ts";
import { headMajorRow, pages, shuffledPages } from "../layout.ts";
import type { Peer, PeerRuntime } from "../peers/onnxruntime.ts";
import { formatNs, table } from "../report.ts";
import { backwardWork, decodeWork, layerWork, linearWork, prefillWork, quantisedBytes } from "../shapes.ts";

const shape = { dtype: "float32", numHeads: 4, numKvHeads: 2, headDim: 8, length: 3 } as const;

/** Spins for `ns`, so that a run has a known least time. */
function spin(ns: number): void {
  const end = Bun.nanoseconds() + ns;
  while (Bun.nanoseconds() < end);
}

describe("runBench", () => {
  const log: string[] = [];
  const subject = (value: number): Subject => ({
    run: () => (log.push("ours"), spin(200e3)),
    read: () => Float32Array.of(value),
    [Symbol.dispose]: () => log.push("disposed"),
  });
  const peer: Peer = {
    name: "peer",
    output: Float32Array.of(1),
    run: async () => (log.push("peer"), spin(300e3)),
    close: async () => (log.push("closed"), [2e6, 2e6, 9e9]),
  };
  const bench = (value: number): Bench => ({
    name: "b",
    dtype: "float32",
    shape: {},
    work: { bound: "fma", flops: 1e6 },
    open: () => subject(value),
    openPeer: async () => peer,
  });
  const options = {
    engine: "cpu",
    threads: 2,
    rounds: 2,
    roundNs: 1,
    peers: {} as PeerRuntime,
    measurePeak: (kind: string, { threads }: { threads: number }) => (log.push(`${kind} ${threads}`), 1e10),
  };

  test("rounds of ours, peer and limit alternate; everything is closed", async () => {
    log.length = 0;
    await runBench(bench(1), options);
    const compact = log.filter((entry, i) => entry !== log[i - 1]);
    const round = ["ours", "peer", "fma-f32 2"];
    expect(compact).toEqual(["ours", "peer", ...round, ...round, "closed", "disposed"]);
  });

  test("rates, share of the limit and ratio follow from the medians", async () => {
    const result = await runBench(bench(1), options);
    expect(result.medianNs).toBeGreaterThanOrEqual(200e3);
    expect(result.gflops).toBeCloseTo(1e6 / result.medianNs, 9);
    expect(result.gbps).toBeUndefined();
    expect(result.peakFraction).toBeCloseTo((result.gflops! * 1e9) / 1e10, 9);
    expect(result.peer).toMatchObject({ name: "peer", medianNs: 2e6 });
    expect(result.peer!.ratio).toBeCloseTo(2e6 / result.medianNs, 9);
    expect(result.peer!.callNs).toBeGreaterThanOrEqual(300e3);
  });

  test("a peer that disagrees is an error, and is still closed", async () => {
    log.length = 0;
    expect(runBench(bench(1.01), options)).rejects.toThrow(/differ by 1\.00e-2/);
    await Bun.sleep(1);
    expect(log.slice(-2)).toEqual(["closed", "disposed"]);
  });

  test("a baseline takes its turn in every round, and a target is held against its speed", async () => {
    log.length = 0;
    const slow = {
      run: () => (log.push("baseline"), spin(400e3)),
      [Symbol.dispose]: () => log.push("base gone"),
    };
    const baseline = { name: "slow", open: () => slow };
    const { peers: _, ...alone } = options;
    const result = await runBench({ ...bench(1), baseline, target: { leastRatio: 1.2 } }, alone);
    const compact = log.filter((entry, i) => entry !== log[i - 1]);
    const round = ["ours", "baseline", "fma-f32 2"];
    expect(compact).toEqual([...round, ...round, "base gone", "disposed"]);
    expect(result.baseline).toMatchObject({ name: "slow" });
    expect(result.baseline!.ratio).toBeGreaterThan(0); // which of the two is slower is up to who else has the cores
    expect(result.isMet).toBe(result.baseline!.ratio >= 1.2);
    const harder = await runBench({ ...bench(1), baseline, target: { leastRatio: 1e6 } }, alone);
    expect(harder.isMet).toBe(false);
  });
  test("a baseline that disagrees is an error", () => {
    const baseline = { name: "other", open: () => subject(2) };
    expect(runBench({ ...bench(1), baseline }, options)).rejects.toThrow("ours and other differ");
  });
  test("work in calls is timed for each of them, without a limit of the machine", async () => {
    log.length = 0;
    const calls = { ...bench(1), work: { bound: "calls", count: 100, unit: "page" } } as const;
    const { peers: _, ...rest } = options;
    const alone = { ...rest, warmNs: 1 };
    const result = await runBench({ ...calls, target: { mostNs: 50e3 } }, alone);
    expect(result.call).toEqual({ ns: result.medianNs / 100, unit: "page" });
    expect([result.isMet, result.peakFraction]).toEqual([true, undefined]);
    expect(log).not.toContain("fma-f32 2");
    expect((await runBench({ ...calls, target: { mostNs: 1 } }, alone)).isMet).toBe(false);
    expect(runBench({ ...bench(1), target: { mostNs: 1 } }, alone)).rejects.toThrow("work in calls");
  });
  test("without peers there is no peer column", async () => {
    const { peers: _, ...alone } = options;
    expect((await runBench(bench(1), alone)).peer).toBeUndefined();
  });
});

test("the median of an even count is the mean of the middle two", () => {
  expect(median([9, 1, 5])).toBe(5);
  expect(median([9, 1, 5, 2])).toBe(3.5);
  expect(median([])).toBeNaN();
});

test("a NaN, a difference from nothing and a wrong length are infinitely different", () => {
  expect(relativeDifference(Float32Array.of(1, NaN), Float32Array.of(1, 2))).toBe(Infinity);
  expect(relativeDifference(Float32Array.of(1), Float32Array.of(0))).toBe(Infinity);
  expect(relativeDifference(Float32Array.of(1), Float32Array.of(1, 2))).toBe(Infinity);
  expect(relativeDifference(Float32Array.of(0), Float32Array.of(0))).toBe(0);
  expect(relativeDifference(Float32Array.of(1, 3), Float32Array.of(1, 4))).toBe(0.25);
});

test("work counts only what is visible, and reads everything once", () => {
  // 4 heads x (1 + 2 + 3) visible pairs x 8 x 2 products x 2 FLOPs
  expect(prefillWork(shape)).toEqual({ bound: "fma", flops: 4 * 6 * 8 * 4 });
  expect(backwardWork(shape)).toEqual({ bound: "fma", flops: 4 * 6 * 8 * 14 });
  expect(decodeWork({ ...shape, dtype: "bfloat16" })).toEqual({ bound: "read", bytes: 2 * 3 * 2 * 8 * 2 });
  const paged = { ...shape, headDim: 128, pageSize: 16, storage: "int4" } as const;
  expect(decodeWork(paged)).toEqual({ bound: "read", bytes: 2 * 3 * 2 * 128 * 0.875 });
  expect([quantisedBytes("int4", 64), quantisedBytes("int8", 16)]).toEqual([0.75, 1.03125]);
  const linear = { dtype: "float32", inFeatures: 5, outFeatures: 7 } as const;
  expect(linearWork({ ...linear, rows: 1 })).toEqual({ bound: "read", bytes: 140 });
  expect(linearWork({ ...linear, rows: 3 })).toEqual({ bound: "fma", flops: 210 });
  const layer = { ...shape, hidden: 10 };
  const weights = 10 * 8 * (4 + 2 + 2 + 4);
  expect(layerWork({ ...layer, queryLength: 3 })).toEqual({
    bound: "fma",
    flops: 6 * weights + 4 * 6 * 8 * 4,
  });
  expect(layerWork({ ...layer, queryLength: 1 })).toEqual({
    bound: "read",
    bytes: 4 * weights + 2 * 3 * 16 * 4,
  });
});

test("pages hold the cache's rows in the given order", () => {
  const sizes = { ...shape, length: 6 };
  const cache = Float32Array.from({ length: 2 * 6 * 8 }, (_, i) => i);
  const order = shuffledPages(3);
  expect([...order].sort()).toEqual([0, 1, 2]);
  const out = pages(cache, sizes, 2, order);
  for (let t = 0; t < 6; t++) {
    for (let h = 0; h < 2; h++) {
      const at = ((order[t >> 1]! * 2 + h) * 2 + (t % 2)) * 8;
      expect(out.slice(at, at + 8)).toEqual(headMajorRow(cache, sizes, t).slice(h * 8, h * 8 + 8));
    }
  }
});

test("the table aligns its columns and drops the peer's where there was none", () => {
  const result: Result = {
    name: "prefill",
    engine: "cpu",
    dtype: "float32",
    shape: {},
    threads: 1,
    medianNs: 1.5e6,
    gflops: 80,
    peakFraction: 0.8,
  };
  expect(table([result]).split("\n")).toEqual([
    "bench    threads   median          rate  of limit",
    "prefill        1  1.50 ms  80.0 GFLOP/s      80 %",
  ]);
  const peer = { name: "p", medianNs: 3e6, callNs: 4e6, ratio: 2 };
  expect(table([{ ...result, peer }])).toEndWith("3.00 ms      4.00 ms  2.00 x");
});

test("targets stand in the table, and whether they were met", () => {
  const result: Result = {
    name: "a",
    engine: "cpu",
    dtype: "",
    shape: {},
    threads: 1,
    medianNs: 1000,
    call: { ns: 10, unit: "page" },
    target: { mostNs: 20 },
    isMet: true,
  };
  const baseline = { name: "contiguous", medianNs: 800, ratio: 0.8 };
  const other: Result = { ...result, name: "b", target: { leastRatio: 0.9 }, isMet: false, baseline };
  expect(table([result, other]).split("\n")).toEqual([
    "bench  threads   median          rate            against    target  met",
    "a            1  1.00 us  10 ns a page                     <= 20 ns  yes",
    "b            1  1.00 us  10 ns a page  0.80 x contiguous  >= 0.9 x   NO",
  ]);
});

test("times are printed in the unit that fits", () => {
  expect([1.25, 12, 1234, 1.234e6, 12.34e9].map(formatNs)).toEqual([
    "1.3 ns",
    "12 ns",
    "1.23 us",
    "1.23 ms",
    "12.3 s",
  ]);
});

describe("the command line", () => {
  test("takes one filter and its options", () => {
    const args = parseArguments(["decode", "--peers", "--threads", "2", "--json", "out.json"]);
    expect(args).toEqual({ filter: "decode", peers: true, threads: [2], json: "out.json", help: false });
  });
  test("refuses in words", () => {
    expect(() => parseArguments(["--peer"])).toThrow(/--peer/);
    expect(() => parseArguments(["a", "b"])).toThrow("one FILTER at most; got a, b");
    expect(() => parseArguments(["--threads", "1,x"])).toThrow(
      '--threads takes integers from 1 to 256; got "1,x"',
    );
  });
});
