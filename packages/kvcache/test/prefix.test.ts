import { ArgumentError, type Engine, OutOfMemoryError } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { type KvCache, type PrefixMatch, type Sequence, StateError } from "../src/index.ts";
import { append, contents, expected, faulty, idsFrom, poisonedCache, poolOf, usage } from "./fixtures.ts";

const cacheOf = (maxPages: number, pageSize = 16, more = {}): KvCache =>
  poisonedCache({ layers: 1, numKvHeads: 1, headDim: 2, maxPages, pageSize, prefixes: true, ...more });
/** Computes ids from scratch or from the longest prefix; returns the sequence and the tokens that were found. */
function run(cache: KvCache, ids: readonly number[], options = {}): { sequence: Sequence; found: number } {
  using match = cache.match(ids, options);
  const found = match.length;
  const sequence = cache.open({ match });
  append(cache, [[sequence, ids.slice(found)]]);
  return { sequence, found };
}
const evictionOrder = (cache: KvCache): number[] => Array.from(poolOf(cache).peek(99));

describe("known answers", () => {
  // vLLM, tests/v1/core/test_prefix_caching.py, test_prefill: 11 blocks, the null block among them
  test("55 tokens take pages 1-4; 48 of them again hit 1-3; freed, tails go before heads", () => {
    using cache = cacheOf(10);
    const common = idsFrom(100, 48);
    const a = run(cache, [...common, ...idsFrom(0, 7)]);
    expect(Array.from(a.sequence.pages)).toEqual([1, 2, 3, 4]);
    const b = run(cache, [...common, ...idsFrom(50, 5)]);
    expect(b.found).toBe(48);
    expect(Array.from(b.sequence.pages)).toEqual([1, 2, 3, 5]);
    a.sequence.release();
    b.sequence.release();
    expect(evictionOrder(cache)).toEqual([6, 7, 8, 9, 10, 4, 5, 3, 2, 1]);
    cache.check();
  });
  // the same file, test_evict
  test("87 and 48 tokens freed: order 10,6,5,4,3,2,1,9,8,7; 35 tokens then hit 1,2 and leave 7", () => {
    using cache = cacheOf(10);
    const ids = idsFrom(0, 87);
    const [a, b] = [run(cache, ids), run(cache, idsFrom(200, 48))];
    a.sequence.release();
    b.sequence.release();
    expect(evictionOrder(cache)).toEqual([10, 6, 5, 4, 3, 2, 1, 9, 8, 7]);
    const c = run(cache, [...ids.slice(0, 32), ...idsFrom(300, 3)]);
    expect(c.found).toBe(32);
    expect(Array.from(c.sequence.pages)).toEqual([1, 2, 10]);
    expect(poolOf(cache).available).toBe(7);
    cache.check();
  });
  test("failing for lack of pages with 6 hits leaves the hits' references and everything else", () => {
    using cache = cacheOf(10);
    const ids = idsFrom(0, 96);
    run(cache, ids).sequence.release();
    const other = run(cache, idsFrom(500, 48)).sequence; // 3 pages, so that one is left
    using match = cache.match([...ids, ...idsFrom(700, 40)]);
    using sequence = cache.open({ match });
    expect(sequence.length).toBe(96);
    const before = usage(cache);
    const references = Array.from({ length: 11 }, (_, page) => poolOf(cache).references(page));
    expect(() => cache.reserve([{ sequence, tokens: 40 }])).toThrow(OutOfMemoryError);
    expect(Array.from({ length: 11 }, (_, page) => poolOf(cache).references(page))).toEqual(references);
    expect(usage(cache)).toEqual(before);
    cache.check();
    other.release();
  });
  test("reset while a match is open is refused; afterwards nothing is found", () => {
    using cache = cacheOf(10);
    run(cache, idsFrom(0, 20)).sequence.release();
    const match = cache.match(idsFrom(0, 20));
    expect(() => cache.reset()).toThrow(StateError);
    match[Symbol.dispose]();
    cache.reset();
    expect(cache.match(idsFrom(0, 20)).length).toBe(0);
    expect(evictionOrder(cache)).toEqual(idsFrom(1, 10));
    cache.check();
  });
  test("branches share what they have in common, and splitting keeps it", () => {
    using cache = cacheOf(12, 2);
    const [a, b] = [run(cache, [1, 2, 3, 4, 5, 6, 7, 8]), run(cache, [1, 2, 9, 10])];
    expect(b.found).toBe(2);
    expect(cache.stats().prefixes!.blocks * 2).toBe(10);
    expect(run(cache, [1, 2, 3, 4, 5, 6, 7, 8, 9]).found).toBe(8);
    expect(run(cache, [1, 2, 9, 10, 1]).found).toBe(4);
    expect([a.found, cache.stats().prefixes!.blocks * 2]).toEqual([0, 10]);
  });
  test("equal blocks at different positions have different keys", () => {
    using cache = cacheOf(12, 2);
    run(cache, [5, 6, 5, 6, 5, 6]);
    const keys = cache.prefixes().map(({ key }) => key);
    expect(new Set(keys).size).toBe(3);
    expect(run(cache, [5, 6, 5, 6, 7]).found).toBe(4);
  });
});

