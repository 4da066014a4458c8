/** Sequences that share pages until they part. */
import { ArgumentError, DisposedError, fill, OutOfMemoryError, toFloat64 } from "@heed/tensor";
import { floatView } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type KvCache, type Sequence, StateError } from "../src/index.ts";
import {
  append,
  contents,
  expected,
  faulty,
  idsFrom,
  poisonedCache,
  poolOf,
  usage,
  writeLayer,
} from "./fixtures.ts";

const pagesOf = (...sequences: Sequence[]): number[][] => sequences.map((s) => Array.from(s.pages));
function holds(cache: KvCache, sequence: Sequence, ids: readonly number[]): void {
  expect(Array.from(sequence.tokenIds)).toEqual([...ids]);
  for (const layer of [0, 1]) expect(contents(cache, sequence, layer)).toEqual(expected(cache, ids, layer));
}
/** A cache with a sequence of `tokens` tokens in pages of 4. */
function started(
  tokens: number,
  options: Parameters<typeof poisonedCache>[0] = {},
): { cache: KvCache; parent: Sequence } {
  const cache = poisonedCache({ maxPages: 20, ...options });
  const parent = cache.open();
  append(cache, [[parent, idsFrom(0, tokens)]]);
  return { cache, parent };
}

describe("fork", () => {
  test("takes no page and copies no row: one more reference on each page", () => {
    const { engine, arm, fired } = faulty();
    const { cache, parent } = started(10, { engine });
    arm(1);
    const forks = parent.fork(3);
    expect(fired()).toBe(false); // no call into the engine
    arm(Infinity);
    for (const pages of pagesOf(...forks)) expect(pages).toEqual([1, 2, 3]);
    expect([1, 2, 3].map((page) => poolOf(cache).references(page))).toEqual([4, 4, 4]);
    for (const fork of forks) holds(cache, fork, idsFrom(0, 10));
    cache.check();
    cache[Symbol.dispose]();
  });
  test("of an empty sequence is an empty sequence", () => {
    using cache = poisonedCache();
    const [fork] = cache.open().fork();
    append(cache, [[fork!, [1]]]);
    holds(cache, fork!, [1]);
  });
  test("the first to add gets a copy of the tail's used rows; the other keeps the page", () => {
    const { cache, parent } = started(6);
    const [fork] = parent.fork();
    append(cache, [[fork!, [60]]]);
    expect(pagesOf(parent, fork!)).toEqual([
      [1, 2],
      [1, 3],
    ]);
    append(cache, [[parent, [70, 71]]]);
    expect(pagesOf(parent, fork!)).toEqual([
      [1, 2],
      [1, 3],
    ]);
    holds(cache, parent, [...idsFrom(0, 6), 70, 71]);
    holds(cache, fork!, [...idsFrom(0, 6), 60]);
    cache.check();
    cache[Symbol.dispose]();
  });
  test("rows of the tail that are not in use are not copied", () => {
    const { cache, parent } = started(6);
    const [fork] = parent.fork();
    using step = cache.reserve([{ sequence: fork!, tokens: 1 }]);
    const page = fork!.pages[1]!;
    step.markWritten();
    const { kPages } = floatView(step.view(0));
    using unused = kPages.select(0, 2).slice(1, 2); // [Hkv, 2, D] of the parent's tail
    fill(unused, 7);
    step.cancel();
    cache.reserve([{ sequence: fork!, tokens: 1 }]).cancel();
    const copied = toFloat64(kPages.select(0, page).slice(1, 2));
    expect(Array.from(copied)).toEqual(new Array(2 * 2 * 3).fill(NaN)); // as the page was
    cache[Symbol.dispose]();
  });
  test("a full tail needs no copy", () => {
    const { cache, parent } = started(8);
    const [fork] = parent.fork();
    append(cache, [
      [fork!, [80]],
      [parent, [90]],
    ]);
    expect(pagesOf(parent, fork!)).toEqual([
      [1, 2, 4],
      [1, 2, 3],
    ]);
    expect(cache.stats().usedPages).toBe(4);
    cache[Symbol.dispose]();
  });
  test.each([
    [1, 8],
    [5, 8],
    [11, 3],
    [12, 8],
  ])("a beam over %d tokens, %d wide, occupies the shared pages and a tail each", (tokens, width) => {
    const { cache, parent } = started(tokens);
    const beams = [parent, ...parent.fork(width - 1)];
    const shared = Math.floor(tokens / 4);
    const requests = beams.map((sequence) => ({ sequence, tokens: 1 }));
    using step = cache.reserve(requests);
    expect(cache.stats().usedPages).toBe(shared + width); // not one more while the step is open
    for (const layer of [0, 1]) writeLayer(cache, step, idsFrom(100, width), layer);
    step.commit(idsFrom(100, width));
    expect(cache.stats().usedPages).toBe(shared + width);
    beams.forEach((beam, i) => holds(cache, beam, [...idsFrom(0, tokens), 100 + i]));
    cache.check();
    cache[Symbol.dispose]();
  });
  test("of those who share a tail in one step the longest keeps it, and a cancelled step gives all back", () => {
    const { cache, parent } = started(7);
    const [short, middle] = parent.fork(2) as [Sequence, Sequence];
    short.truncate(5);
    middle.truncate(6);
    const before = [usage(cache), poolOf(cache).freePages(), pagesOf(parent, short, middle)];
    const step = cache.reserve([short, parent, middle].map((sequence) => ({ sequence, tokens: 2 })));
    expect(pagesOf(parent, short, middle).map((pages) => [...pages])).toEqual([
      [1, 2, 5],
      [1, 3],
      [1, 4],
    ]); // copies take their pages first
    cache.check();
    for (const layer of [0, 1]) writeLayer(cache, step, idsFrom(50, 6), layer);
    step.cancel();
    expect([usage(cache), poolOf(cache).freePages(), pagesOf(parent, short, middle)]).toEqual(before);
    holds(cache, short, idsFrom(0, 5));
    holds(cache, middle, idsFrom(0, 6));
    holds(cache, parent, idsFrom(0, 7));
    cache[Symbol.dispose]();
  });
  test("a tail that somebody outside of the step shares is copied by all within", () => {
    const { cache, parent } = started(6);
    const [a, b] = parent.fork(2) as [Sequence, Sequence];
    append(cache, [
      [a, [1]],
      [b, [2]],
    ]);
    expect(pagesOf(parent, a, b).map((pages) => pages[1])).toEqual([2, 3, 4]);
    holds(cache, parent, idsFrom(0, 6));
    cache[Symbol.dispose]();
  });
  test("a tail that an open step has left for a copy is still shared", () => {
    const { cache, parent } = started(6);
    const [fork] = parent.fork() as [Sequence];
    const step = cache.reserve([{ sequence: fork, tokens: 1 }]);
    append(cache, [[parent, [90]]]); // must not write to page 2: the step may be cancelled
    expect(pagesOf(parent, fork)).toEqual([
      [1, 4],
      [1, 3],
    ]);
    cache.check();
    parent.truncate(5);
    append(cache, [[parent, [91]]]);
    step.cancel();
    holds(cache, fork, idsFrom(0, 6));
    holds(cache, parent, [...idsFrom(0, 5), 91]);
    cache.check();
    cache[Symbol.dispose]();
  });
  test("the last of the sharers writes in place again", () => {
    const { cache, parent } = started(6);
    const [fork] = parent.fork() as [Sequence];
    parent.release();
    append(cache, [[fork, [60]]]);
    expect(pagesOf(fork)).toEqual([[1, 2]]);
    cache[Symbol.dispose]();
  });
  test("copies count among the pages that a step needs", () => {
    const { cache, parent } = started(6, { maxPages: 2 });
    const [fork] = parent.fork() as [Sequence];
    const before = usage(cache);
    expect(() => cache.reserve([{ sequence: fork, tokens: 1 }])).toThrow(
      expect.objectContaining({ constructor: OutOfMemoryError, details: { needed: 1, free: 0, total: 2 } }),
    );
    expect(usage(cache)).toEqual(before);
    using look = cache.reserve([{ sequence: fork, tokens: 0 }]); // reading needs none
    expect(look.isOpen).toBe(true);
    cache[Symbol.dispose]();
  });
  test("is refused in an open step, after release, and for what is no number of sequences", () => {
    const { cache, parent } = started(6);
    for (const count of [0, -1, 1.5, NaN, "2", Infinity, 2 ** 40])
      expect(() => parent.fork(count as number)).toThrow(ArgumentError);
    const step = cache.reserve([{ sequence: parent, tokens: 1 }]);
    expect(() => parent.fork()).toThrow(StateError);
    step.cancel();
    parent.release();
    expect(() => parent.fork()).toThrow(DisposedError);
    expect(cache.stats()).toMatchObject({ sequences: 0, usedPages: 0, tokens: 0 });
    cache[Symbol.dispose]();
  });
  test("what becomes of one changes no row of another, in any order of truncating, adding and releasing", () => {
    const move = fc.record({ who: fc.nat({ max: 3 }), keep: fc.nat({ max: 12 }), add: fc.nat({ max: 6 }) });
    fc.assert(
      fc.property(fc.nat({ max: 11 }), fc.array(move, { maxLength: 12 }), (tokens, moves) => {
        const { cache, parent } = started(tokens, { maxPages: 40 });
        const all = [parent, ...parent.fork(3)].map((sequence) => ({ sequence, ids: idsFrom(0, tokens) }));
        moves.forEach(({ who, keep, add }, i) => {
          const { sequence, ids } = all[who]!;
          if (keep < ids.length) {
            sequence.truncate(keep);
            ids.length = keep;
          }
          append(cache, [[sequence, idsFrom(100 * (i + 1), add)]]);
          ids.push(...idsFrom(100 * (i + 1), add));
          for (const { sequence: other, ids: its } of all) holds(cache, other, its);
          cache.check();
        });
        for (const { sequence } of all) sequence.release();
        expect(cache.stats()).toMatchObject({ usedPages: 0, freePages: 40 });
        cache[Symbol.dispose]();
      }),
      { numRuns: 60 },
    );
  });
  test("releases in any order give every page back once", () => {
    fc.assert(
      fc.property(fc.shuffledSubarray([0, 1, 2, 3], { minLength: 4, maxLength: 4 }), (order) => {
        const { cache, parent } = started(10);
        const all = [parent, ...parent.fork(3)];
        append(
          cache,
          all.map((s, i) => [s, idsFrom(50 + i, 3)] as const),
        );
        for (const i of order) {
          all[i]!.release();
          cache.check();
        }
        expect(Array.from(poolOf(cache).freePages()).toSorted((a, b) => a - b)).toEqual(idsFrom(1, 20));
        cache[Symbol.dispose]();
      }),
    );
  });
  test("a copy that fails leaves the step unopened and everything as it was", () => {
    const { engine, arm, fired } = faulty();
    const { cache, parent } = started(6, { engine });
    const forks = parent.fork(2);
    cache.reserve(forks.map((sequence) => ({ sequence, tokens: 1 }))).cancel(); // the table's memory is there
    const before = [usage(cache), poolOf(cache).freePages(), pagesOf(parent, ...forks)];
    const reserve = (): void => cache.reserve(forks.map((sequence) => ({ sequence, tokens: 3 }))).cancel();
    let failures = 0;
    for (let n = 1; ; n++) {
      arm(n);
      try {
        reserve();
        break;
      } catch (error) {
        expect(error).toBeInstanceOf(OutOfMemoryError);
        expect(fired()).toBe(true);
      }
      failures++;
      arm(Infinity);
      cache.check();
      expect([usage(cache), poolOf(cache).freePages(), pagesOf(parent, ...forks)]).toEqual(before);
    }
    arm(Infinity);
    expect(failures).toBe(1 + 2 * 4); // the upload; keys and values of two layers for two copies
    for (const sequence of [parent, ...forks]) holds(cache, sequence, idsFrom(0, 6));
    cache[Symbol.dispose]();
  });
});
