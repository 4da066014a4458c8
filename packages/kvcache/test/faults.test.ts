/** Whatever call into the engine fails, the operation changes nothing. */
import { memoryUsage, OutOfMemoryError } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import type { KvCache, Sequence } from "../src/index.ts";
import {
  append,
  poolOf,
  contents,
  expected,
  faulty,
  floats,
  idsFrom,
  poisonedCache,
  rowsFor,
  usage,
  writeLayer,
} from "./fixtures.ts";

/** All that can be seen of a cache and its sequences. */
function snapshot(cache: KvCache, sequences: readonly Sequence[]): unknown {
  const of = (s: Sequence): unknown => [
    s.length,
    s.pages,
    s.tokenIds,
    [0, 1].map((layer) => contents(cache, s, layer)),
  ];
  return { usage: usage(cache), free: poolOf(cache).freePages(), sequences: sequences.map(of) };
}

describe("when the engine fails", () => {
  test("a cache that cannot be allocated in full leaves no memory behind", () => {
    const { engine, arm, fired } = faulty();
    const before = memoryUsage();
    for (let n = 1; n <= 4; n++) {
      arm(n);
      expect(() => poisonedCache({ engine })).toThrow(OutOfMemoryError);
      expect(fired()).toBe(true);
      expect(memoryUsage().bytes).toBe(before.bytes);
      expect(memoryUsage().storages).toBe(before.storages);
    }
  });
  test("reserve changes nothing, at each call that can fail, and works afterwards", () => {
    const { engine, arm, fired } = faulty();
    const start = memoryUsage().storages;
    let failures = 0;
    for (let n = 1; ; n++) {
      expect(memoryUsage().storages).toBe(start); // the cache before this one has given all of it back
      using cache = poisonedCache({ engine, pageSize: 64, maxPages: 20 });
      const [a, b] = [cache.open(), cache.open()] as const;
      append(cache, [
        [a, idsFrom(0, 5)],
        [b, idsFrom(7, 3)],
      ]);
      const before = snapshot(cache, [a, b]);
      const storages = memoryUsage().storages;
      const reserve = (): void =>
        cache.reserve([a, b].map((sequence) => ({ sequence, tokens: 400 }))).cancel();
      arm(n);
      if (!throws(reserve)) break;
      expect(fired()).toBe(true);
      failures++;
      expect(memoryUsage().storages).toBe(storages);
      cache.check();
      expect(snapshot(cache, [a, b])).toEqual(before);
      reserve();
    }
    expect(failures).toBe(2); // the table's memory, the table's upload
  });
  test("after a table that could not grow, or not be sent, the next one is right", () => {
    for (const fault of [1, 2]) {
      const { engine, arm } = faulty();
      using cache = poisonedCache({ engine, maxPages: 400 });
      const [a, b] = [cache.open(), cache.open()] as const;
      append(cache, [
        [a, idsFrom(0, 30)],
        [b, idsFrom(50, 9)],
      ]);
      const requests = [a, b].map((sequence) => ({ sequence, tokens: 1 }));
      cache.reserve(requests).cancel();
      arm(fault);
      expect(() => cache.reserve([{ sequence: a, tokens: 900 }])).toThrow(OutOfMemoryError);
      arm(Infinity);
      using step = cache.reserve(requests);
      step.markWritten();
      const { indices } = step.view(0).table;
      expect(Array.from(indices.data)).toEqual([...a.pages, ...b.pages]);
    }
  });
  test("a write that fails leaves the layer unwritten, the step open and what was committed as it was", () => {
    const { engine, arm, fired } = faulty();
    using cache = poisonedCache({ engine });
    using sequence = cache.open();
    append(cache, [[sequence, idsFrom(0, 6)]]);
    const step = cache.reserve([{ sequence, tokens: 7 }]);
    writeLayer(cache, step, idsFrom(20, 7), 0);
    writeLayer(cache, step, idsFrom(50, 7), 1);
    using k = floats(rowsFor(cache, idsFrom(20, 7), 1, "k"), [7, 2, 3], "float32", engine);
    using v = floats(rowsFor(cache, idsFrom(20, 7), 1, "v"), [7, 2, 2], "float32", engine);
    let failures = 0;
    for (let n = 1; ; n++) {
      arm(n);
      if (!throws(() => step.write(1, k, v))) break;
      expect(fired()).toBe(true);
      failures++;
      expect(() => step.view(1)).toThrow("has not written");
      expect(() => step.commit()).toThrow("has not written");
      cache.check();
    }
    arm(Infinity);
    expect(failures).toBeGreaterThan(3);
    step.commit(idsFrom(20, 7));
    const ids = [...idsFrom(0, 6), ...idsFrom(20, 7)];
    for (const layer of [0, 1]) expect(contents(cache, sequence, layer)).toEqual(expected(cache, ids, layer));
  });
});
function throws(act: () => void): boolean {
  try {
    act();
    return false;
  } catch (error) {
    expect(error).toBeInstanceOf(OutOfMemoryError);
    return true;
  }
}