describe("match", () => {
  test("leaves at least one token to compute", () => {
    using cache = cacheOf(12, 4);
    run(cache, idsFrom(0, 8));
    expect(cache.match(idsFrom(0, 8)).length).toBe(4);
    expect(cache.match(idsFrom(0, 9)).length).toBe(8);
    expect(cache.match([]).length).toBe(0);
    expect(cache.match([0]).length).toBe(0);
  });
  test("finds blocks only once every layer has written and the step is committed", () => {
    using cache = poisonedCache({ prefixes: true });
    const ids = idsFrom(0, 8);
    using sequence = cache.open();
    append(cache, [[sequence, ids.slice(0, 3)]]);
    expect(cache.match(ids).length).toBe(0);
    const step = cache.reserve([{ sequence, tokens: 5 }]);
    expect(() => step.commit(ids.slice(3))).toThrow(StateError);
    expect(cache.match(ids).length).toBe(0);
    step.cancel();
    append(cache, [[sequence, ids.slice(3)]]);
    expect(cache.match(ids).length).toBe(4);
    cache.check();
  });
  test("rows found are the rows written", () => {
    using cache = poisonedCache({ prefixes: true });
    const ids = idsFrom(0, 9);
    run(cache, ids).sequence.release();
    const { sequence, found } = run(cache, [...ids.slice(0, 8), 77]);
    expect(found).toBe(8);
    for (const layer of [0, 1])
      expect(contents(cache, sequence, layer)).toEqual(expected(cache, sequence.tokenIds, layer));
    expect(Array.from(sequence.tokenIds)).toEqual([...ids.slice(0, 8), 77]);
  });
  test("takes the first tokens of a further block where asked, and copies its rows before adding", () => {
    using cache = poisonedCache({ prefixes: true });
    const first = run(cache, idsFrom(0, 8)).sequence;
    const ids = [0, 1, 2, 3, 4, 5, 60, 61, 62];
    expect(cache.match(ids).length).toBe(4);
    using match = cache.match(ids, { partial: true });
    expect(match.length).toBe(6);
    using sequence = cache.open({ match });
    expect(Array.from(sequence.pages)).toEqual(Array.from(first.pages));
    cache.check();
    append(cache, [[sequence, ids.slice(6)]]);
    expect(sequence.pages[0]).toBe(first.pages[0]!);
    expect(sequence.pages[1]).not.toBe(first.pages[1]!);
    for (const layer of [0, 1]) {
      expect(contents(cache, first, layer)).toEqual(expected(cache, idsFrom(0, 8), layer));
      expect(contents(cache, sequence, layer)).toEqual(expected(cache, ids, layer));
    }
    cache.check();
  });
  test("of several further blocks takes the one that agrees longest", () => {
    using cache = cacheOf(12, 4);
    for (const block of [
      [1, 9, 9, 9],
      [1, 2, 3, 9],
      [1, 2, 9, 9],
    ])
      run(cache, block);
    expect(cache.match([1, 2, 3, 4], { partial: true }).length).toBe(3);
    expect(cache.match([1, 2], { partial: true }).length).toBe(1);
    expect(cache.match([7, 2, 3, 4], { partial: true }).length).toBe(0);
  });
  test("a block without known ids is not published, nor what follows it", () => {
    using cache = cacheOf(12, 2);
    using sequence = cache.open();
    append(cache, [[sequence, [1, 2]]]);
    using step = cache.reserve([{ sequence, tokens: 2 }]);
    step.markWritten();
    step.commit();
    append(cache, [[sequence, [5, 6]]]);
    expect(cache.stats().prefixes!.blocks).toBe(1);
    cache.check();
  });
  test("two that compute the same block at once: the first is published, the other's page stays its own", () => {
    using cache = cacheOf(12, 4);
    const [a, b] = [cache.open(), cache.open()] as const;
    append(cache, [
      [a, idsFrom(0, 5)],
      [b, idsFrom(0, 5)],
    ]);
    expect(cache.stats().prefixes!.blocks).toBe(1);
    append(cache, [[b, idsFrom(5, 4)]]); // a child of the other's block
    expect(run(cache, idsFrom(0, 9)).found).toBe(8);
    a.release();
    b.release();
    cache.check();
  });
  test("when the first's page is evicted, the other publishes its own", () => {
    using cache = cacheOf(4, 4);
    const [a, b] = [cache.open(), cache.open()] as const;
    append(cache, [
      [a, idsFrom(0, 4)],
      [b, idsFrom(0, 4)],
    ]);
    a.release();
    append(cache, [[b, idsFrom(4, 4)]]);
    run(cache, idsFrom(50, 8)).sequence.release(); // on the last free page and a's
    expect(cache.match(idsFrom(0, 9)).length).toBe(0);
    cache.check();
    append(cache, [[b, idsFrom(8, 4)]]);
    expect(cache.match(idsFrom(0, 13)).length).toBe(12);
    cache.check();
  });
  test.each([[[-1]], [[1.5]], [[NaN]], [[2 ** 31]], [["1"]]])("ids %p are refused", (ids) => {
    using cache = cacheOf(12, 4);
    expect(() => cache.match(ids as number[])).toThrow(ArgumentError);
  });
  test("a cache that keeps no prefixes says so", () => {
    using cache = cacheOf(12, 4, { prefixes: false });
    for (const call of [
      () => cache.match([1]),
      () => cache.events(),
      () => cache.prefixes(),
      () => cache.invalidate(),
    ])
      expect(call).toThrow(StateError);
    expect(cache.stats().prefixes).toBeUndefined();
  });
});

