import { OutOfMemoryError } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { type KvCache, type Sequence } from "../src/index.ts";
import { append, contents, expected, idsFrom, poisonedCache, poolOf } from "./fixtures.ts";

const cacheOf = (maxPages: number, more = {}): KvCache =>
  poisonedCache({ maxPages, pageSize: 4, prefixes: true, ...more });
function run(cache: KvCache, ids: readonly number[], options = {}): Sequence {
  using match = cache.match(ids, options);
  const sequence = cache.open({ match });
  append(cache, [[sequence, ids.slice(sequence.length)]]);
  return sequence;
}
function expectRows(cache: KvCache, sequence: Sequence): void {
  for (const layer of [0, 1])
    expect(contents(cache, sequence, layer)).toEqual(expected(cache, sequence.tokenIds, layer));
}

describe("bugs that prefix caches have shipped with", () => {
  test("the pages of a hit are evicted to make room for what follows it", () => {
    using cache = cacheOf(3);
    run(cache, idsFrom(0, 8)).release(); // both pages are cached, and older than anything else
    const sequence = run(cache, idsFrom(0, 11)); // needs the third page
    expectRows(cache, sequence);
    using match = cache.match(idsFrom(0, 12));
    using other = cache.open({ match });
    expect(() => cache.reserve([{ sequence: other, tokens: 4 }])).toThrow(OutOfMemoryError);
    expectRows(cache, sequence);
    cache.check();
  });
  test("an entry still names a page that holds something else by now", () => {
    using cache = cacheOf(2);
    run(cache, idsFrom(0, 8)).release();
    run(cache, idsFrom(50, 8)).release(); // on the same two pages
    expect(cache.match(idsFrom(0, 9)).length).toBe(0);
    const again = run(cache, [...idsFrom(50, 4), 1]);
    expectRows(cache, again);
    cache.check();
  });
  test("a page that was evicted and filled again brings the old entry back", () => {
    using cache = cacheOf(2);
    run(cache, idsFrom(0, 8)).release();
    const live = run(cache, idsFrom(50, 8));
    live.truncate(0);
    append(cache, [[live, idsFrom(70, 8)]]);
    expect([0, 50, 70].map((first) => cache.match(idsFrom(first, 9)).length)).toEqual([0, 0, 8]);
    cache.check();
  });
  test("a step that is cancelled leaves entries for rows that were never committed", () => {
    using cache = cacheOf(4);
    const sequence = cache.open();
    const step = cache.reserve([{ sequence, tokens: 8 }]);
    step.markWritten();
    step.cancel();
    append(cache, [[sequence, [9]]]);
    expect(cache.prefixes()).toEqual([]);
    cache.check();
  });
  test("an adapter and a salt of the same name share entries", () => {
    using cache = cacheOf(8);
    run(cache, idsFrom(0, 8), { adapter: "x" });
    expect(cache.match(idsFrom(0, 9), { namespace: "x" }).length).toBe(0);
    expect(cache.match(idsFrom(0, 9)).length).toBe(0);
  });
  test("a tenant learns by a hit what another has asked", () => {
    using cache = cacheOf(8);
    run(cache, idsFrom(0, 8), { namespace: "a" });
    using match = cache.match(idsFrom(0, 9), { namespace: "b" });
    expect(match.length).toBe(0);
    expect(cache.stats().prefixes).toMatchObject({ hitBlocks: 0 });
  });
  test("a block is found by its tokens alone, wherever it stands", () => {
    using cache = cacheOf(8);
    run(cache, [...idsFrom(0, 4), ...idsFrom(20, 4)]);
    expect(cache.match([...idsFrom(20, 4), 1]).length).toBe(0);
    expect(cache.match([...idsFrom(4, 4), ...idsFrom(20, 4), 1], { partial: true }).length).toBe(0);
  });
  test("rows are written into a page that others find", () => {
    using cache = cacheOf(8);
    const first = run(cache, idsFrom(0, 8));
    const [fork] = first.fork();
    fork!.truncate(6);
    append(cache, [[fork!, [90, 91]]]);
    first.truncate(7);
    append(cache, [[first, [95]]]);
    for (const sequence of [first, fork!]) expectRows(cache, sequence);
    for (const ids of [idsFrom(0, 8), [...idsFrom(0, 6), 90, 91], [...idsFrom(0, 7), 95]])
      expectRows(cache, run(cache, [...ids, 1]));
    cache.check();
  });
  test("pages that a transfer still reads are found, extended and written over", () => {
    using cache = cacheOf(3);
    const sequence = run(cache, idsFrom(0, 8));
    const fence = cache.fence([sequence]);
    sequence.release();
    run(cache, idsFrom(60, 4)).release();
    expect(poolOf(cache).available).toBe(1);
    const hit = run(cache, [...idsFrom(0, 8), 5]); // reading them is fine
    expectRows(cache, hit);
    hit.release();
    expect(poolOf(cache).available).toBe(1);
    fence[Symbol.dispose]();
    expect(poolOf(cache).available).toBe(3);
    cache.check();
  });
  test("freed first, the head of a prefix is evicted before its tail, which then lies unused", () => {
    using cache = cacheOf(4);
    run(cache, idsFrom(0, 16)).release();
    const lengths = [12, 8, 4, 0].map(() => {
      poolOf(cache).take();
      using match = cache.match(idsFrom(0, 17));
      return match.length;
    });
    expect(lengths).toEqual([12, 8, 4, 0]);
  });
  test("pages that a fence held last are evicted head first", () => {
    using cache = cacheOf(4);
    const sequence = run(cache, idsFrom(0, 16));
    const fence = cache.fence([sequence]);
    sequence.release();
    fence[Symbol.dispose]();
    expect(Array.from(poolOf(cache).cachedPages())).toEqual([4, 3, 2, 1]);
  });
});
