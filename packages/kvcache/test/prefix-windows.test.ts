import { describe, expect, test } from "bun:test";
import { type GroupOptions, type KvCache, NULL_PAGE, type Sequence } from "../src/index.ts";
import { append, contents, expected, idsFrom, poisonedGroups, poolOf } from "./fixtures.ts";

const shape = { numKvHeads: 1, headDim: 2 };
/** A group with all tokens, and one that sees 4 with pages half as large. */
function cacheOf({
  full = {},
  local = {},
  draftMargin = 0,
}: {
  full?: Partial<GroupOptions>;
  local?: Partial<GroupOptions>;
  draftMargin?: number;
} = {}): KvCache {
  return poisonedGroups({
    groups: [
      { ...shape, layers: [0], pageSize: 4, maxPages: 20, ...full },
      { ...shape, layers: [1], pageSize: 2, maxPages: 20, window: 4, ...local },
    ],
    draftMargin,
    prefixes: true,
  });
}
function compute(cache: KvCache, ids: readonly number[], chunk = ids.length): Sequence {
  const sequence = cache.open();
  for (let at = 0; at < ids.length; at += chunk) append(cache, [[sequence, ids.slice(at, at + chunk)]]);
  return sequence;
}
const found = (cache: KvCache, ids: readonly number[], partial = false): number => {
  using match = cache.match(ids, { partial });
  return match.length;
};
/** Takes and gives back so many pages of a group, which evicts what is cached there. */
function evict(cache: KvCache, group: number, pages: number): void {
  const pool = poolOf(cache, group);
  const taken = Array.from({ length: pages }, () => pool.take());
  for (const page of taken) pool.release(page);
}