describe("a step that fails", () => {
  test("evicts nothing, at each call of the engine that can fail", () => {
    const { engine, arm, fired } = faulty();
    let failures = 0;
    for (let n = 1; ; n++) {
      using cache = cacheOf(40, 4, { engine });
      run(cache, idsFrom(0, 160)).sequence.release();
      const [before, order] = [cache.prefixes(), evictionOrder(cache)];
      using sequence = cache.open();
      arm(n);
      try {
        cache.reserve([{ sequence, tokens: 150 }]).cancel();
      } catch {
        failures++;
      }
      if (!fired()) break;
      expect(cache.prefixes()).toEqual(before);
      expect(evictionOrder(cache)).toEqual(order);
      cache.check();
    }
    expect(failures).toBeGreaterThan(0);
  });
  /** 3 cached pages, and a sequence of 6 tokens with its forks, of which only these have a step: both copy the tail. */
  function withForks(maxPages: number, engine: Engine): { cache: KvCache; forks: Sequence[] } {
    const cache = cacheOf(maxPages, 4, { engine });
    run(cache, idsFrom(0, 12)).sequence.release();
    const forks = run(cache, idsFrom(50, 6)).sequence.fork(2);
    return { cache, forks };
  }
  const seen = (cache: KvCache, forks: readonly Sequence[]): unknown =>
    [cache.prefixes(), evictionOrder(cache), usage(cache), forks.map(({ pages }) => pages)] as const;
  test("in a copy evicts nothing, as long as there are free pages for the copies", () => {
    const { engine, arm } = faulty();
    let failures = 0;
    for (let n = 1; ; n++) {
      const { cache, forks } = withForks(8, engine);
      const requests = forks.map((sequence) => ({ sequence, tokens: 10 })); // 2 copies and 4 pages, of which 3 are free
      const before = seen(cache, forks);
      arm(n);
      try {
        cache.reserve(requests).cancel();
      } catch {
        failures++;
      }
      arm(Infinity);
      if (failures < n) {
        expect(cache.stats().prefixes!.evictedPages).toBe(3);
        cache[Symbol.dispose]();
        break;
      }
      expect(seen(cache, forks)).toEqual(before);
      for (const fork of forks) expect(contents(cache, fork, 0)).toEqual(expected(cache, idsFrom(50, 6), 0));
      cache.check();
      cache[Symbol.dispose]();
    }
    expect(failures).toBe(2 * 2 + 1); // keys and values of two copies, and the table
  });
  test("in a copy for which no page was free loses that page's prefix alone", () => {
    const { engine, arm } = faulty();
    const { cache, forks } = withForks(5, engine);
    cache.reserve(forks.map((sequence) => ({ sequence, tokens: 0 }))).cancel(); // the table's memory is there
    const before = cache.prefixes();
    arm(2);
    expect(() => cache.reserve([{ sequence: forks[0]!, tokens: 6 }])).toThrow("no memory");
    arm(Infinity);
    expect(cache.stats()).toMatchObject({ freePages: 1, cachedPages: 2, prefixes: { evictedPages: 1 } });
    expect(before.length - cache.prefixes().length).toBe(1);
    expect(run(cache, idsFrom(0, 9)).found).toBe(8);
    expect(contents(cache, forks[0]!, 0)).toEqual(expected(cache, idsFrom(50, 6), 0));
    cache.check();
    cache[Symbol.dispose]();
  });
});

