import { ArgumentError, DisposedError, zeros } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { StateError } from "../src/index.ts";
import { append, contents, expected, idsFrom, poisonedCache } from "./fixtures.ts";

const notLengths = [-1, -0.5, 1.5, NaN, Infinity, -Infinity, 2 ** 53, "3", null, undefined, 3n];

const engine = "portable";

describe("a sequence", () => {
  test("begins empty and grows at commit", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    expect([sequence.length, sequence.pages.length, sequence.tokenIds.length]).toEqual([0, 0, 0]);
    append(cache, [[sequence, idsFrom(0, 5)]]);
    append(cache, [[sequence, idsFrom(5, 4)]]);
    expect(sequence.length).toBe(9);
    expect(Array.from(sequence.pages)).toEqual([1, 2, 3]);
    for (const layer of [0, 1])
      expect(contents(cache, sequence, layer)).toEqual(expected(cache, idsFrom(0, 9), layer));
  });
  test("keeps ids, and -1 where none was given", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    const step = (tokens: number, ids?: ArrayLike<number>): void => {
      using open = cache.reserve([{ sequence, tokens }]);
      for (const layer of [0, 1])
        open.write(layer, zeros([tokens, 2, 3], { engine }), zeros([tokens, 2, 2], { engine }));
      open.commit(ids);
    };
    step(2);
    expect(Array.from(sequence.tokenIds)).toEqual([-1, -1]);
    step(2, Int32Array.of(7, 2 ** 31 - 1));
    step(10);
    step(1, [0]);
    expect(Array.from(sequence.tokenIds)).toEqual([
      -1,
      -1,
      7,
      2 ** 31 - 1,
      ...new Array<number>(10).fill(-1),
      0,
    ]);
    sequence.truncate(3);
    step(1);
    expect(Array.from(sequence.tokenIds)).toEqual([-1, -1, 7, -1]);
  });
  test("what pages and tokenIds return is a copy", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    append(cache, [[sequence, [1, 2]]]);
    sequence.pages[0] = 9;
    sequence.tokenIds[0] = 9;
    expect([sequence.pages[0], sequence.tokenIds[0]]).toEqual([1, 1]);
  });
});
describe("truncate", () => {
  test.each([
    [9, 3],
    [8, 2],
    [5, 2],
    [4, 1],
    [1, 1],
    [0, 0],
  ])("to %d tokens of 9 keeps %d pages of 4 and the rows below", (length, pages) => {
    using cache = poisonedCache();
    using sequence = cache.open();
    append(cache, [[sequence, idsFrom(0, 9)]]);
    sequence.truncate(length);
    expect([sequence.length, sequence.pages.length, cache.stats().usedPages]).toEqual([length, pages, pages]);
    expect(contents(cache, sequence, 1)).toEqual(expected(cache, idsFrom(0, length), 1));
    cache.check();
  });
  test("truncate and append equals never having been longer", () => {
    using cache = poisonedCache();
    using once = cache.open();
    using twice = cache.open();
    append(cache, [[once, idsFrom(0, 6)]]);
    append(cache, [[twice, idsFrom(0, 11)]]);
    twice.truncate(6);
    for (const sequence of [once, twice]) append(cache, [[sequence, idsFrom(50, 5)]]);
    expect(contents(cache, twice, 0)).toEqual(contents(cache, once, 0));
    expect(twice.tokenIds).toEqual(once.tokenIds);
  });
  test("a length that is not a whole number from 0 to the present one is refused and changes nothing", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    append(cache, [[sequence, idsFrom(0, 6)]]);
    for (const length of [...notLengths, 7]) {
      expect(() => sequence.truncate(length as number)).toThrow(ArgumentError);
    }
    expect(sequence.length).toBe(6);
    expect(Array.from(sequence.pages)).toEqual([1, 2]);
    cache.check();
  });
  test("frees the last page first", () => {
    using cache = poisonedCache({ maxPages: 4 });
    using sequence = cache.open();
    append(cache, [[sequence, idsFrom(0, 16)]]);
    sequence.truncate(0);
    append(cache, [[sequence, idsFrom(0, 16)]]);
    expect(Array.from(sequence.pages)).toEqual([4, 3, 2, 1]);
  });
});
describe("release", () => {
  test("frees the pages once; the second time it is an error and no second decrement", () => {
    using cache = poisonedCache();
    const [a, b] = [cache.open(), cache.open()];
    append(cache, [[a, idsFrom(0, 5)]]);
    a.release();
    expect(a.released).toBe(true);
    append(cache, [[b, idsFrom(0, 40)]]); // takes a's pages as well
    expect(() => a.release()).toThrow(DisposedError);
    expect(b.length).toBe(40);
    cache.check();
    expect(cache.stats().usedPages).toBe(10);
  });
  test("dispose may follow release and dispose", () => {
    using cache = poisonedCache();
    const [a, b] = [cache.open(), cache.open()];
    a.release();
    a[Symbol.dispose]();
    b[Symbol.dispose]();
    b[Symbol.dispose]();
    expect(() => b.release()).toThrow(DisposedError);
    expect(cache.stats().sequences).toBe(0);
  });
  test("a released sequence can be neither truncated nor reserved for, and holds nothing", () => {
    using cache = poisonedCache();
    const sequence = cache.open();
    append(cache, [[sequence, [1, 2, 3]]]);
    sequence.release();
    expect(() => sequence.truncate(0)).toThrow(DisposedError);
    expect(() => cache.reserve([{ sequence, tokens: 1 }])).toThrow(DisposedError);
    expect([sequence.length, sequence.pages.length, sequence.tokenIds.length]).toEqual([0, 0, 0]);
  });
  test("releases in any order give the pages back", () => {
    using cache = poisonedCache();
    for (const order of [
      [0, 1, 2],
      [2, 0, 1],
      [1, 2, 0],
    ]) {
      const all = [cache.open(), cache.open(), cache.open()] as const;
      append(
        cache,
        all.map((sequence, i) => [sequence, idsFrom(0, 3 + 5 * i)] as const),
      );
      for (const i of order) {
        all[i]!.release();
        cache.check();
      }
      expect(cache.stats()).toMatchObject({ usedPages: 0, freePages: 12, tokens: 0, sequences: 0, waste: 0 });
    }
  });
});
describe("a sequence in an open step", () => {
  test("refuses truncate and release, and dispose cancels the step", () => {
    using cache = poisonedCache();
    const [a, b] = [cache.open(), cache.open()];
    append(cache, [
      [a, [1, 2, 3]],
      [b, [4]],
    ]);
    const step = cache.reserve([a, b].map((sequence) => ({ sequence, tokens: 6 })));
    expect(() => a.truncate(1)).toThrow(StateError);
    expect(() => a.release()).toThrow(StateError);
    expect(a.length).toBe(3);
    cache.check();
    a[Symbol.dispose]();
    expect(step.isOpen).toBe(false);
    expect(contents(cache, b, 0)).toEqual(expected(cache, [4], 0));
    expect(cache.stats()).toMatchObject({ usedPages: 1, tokens: 1, sequences: 1, openSteps: 0 });
    cache.check();
  });
});
