import { describe, expect, test } from "bun:test";
import { appendBenches } from "../append.bench.ts";
import { cacheBenches } from "../cache.bench.ts";
import { decodeBenches } from "../decode.bench.ts";
import { cpuEngine } from "../engine.ts";

const engine = cpuEngine();

describe("benches of the cache", () => {
  test("run twice and again, and say how many calls a run is", async () => {
    for (const bench of cacheBenches(engine)) {
      using subject = await bench.open();
      for (let i = 0; i < 3; i++) await subject.run();
      expect(bench.work).toMatchObject({ bound: "calls" });
    }
  });
  test("have a target for pages, lookups and decode steps", () => {
    const aimed = cacheBenches(engine).filter(({ target }) => target !== undefined);
    const targetOf = (word: string): unknown[] =>
      aimed.filter(({ name }) => name.includes(word)).map(({ target }) => target);
    expect(targetOf("page taken")).toEqual([{ mostNs: 10 }]);
    expect(targetOf("lookup")).toEqual([{ mostNs: 250 }, { mostNs: 250 }]);
    expect(targetOf("decode step")).toEqual(Array.from({ length: 4 }, () => ({ mostNs: 50e3 })));
  });
  test("appends run for every storage and page size", async () => {
    const benches = appendBenches(engine).filter(({ name }) => name.includes("rows as"));
    expect(benches).toHaveLength(14);
    for (const bench of benches) {
      using subject = await bench.open();
      await subject.run();
    }
  });
  test("decode over pages is measured against its baseline, with the targets for pages of 64", () => {
    const targets: unknown[][] = decodeBenches(engine).map(({ name, baseline, target }) => [
      name.replace("decode 32/8 d128 ", ""),
      baseline?.name,
      target && "leastRatio" in target ? target.leastRatio : undefined,
    ]);
    const paged = (length: number, dtype: string, size: number, ...rest: unknown[]): unknown[] => [
      `${length} ${dtype} pages of ${size}`,
      ...rest,
    ];
    for (const row of [
      ["8192 float32", undefined, undefined],
      paged(8192, "float32", 64, "contiguous", 0.9),
      paged(32768, "bfloat16", 64, "contiguous", 0.9),
      paged(32768, "bfloat16", 16, "contiguous", undefined),
      paged(32768, "int8", 64, "float32 pages", 1.6),
      paged(32768, "float8e4m3", 64, "float32 pages", 1.6),
      paged(32768, "int4", 64, "float32 pages", 2),
      paged(8192, "int4", 64, "float32 pages", undefined),
      paged(32768, "int4", 256, "float32 pages", undefined),
    ])
      expect(targets).toContainEqual(row);
  });
});