describe("a match", () => {
  const setUp = (): { cache: KvCache; match: PrefixMatch } => {
    const cache = cacheOf(4, 2);
    run(cache, [1, 2, 3, 4]).sequence.release();
    return { cache, match: cache.match([1, 2, 3, 4, 5]) };
  };
  test("keeps its pages while others take all the rest", () => {
    const { cache, match } = setUp();
    expect(cache.stats().pinnedPages).toBe(2);
    using other = cache.open();
    append(cache, [[other, [7, 7, 8, 8]]]);
    expect(() => cache.reserve([{ sequence: other, tokens: 1 }])).toThrow(OutOfMemoryError);
    cache.check();
    using sequence = cache.open({ match });
    expect(contents(cache, sequence, 0)).toEqual(expected(cache, [1, 2, 3, 4], 0));
    cache.check();
  });
  test("lets them go when dropped, tail before head", () => {
    const { cache, match } = setUp();
    match[Symbol.dispose]();
    match[Symbol.dispose]();
    expect(evictionOrder(cache)).toEqual([3, 4, 2, 1]);
    expect(() => cache.open({ match })).toThrow(StateError);
    cache.check();
  });
  test("is used once", () => {
    const { cache, match } = setUp();
    using _ = cache.open({ match });
    expect(match.isOpen).toBe(false);
    expect(() => cache.open({ match })).toThrow(StateError);
    cache.check();
  });
  test("belongs to its cache and its owner", () => {
    const { cache, match } = setUp();
    expect(() => cacheOf(4, 2).open({ match })).toThrow(ArgumentError);
    expect(() => cache.open({ match, namespace: "a" })).toThrow(ArgumentError);
    expect(() => cache.open({ match: {} as PrefixMatch })).toThrow(ArgumentError);
    expect(match.isOpen).toBe(true);
  });
  test("may be open when the cache is disposed", () => {
    const { cache, match } = setUp();
    cache[Symbol.dispose]();
    match[Symbol.dispose]();
    expect(match.isOpen).toBe(false);
  });
});

