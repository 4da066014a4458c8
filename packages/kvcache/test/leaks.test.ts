import { memoryUsage } from "@heed/tensor";
import { expect, test } from "bun:test";
import { engines } from "./engines.ts";
import { append, idsFrom, poisonedCache, usage } from "./fixtures.ts";

test("open, step and release leave nothing behind, however often", () => {
  using cache = poisonedCache();
  const trace = (): void => {
    using a = cache.open();
    const b = cache.open();
    append(cache, [
      [a, idsFrom(0, 9)],
      [b, idsFrom(0, 2)],
    ]);
    a.truncate(5);
    cache.reserve([{ sequence: b, tokens: 6 }]).cancel();
    b.release();
  };
  trace();
  const [memory, stats] = [memoryUsage(), usage(cache)];
  for (let i = 0; i < 300; i++) trace();
  expect(memoryUsage().bytes).toBe(memory.bytes);
  expect(memoryUsage().storages).toBe(memory.storages);
  expect(usage(cache)).toEqual(stats);
  cache.check();
});
test.each(engines)(
  "memory on %s stays flat over three times 10,000 decode steps",
  (engine) => {
    const command = [process.execPath, `${import.meta.dir}/child/decode.ts`, engine];
    const { exitCode, stdout, stderr } = Bun.spawnSync(command, { stdout: "pipe", stderr: "pipe" });
    expect(exitCode, stderr.toString()).toBe(0);
    const { marks, stats } = JSON.parse(stdout.toString()) as {
      marks: { rss: number; bytes: number; storages: number }[];
      stats: object;
    };
    expect(stats).toMatchObject({ openSteps: 0, sequences: 4 });
    for (const { bytes, storages } of marks) {
      expect([bytes, storages]).toEqual([marks[0]!.bytes, marks[0]!.storages]);
    }
    // Steps that stay reachable add 28 to 30 MiB each time; the collector's own swing was -1 to 8, so a leak shows in the least growth.
    const growth = marks.slice(1).map(({ rss }, i) => rss - marks[i]!.rss);
    expect(Math.min(...growth)).toBeLessThan(8 * 2 ** 20);
  },
  120_000,
);
