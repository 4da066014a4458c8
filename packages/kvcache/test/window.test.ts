/** Groups with windows: what goes back, what stays, and how far one can go back. */
import { ArgumentError } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type GroupOptions, type KvCache, type Sequence, StateError } from "../src/index.ts";
import { append, contents, expected, idsFrom, poisonedGroups, poolOf, usage } from "./fixtures.ts";

const rows = { numKvHeads: 1, headDim: 2, layers: [0], pageSize: 4, maxPages: 40 } as const;
const cacheOf = (group: Partial<GroupOptions>, draftMargin = 0): KvCache =>
  poisonedGroups({ groups: [{ ...rows, ...group }], draftMargin });
const filled = (cache: KvCache, tokens: number): Sequence => {
  const sequence = cache.open();
  append(cache, [[sequence, idsFrom(0, tokens)]]);
  return sequence;
};
/** Positions whose page is there. */
const present = (sequence: Sequence, pageSize = 4): number[] =>
  idsFrom(0, sequence.length).filter((p) => sequence.pages[Math.floor(p / pageSize)] !== 0);

describe("a window", () => {
  test.each([
    [8, { window: 6 }, 0, [1, 2]], // the next query, at 8, sees 3 .. 8
    [8, { window: 5 }, 0, [0, 2]],
    [8, { window: 4 }, 0, [0, 2]],
    [12, { window: 4 }, 0, [0, 0, 3]],
    [12, { window: 1 }, 0, [0, 0, 0]],
    [13, { window: 4, sinks: 1 }, 0, [1, 0, 3, 4]],
    [13, { window: 4, sinks: 5 }, 0, [1, 2, 3, 4]],
    [17, { window: 4, sinks: 5 }, 0, [1, 2, 0, 4, 5]],
    [17, { window: 4 }, 3, [0, 0, 3, 4, 5]],
    [17, { window: 4 }, 8, [0, 2, 3, 4, 5]],
  ] as const)(
    "after %d tokens of %o with a margin of %d the pages are %o",
    (tokens, group, margin, pages) => {
      using cache = cacheOf(group, margin);
      const sequence = filled(cache, tokens);
      expect(Array.from(sequence.pages)).toEqual([...pages]);
      expect(cache.stats().usedPages).toBe(pages.filter((page) => page !== 0).length);
      cache.check();
    },
  );
  test("always keeps sinks and the last W tokens, and at most a page more than those", () => {
    const cases = fc.record({
      window: fc.integer({ min: 1, max: 12 }),
      sinks: fc.nat({ max: 6 }),
      margin: fc.nat({ max: 5 }),
      pageSize: fc.constantFrom(1, 2, 4),
      chunks: fc.array(fc.integer({ min: 1, max: 9 }), { maxLength: 6 }),
    });
    fc.assert(
      fc.property(cases, ({ window, sinks, margin, pageSize, chunks }) => {
        using cache = cacheOf({ window, sinks, pageSize, maxPages: 80 }, margin);
        const sequence = cache.open();
        for (const n of chunks) {
          append(cache, [[sequence, idsFrom(sequence.length, n)]]);
          const { length } = sequence;
          const there = new Set(present(sequence, pageSize));
          for (let p = 0; p < length; p++) {
            if (p < sinks || p > length - margin - window) expect(there.has(p)).toBe(true);
            if (p >= sinks + pageSize - 1 && p <= length - margin - window - pageSize + 1)
              expect(there.has(p)).toBe(false);
          }
          const [seen, should] = [contents(cache, sequence, 0), expected(cache, idsFrom(0, length), 0)];
          for (const p of there)
            expect(seen.k.slice(2 * p, 2 * p + 2)).toEqual(should.k.slice(2 * p, 2 * p + 2));
        }
        cache.check();
        sequence.release();
        expect(cache.stats().freePages).toBe(80);
      }),
      { numRuns: 150 },
    );
  });
  test("a long sequence lives in as many pages as its window needs", () => {
    using cache = cacheOf({ window: 8, maxPages: 4 });
    const sequence = cache.open();
    for (let t = 0; t < 200; t++) append(cache, [[sequence, [t]]]);
    expect(sequence.length).toBe(200);
    expect(cache.stats().usedPages).toBeLessThanOrEqual(3);
    cache.check();
  });
  test("gives pages back at commit, the last one first, and not when a step is cancelled", () => {
    using cache = cacheOf({ window: 4 });
    const sequence = filled(cache, 3);
    const before = [usage(cache), poolOf(cache).freePages()];
    cache.reserve([{ sequence, tokens: 20 }]).cancel();
    expect([usage(cache), poolOf(cache).freePages()]).toEqual(before);
    append(cache, [[sequence, idsFrom(3, 14)]]);
    expect(Array.from(sequence.pages)).toEqual([0, 0, 0, 4, 5]);
    expect(Array.from(poolOf(cache).freePages()).slice(-3)).toEqual([3, 2, 1]);
  });
  test("forks let go of their references each for itself", () => {
    using cache = cacheOf({ window: 4 });
    const parent = filled(cache, 8);
    const [fork] = parent.fork() as [Sequence];
    append(cache, [[fork, idsFrom(50, 8)]]);
    expect(Array.from(parent.pages)).toEqual([0, 2]);
    expect(Array.from(fork.pages)).toEqual([0, 0, 0, 4]);
    expect(poolOf(cache).references(2)).toBe(1);
    parent.release();
    fork.release();
    expect(cache.stats().freePages).toBe(40);
    cache.check();
  });
});
describe("truncating behind a window", () => {
  test("is exact where the window is still there, and a typed error that changes nothing elsewhere", () => {
    using cache = cacheOf({ window: 5, sinks: 2 }, 3);
    const sequence = filled(cache, 22); // keeps from 22 - 3 - 5 + 1 = 15 on: pages 3, 4, 5, and page 0 for the sinks
    expect(Array.from(sequence.pages)).toEqual([1, 0, 0, 4, 5, 6]);
    const before = [usage(cache), poolOf(cache).freePages(), Array.from(sequence.pages)];
    for (const length of [5, 6, 12, 13, 15]) {
      expect(() => sequence.truncate(length)).toThrow(
        expect.objectContaining({
          constructor: StateError,
          details: { length, upTo: 4, from: 16, present: 22 },
        }),
      );
      expect([usage(cache), poolOf(cache).freePages(), Array.from(sequence.pages)]).toEqual(before);
    }
    const [other] = sequence.fork() as [Sequence];
    sequence.truncate(16);
    append(cache, [[sequence, [70]]]);
    expect(Array.from(sequence.pages)).toEqual([1, 0, 0, 4, 7]);
    const seen = contents(cache, sequence, 0).k;
    expect(seen.slice(2 * 12)).toEqual(expected(cache, [...idsFrom(12, 4), 70], 0).k);
    other.truncate(3);
    append(cache, [[other, idsFrom(80, 9)]]);
    expect(contents(cache, other, 0)).toEqual(expected(cache, [...idsFrom(0, 3), ...idsFrom(80, 9)], 0));
    cache.check();
  });
  test("a draft of any length up to the margin can be taken back, and leaves no trace", () => {
    fc.assert(
      fc.property(
        fc.record({
          window: fc.integer({ min: 1, max: 9 }),
          margin: fc.nat({ max: 6 }),
          tokens: fc.integer({ min: 1, max: 40 }),
        }),
        fc.nat({ max: 6 }),
        ({ window, margin, tokens }, draft) => {
          using cache = cacheOf({ window }, margin);
          using never = cacheOf({ window }, margin);
          const [a, b] = [filled(cache, tokens), filled(never, tokens)];
          append(cache, [[a, idsFrom(500, Math.min(draft, margin))]]);
          a.truncate(tokens);
          for (const [of, sequence] of [
            [cache, a],
            [never, b],
          ] as const)
            append(of, [[sequence, idsFrom(700, 3)]]);
          expect(a.tokenIds).toEqual(b.tokenIds);
          // what the next query sees besides itself
          const visible = (of: KvCache, s: Sequence): number[] =>
            contents(of, s, 0).k.slice(2 * Math.max(0, s.length - window + 1));
          expect(visible(cache, a)).toEqual(visible(never, b));
          expect(visible(cache, a).every(Number.isFinite)).toBe(true);
          cache.check();
        },
      ),
      { numRuns: 100 },
    );
  });
  test("to nothing always works, and the window starts anew", () => {
    using cache = cacheOf({ window: 4, sinks: 1 });
    const sequence = filled(cache, 30);
    sequence.truncate(0);
    expect(cache.stats().freePages).toBe(40);
    append(cache, [[sequence, idsFrom(60, 7)]]);
    expect(contents(cache, sequence, 0)).toEqual(expected(cache, idsFrom(60, 7), 0));
    cache.check();
    expect(() => sequence.truncate(8)).toThrow(ArgumentError);
  });
});