describe("a fork", () => {
  test("publishes what it goes on with behind the prefix that it shares, whatever the other does", () => {
    using cache = cacheOf(20, 4);
    const { sequence } = run(cache, [1, 2, 3, 4]);
    const [fork] = sequence.fork() as [Sequence];
    append(cache, [[sequence, [5, 6, 7, 8]]]);
    append(cache, [[fork, [9, 10, 11, 12]]]);
    for (const tail of [
      [5, 6, 7, 8],
      [9, 10, 11, 12],
    ]) {
      using match = cache.match([1, 2, 3, 4, ...tail, 0]);
      expect(match.length).toBe(8);
    }
    cache.check();
  });
});

describe("truncation", () => {
  test("unpublishes a block that becomes partial and is the sequence's alone, and what follows it", () => {
    using cache = cacheOf(12, 4);
    const { sequence } = run(cache, idsFrom(0, 12));
    sequence.truncate(6);
    expect(cache.match(idsFrom(0, 13)).length).toBe(4);
    const [, page] = sequence.pages;
    append(cache, [[sequence, [90]]]);
    expect(sequence.pages[1]).toBe(page!); // written in place
    cache.check();
  });
  test("leaves it where another sequence has it, and writes to a copy", () => {
    using cache = cacheOf(12, 4);
    const a = run(cache, idsFrom(0, 12)).sequence;
    const b = run(cache, idsFrom(0, 13)).sequence;
    b.truncate(6);
    append(cache, [[b, [90, 91]]]);
    expect(b.pages[1]).not.toBe(a.pages[1]!);
    expect(cache.match(idsFrom(0, 13)).length).toBe(12);
    expect(cache.match([...idsFrom(0, 6), 90, 91, 0]).length).toBe(8);
    expect(contents(cache, a, 0)).toEqual(expected(cache, idsFrom(0, 12), 0));
    cache.check();
  });
  test("leaves it where a match has it, and writes to a copy", () => {
    using cache = cacheOf(12, 4);
    const { sequence } = run(cache, idsFrom(0, 8));
    using match = cache.match(idsFrom(0, 9));
    sequence.truncate(6);
    append(cache, [[sequence, [90, 91]]]);
    using other = cache.open({ match });
    expect(contents(cache, other, 0)).toEqual(expected(cache, idsFrom(0, 8), 0));
    cache.check();
  });
  test("at the end of a block keeps it", () => {
    using cache = cacheOf(12, 4);
    const { sequence } = run(cache, idsFrom(0, 12));
    sequence.truncate(8);
    expect(cache.match(idsFrom(0, 13)).length).toBe(12); // the third is cached
    append(cache, [[sequence, idsFrom(50, 4)]]);
    expect(cache.match([...idsFrom(0, 8), ...idsFrom(50, 5)]).length).toBe(12);
    cache.check();
  });
  test("crop to 0 keeps nothing", () => {
    using cache = cacheOf(12, 4);
    const { sequence } = run(cache, idsFrom(0, 12));
    sequence.truncate(0);
    append(cache, [[sequence, idsFrom(70, 8)]]);
    expect(cache.match(idsFrom(70, 9)).length).toBe(8);
    cache.check();
  });
});