describe("prefixes of groups with windows", () => {
  test("list the null page behind the window, and hold what the next query sees", () => {
    using cache = cacheOf();
    compute(cache, idsFrom(0, 13)).release();
    using match = cache.match(idsFrom(0, 13));
    using sequence = cache.open({ match });
    expect(sequence.length).toBe(12);
    expect(Array.from(sequence.pagesOf(0)).filter((page) => page === NULL_PAGE)).toEqual([]);
    expect(Array.from(sequence.pagesOf(1), (page) => page > 0)).toEqual([
      false,
      false,
      false,
      false,
      true,
      true,
    ]);
    cache.check();
    append(cache, [[sequence, [12]]]);
    expect(contents(cache, sequence, 0)).toEqual(expected(cache, idsFrom(0, 13), 0));
    expect(contents(cache, sequence, 1).k.slice(2 * 10)).toEqual(
      expected(cache, idsFrom(0, 13), 1).k.slice(2 * 10),
    );
    cache.check();
  });
  test("keep a page that somebody else has given back to a block by its own priority", () => {
    using cache = cacheOf();
    const open = (priority: number): Sequence => {
      const sequence = cache.open({ priority });
      append(cache, [[sequence, idsFrom(0, 13)]]);
      return sequence;
    };
    open(80).release();
    evict(cache, 1, 20);
    const again = open(10); // computes all of it, and gives the blocks their local pages back
    expect(cache.prefixes().length).toBe(3);
    const priorities = Array.from(poolOf(cache, 1).cachedPages(), (page) => poolOf(cache, 1).priority(page));
    expect(priorities).toEqual(new Array(priorities.length).fill(10));
    expect(priorities.length).toBeGreaterThan(0);
    cache.check();
    again.release();
    cache.check();
  });
  test("are as long as the last window that is still there", () => {
    using cache = cacheOf();
    compute(cache, idsFrom(0, 13)).release();
    // pages left the window in the order 5, 4, 3, 2, 1, and 6 when the sequence ended; page 7 was not full
    const pool = poolOf(cache, 1);
    expect(Array.from(pool.cachedPages())).toEqual([5, 4, 3, 2, 1, 6]);
    pool.claim(5);
    expect(cache.match(idsFrom(0, 13))).toMatchObject({ length: 8 });
    pool.release(5);
    pool.claim(2);
    expect(cache.match(idsFrom(0, 13))).toMatchObject({ length: 8 });
    pool.release(2);
    const { blocks, evictedPages } = cache.stats().prefixes!;
    expect([blocks, evictedPages]).toEqual([3, 2]);
  });
  test("are not found without any window of theirs", () => {
    using cache = cacheOf();
    compute(cache, idsFrom(0, 13)).release();
    evict(cache, 1, 20);
    expect(found(cache, idsFrom(0, 13))).toBe(0);
    expect(cache.stats().prefixes!.blocks).toBe(3); // the full group still has them
    cache.check();
  });
  test("get lost pages again from a sequence that computes them anew", () => {
    using cache = cacheOf();
    compute(cache, idsFrom(0, 13)).release();
    evict(cache, 1, 20);
    compute(cache, idsFrom(0, 13)).release();
    expect(found(cache, idsFrom(0, 13))).toBe(12);
    expect(cache.stats().prefixes!.blocks).toBe(3);
    cache.check();
  });
  test("go in all groups when a group without a window loses a page", () => {
    using cache = cacheOf();
    compute(cache, idsFrom(0, 13)).release();
    evict(cache, 0, 20);
    expect(cache.stats().prefixes!.blocks).toBe(0);
    expect(poolOf(cache, 1).free).toBe(20);
    cache.check();
  });
  test("are published while they pass through the window, chunk by chunk", () => {
    using cache = cacheOf();
    const sequence = compute(cache, idsFrom(0, 17), 3);
    expect(cache.stats().prefixes!.blocks).toBe(4);
    expect(found(cache, idsFrom(0, 17))).toBe(16);
    sequence.release();
    expect(found(cache, idsFrom(0, 17))).toBe(16);
    cache.check();
  });
  test("need their sinks", () => {
    using cache = cacheOf({ local: { sinks: 3, window: 4 } });
    compute(cache, idsFrom(0, 17)).release();
    using match = cache.match(idsFrom(0, 17));
    using sequence = cache.open({ match });
    const local = Array.from(sequence.pagesOf(1), (page) => page > 0);
    expect(local).toEqual([true, true, false, false, false, false, true, true]);
    cache.check();
    sequence.release();
    evict(cache, 1, 20 - 8 + 6); // all but the two used longest ago... the sinks go last
    cache.check();
    evict(cache, 1, 20);
    expect(found(cache, idsFrom(0, 17))).toBe(0);
    cache.check();
  });
  test("hold the draft margin too, so that as much can be taken back", () => {
    using cache = cacheOf({ draftMargin: 2 });
    compute(cache, idsFrom(0, 13)).release();
    using match = cache.match(idsFrom(0, 13));
    using sequence = cache.open({ match });
    sequence.truncate(10);
    cache.check();
    expect(contents(cache, sequence, 0)).toEqual(expected(cache, idsFrom(0, 10), 0));
  });
  test("end in part of a block, page by page in the group with smaller pages", () => {
    using cache = cacheOf();
    const first = compute(cache, idsFrom(0, 12));
    const ids = [...idsFrom(0, 11), 99, 98];
    using match = cache.match(ids, { partial: true });
    expect(match.length).toBe(11);
    using sequence = cache.open({ match });
    append(cache, [[sequence, ids.slice(11)]]);
    expect(contents(cache, sequence, 0)).toEqual(expected(cache, ids, 0));
    expect(contents(cache, sequence, 1).v.slice(2 * 10)).toEqual(expected(cache, ids, 1).v.slice(2 * 10));
    expect(contents(cache, first, 0)).toEqual(expected(cache, idsFrom(0, 12), 0));
    cache.check();
  });
  test("end in part of a block only where the window of that place is there", () => {
    using cache = cacheOf({ local: { window: 2 } });
    const sequence = compute(cache, idsFrom(0, 12), 1); // each page goes as soon as the next has begun
    sequence.release();
    for (let n = 1; n <= 4; n++) {
      const length = found(cache, [...idsFrom(0, 8 + n), 99], true);
      using match = cache.match([...idsFrom(0, 8 + n), 99], { partial: true });
      using again = cache.open({ match });
      expect(again.length).toBe(length);
      expect(contents(cache, again, 1).k.slice(-2)).toEqual(expected(cache, again.tokenIds, 1).k.slice(-2));
      append(cache, [[again, [5]]]);
      cache.check();
    }
  });
  test("of windows alone go when nothing of them is left", () => {
    using cache = poisonedGroups({
      groups: [{ ...shape, layers: [0], pageSize: 2, maxPages: 10, window: 3 }],
      prefixes: true,
    });
    compute(cache, idsFrom(0, 9)).release();
    expect(found(cache, idsFrom(0, 9))).toBe(8);
    evict(cache, 0, 10);
    expect(cache.stats().prefixes!.blocks).toBe(0);
    cache.check();
  });
});
