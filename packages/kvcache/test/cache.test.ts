import {
  ArgumentError,
  DeviceError,
  DisposedError,
  DTypeError,
  memoryUsage,
  OutOfMemoryError,
  zeros,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { KvCache, StateError } from "../src/index.ts";
import { append, poolOf, contents, expected, idsFrom, poisonedCache } from "./fixtures.ts";

const sizes = { layers: 2, numKvHeads: 2, headDim: 4, engine: "portable" } as const;

describe("KvCache options", () => {
  test("defaults: values as wide as keys, pages of 64, float32", () => {
    using cache = new KvCache({ ...sizes, maxPages: 1 });
    expect(cache.layout).toEqual({
      layers: 2,
      groups: [
        {
          layers: [0, 1],
          numKvHeads: 2,
          headDim: 4,
          valueHeadDim: 4,
          valuesInKeys: false,
          window: Infinity,
          sinks: 0,
          pageSize: 64,
          layout: "head-major",
          dtype: "float32",
        },
      ],
      blockTokens: 64,
      draftMargin: 0,
    });
  });
  test("maxBytes bounds all pages, the null page included", () => {
    const page = 2 * 2 * 64 * (4 + 4) * 4;
    for (const [bytes, pages] of [
      [2 * page, 1],
      [3 * page - 1, 1],
      [3 * page, 2],
    ] as const) {
      using cache = new KvCache({ ...sizes, maxBytes: bytes });
      expect(cache.stats().totalPages).toBe(pages);
      expect(cache.stats().bytes).toBeLessThanOrEqual(bytes);
    }
    expect(() => new KvCache({ ...sizes, maxBytes: 2 * page - 1 })).toThrow(ArgumentError);
  });
  test("exactly one limit", () => {
    expect(() => new KvCache({ ...sizes })).toThrow(ArgumentError);
    expect(() => new KvCache({ ...sizes, maxPages: 4, maxBytes: 2 ** 20 })).toThrow(ArgumentError);
  });
  const bad = [0, -1, 1.5, NaN, Infinity, 2 ** 31, "4", null];
  test.each(["layers", "numKvHeads", "headDim", "valueHeadDim", "pageSize", "maxPages", "maxBytes"])(
    "%s is a whole number of at least 1",
    (name) => {
      for (const value of name === "maxBytes" ? bad.filter((x) => x !== 2 ** 31) : bad) {
        const limit = name === "maxBytes" ? {} : { maxPages: 4 };
        expect(() => new KvCache({ ...sizes, ...limit, [name]: value })).toThrow(ArgumentError);
      }
    },
  );
  test("a slot is an int32, so pages times tokens stay below 2^31", () => {
    expect(() => new KvCache({ ...sizes, pageSize: 2 ** 16, maxPages: 2 ** 15 })).toThrow(ArgumentError);
  });
  test.each(["int32", "float8", "toString", null])("dtype %p is refused", (dtype) => {
    expect(() => new KvCache({ ...sizes, maxPages: 4, dtype: dtype as never })).toThrow(DTypeError);
  });
  test("an unknown engine is refused", () => {
    expect(() => new KvCache({ ...sizes, maxPages: 4, engine: "abacus" })).toThrow(DeviceError);
  });
  test("a cache that does not fit in memory throws and keeps nothing", () => {
    const before = memoryUsage();
    expect(() => new KvCache({ ...sizes, headDim: 2 ** 30, numKvHeads: 2 ** 10, maxPages: 1 })).toThrow(
      OutOfMemoryError,
    );
    expect(memoryUsage().bytes).toBe(before.bytes);
    expect(memoryUsage().storages).toBe(before.storages);
  });
  test.each(["float64", "float32", "float16", "bfloat16"] as const)("stores %s", (dtype) => {
    using cache = poisonedCache({ dtype });
    using sequence = cache.open();
    append(cache, [[sequence, idsFrom(0, 11)]]);
    for (const layer of [0, 1])
      expect(contents(cache, sequence, layer)).toEqual(expected(cache, idsFrom(0, 11), layer));
  });
  test("rows of another float dtype are converted at the store", () => {
    using cache = poisonedCache({ dtype: "float16", layers: 1 });
    using sequence = cache.open();
    using step = cache.reserve([{ sequence, tokens: 1 }]);
    using k = zeros([1, 2, 3], { engine: "portable" });
    using v = zeros([1, 2, 2], { engine: "portable" });
    k.data.fill(1 / 3);
    step.write(0, k, v);
    step.commit();
    expect(contents(cache, sequence, 0).k).toEqual(new Array(6).fill(Math.f16round(1 / 3)));
  });
});
describe("stats", () => {
  test("count pages, tokens, steps and the share of rows that lie idle", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    append(cache, [[sequence, idsFrom(0, 5)]]);
    using step = cache.reserve([{ sequence, tokens: 4 }]);
    expect(step.tokens).toBe(4);
    expect(cache.stats()).toMatchObject({
      totalPages: 12,
      freePages: 9,
      usedPages: 3,
      tokens: 5,
      sequences: 1,
      openSteps: 1,
      waste: 1 - 5 / 12,
    });
  });
  test("bytes are what the cache has allocated, with a table open or idle", () => {
    const before = memoryUsage().bytes;
    using cache = poisonedCache();
    using sequence = cache.open();
    expect(memoryUsage().bytes - before).toBe(cache.stats().bytes);
    using step = cache.reserve([{ sequence, tokens: 40 }]);
    expect(step.isOpen).toBe(true);
    expect(memoryUsage().bytes - before).toBe(cache.stats().bytes);
  });
  test("at a mean length of 756 and pages of 64, less than 4 % of the rows lie idle", () => {
    using cache = poisonedCache({
      layers: 1,
      numKvHeads: 1,
      headDim: 1,
      valueHeadDim: 1,
      pageSize: 64,
      maxPages: 1000,
    });
    // 64 lengths around 756 that take every remainder of 64 once: 31.5 rows of 788 are idle on average
    const lists = idsFrom(0, 64).map((i) => [cache.open(), idsFrom(0, 725 + i)] as const);
    append(cache, lists);
    expect(cache.stats().tokens / 64).toBeCloseTo(756.5);
    expect(cache.stats().waste).toBeLessThan(0.04);
  });
});
describe("reset", () => {
  test("is refused while a sequence or a step is open", () => {
    using cache = poisonedCache();
    const sequence = cache.open();
    expect(() => cache.reset()).toThrow(StateError);
    sequence.release();
    const step = cache.reserve([]);
    expect(() => cache.reset()).toThrow(StateError);
    step.cancel();
    cache.reset();
  });
  test("puts the free pages back in their first order", () => {
    using cache = poisonedCache();
    const [a, b] = [cache.open(), cache.open()] as const;
    append(cache, [
      [a, idsFrom(0, 9)],
      [b, idsFrom(0, 9)],
    ]);
    a.release();
    b.release();
    cache.reset();
    expect(Array.from(poolOf(cache).freePages())).toEqual(idsFrom(1, 12));
  });
});
describe("a disposed cache", () => {
  test("has freed all memory, whatever was open; disposing again does nothing", () => {
    const before = memoryUsage();
    const cache = poisonedCache();
    const [a, b] = [cache.open(), cache.open()] as const;
    append(cache, [
      [a, idsFrom(0, 9)],
      [b, idsFrom(0, 9)],
    ]);
    const steps = [a, b].map((sequence) => cache.reserve([{ sequence, tokens: 3 }]));
    cache[Symbol.dispose]();
    cache[Symbol.dispose]();
    expect(memoryUsage().bytes).toBe(before.bytes);
    expect(memoryUsage().storages).toBe(before.storages);
    for (const step of steps) step[Symbol.dispose]();
    for (const sequence of [a, b]) sequence[Symbol.dispose]();
  });
  test("refuses every use, also through its handles", () => {
    const cache = poisonedCache();
    const sequence = cache.open();
    const step = cache.reserve([{ sequence, tokens: 1 }]);
    using k = zeros([1, 2, 3], { engine: "portable" });
    cache[Symbol.dispose]();
    for (const use of [
      () => cache.open(),
      () => cache.reserve([]),
      () => cache.check(),
      () => cache.stats(),
      () => cache.reset(),
      () => sequence.truncate(0),
      () => sequence.release(),
      () => step.commit(),
      () => step.cancel(),
      () => step.positions,
      () => step.view(0),
      () => step.write(0, k, k),
    ]) {
      expect(use).toThrow(DisposedError);
    }
  });
});
describe("known orders of pages", () => {
  test("a prefill of 55 tokens in pages of 16 takes 1, 2, 3, 4, and the next sequence 5", () => {
    using cache = poisonedCache({ pageSize: 16, maxPages: 10 });
    const [a, b] = [cache.open(), cache.open()] as const;
    append(cache, [[a, idsFrom(0, 55)]]);
    append(cache, [[b, idsFrom(0, 7)]]);
    expect([Array.from(a.pages), Array.from(b.pages)]).toEqual([[1, 2, 3, 4], [5]]);
  });
  test("10 pages of 16: after 87 and 48 tokens were freed the order is 10, 6, 5, 4, 3, 2, 1, 9, 8, 7", () => {
    using cache = poisonedCache({ pageSize: 16, maxPages: 10 });
    const [a, b] = [cache.open(), cache.open()] as const;
    append(cache, [[a, idsFrom(0, 87)]]);
    append(cache, [[b, idsFrom(0, 48)]]);
    a.release();
    b.release();
    expect(Array.from(poolOf(cache).freePages())).toEqual([10, 6, 5, 4, 3, 2, 1, 9, 8, 7]);
  });
});
