/** Pages that work under way reads. */
import { ArgumentError, DisposedError, OutOfMemoryError } from "@heed/tensor";
import { floatView } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { HostTier, type KvCache, type Sequence, StateError, type Step } from "../src/index.ts";
import { temporaryFolder } from "./file-faults.ts";
import {
  append,
  booksOf,
  contents,
  expected,
  gathered,
  idsFrom,
  poisonedCache,
  poisonedGroups,
  poolOf,
  writeLayer,
} from "./fixtures.ts";

function started(tokens: number, maxPages = 6): { cache: KvCache; sequence: Sequence } {
  const cache = poisonedCache({ maxPages });
  const sequence = cache.open();
  append(cache, [[sequence, idsFrom(0, tokens)]]);
  return { cache, sequence };
}

describe("a fence", () => {
  test("keeps pages of a released sequence from being handed out until it goes", () => {
    const { cache, sequence } = started(12);
    const fence = cache.fence([sequence]);
    sequence.release();
    expect(cache.stats()).toMatchObject({ freePages: 3, usedPages: 0, inFlightPages: 3, openFences: 1 });
    cache.check();
    const other = cache.open();
    expect(() => cache.reserve([{ sequence: other, tokens: 13 }])).toThrow("needs 4 pages");
    append(cache, [[other, idsFrom(50, 12)]]);
    expect(Array.from(other.pages)).toEqual([4, 5, 6]);
    fence[Symbol.dispose]();
    fence[Symbol.dispose]();
    expect(fence.isOpen).toBe(false);
    expect(cache.stats()).toMatchObject({ freePages: 3, inFlightPages: 0, openFences: 0 });
    append(cache, [[other, idsFrom(62, 1)]]);
    cache.check();
    cache[Symbol.dispose]();
  });
  test("that is done goes at the next reservation", () => {
    const { cache, sequence } = started(24);
    let done = false;
    const fence = cache.fence([sequence], { done: () => done });
    sequence.release();
    const other = cache.open();
    expect(() => cache.reserve([{ sequence: other, tokens: 1 }])).toThrow("needs 1 pages");
    expect(fence.isOpen).toBe(true);
    done = true;
    append(cache, [[other, idsFrom(50, 24)]]);
    expect(fence.isOpen).toBe(false);
    cache.check();
    cache[Symbol.dispose]();
  });
  test("that is done makes room for a sequence that comes back, or is loaded", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "s");
    for (const way of ["swapIn", "load"] as const) {
      const { cache, sequence } = started(24);
      await cache.save(sequence, path);
      if (way === "swapIn") await cache.swapOut(sequence, new HostTier({ maxBytes: 2 ** 20 }));
      else sequence.release();
      const other = cache.open();
      append(cache, [[other, idsFrom(50, 4)]]);
      let done = false;
      cache.fence([other], { done: () => done });
      other.release();
      const bring = (): Promise<unknown> => (way === "swapIn" ? cache.swapIn(sequence) : cache.load(path));
      await expect(bring()).rejects.toThrow(OutOfMemoryError);
      done = true;
      await bring();
      expect(cache.stats()).toMatchObject({ openFences: 0, usedPages: 6 });
      cache.check();
      cache[Symbol.dispose]();
    }
  });
  test("that is done makes room for prefixes from a file", async () => {
    using folder = temporaryFolder();
    const path = join(folder.path, "p");
    using cache = poisonedCache({ maxPages: 6, prefixes: true });
    using saved = cache.open();
    append(cache, [[saved, idsFrom(0, 24)]]);
    await cache.savePrefixes(path);
    saved.release();
    cache.reset();
    const other = cache.open();
    append(cache, [[other, idsFrom(50, 21)]]);
    let done = false;
    cache.fence([other], { done: () => done });
    cache.invalidate();
    other.release();
    expect(await cache.loadPrefixes(path)).toMatchObject({ loaded: 0, skipped: 6 });
    done = true;
    expect(await cache.loadPrefixes(path)).toMatchObject({ loaded: 6, skipped: 0 });
    cache.check();
  });
  test("under another: pages are free when the last has gone, whatever the order", () => {
    for (const order of [
      [0, 1],
      [1, 0],
    ]) {
      const { cache, sequence } = started(8);
      const fences = [cache.fence([sequence]), cache.fence([sequence, sequence])];
      sequence.release();
      fences[order[0]!]![Symbol.dispose]();
      expect(cache.stats()).toMatchObject({ freePages: 4, inFlightPages: 2 });
      cache.check();
      fences[order[1]!]![Symbol.dispose]();
      expect(cache.stats()).toMatchObject({ freePages: 6, inFlightPages: 0 });
      cache.check();
      cache[Symbol.dispose]();
    }
  });
  test("covers the pages of an open step, and they survive its cancellation", () => {
    const { cache, sequence } = started(3);
    const step = cache.reserve([{ sequence, tokens: 6 }]);
    for (const layer of [0, 1]) writeLayer(cache, step, idsFrom(40, 6), layer);
    const fence = cache.fence([sequence]);
    step.cancel();
    expect(cache.stats()).toMatchObject({ usedPages: 1, inFlightPages: 2, freePages: 3 });
    cache.check();
    fence[Symbol.dispose]();
    expect(cache.stats().freePages).toBe(5);
    cache[Symbol.dispose]();
  });
  test("of an open step covers all its sequences' pages and the tails that it has replaced, however it ends", () => {
    for (const end of ["commit", "cancel"] as const) {
      const { cache, sequence } = started(6, 9);
      const [fork] = sequence.fork(1);
      const [reader, bystander] = [cache.open(), cache.open()];
      append(cache, [
        [reader, idsFrom(20, 4)],
        [bystander, idsFrom(30, 4)],
      ]);
      const step = cache.reserve([
        { sequence: fork!, tokens: 3 },
        { sequence: reader, tokens: 0 },
      ]);
      expect([Array.from(fork!.pages), Array.from(reader.pages)]).toEqual([[1, 5, 6], [3]]);
      for (const layer of [0, 1]) writeLayer(cache, step, idsFrom(40, 3), layer);
      const fence = cache.fence([step]);
      step[end]();
      for (const one of [sequence, fork!, reader, bystander]) one.release();
      expect(cache.stats()).toMatchObject({ inFlightPages: 5, usedPages: 0, freePages: 4 }); // 1, 2, 3, 5 and 6
      cache.check();
      fence[Symbol.dispose]();
      expect(cache.stats()).toMatchObject({ inFlightPages: 0, freePages: 9 });
      cache[Symbol.dispose]();
    }
  });
  test("takes steps and sequences together, and refuses steps that are closed or of another cache", () => {
    const { cache, sequence } = started(4);
    const other = started(4);
    const alone = cache.open();
    append(cache, [[alone, idsFrom(50, 5)]]);
    const [step, foreign] = [cache, other.cache].map((c, i) =>
      c.reserve([{ sequence: [sequence, other.sequence][i]!, tokens: 1 }]),
    ) as [Step, Step];
    for (const fence of [cache.fence([step, alone, sequence, step]), cache.fence([])]) {
      cache.check();
      fence[Symbol.dispose]();
    }
    expect(() => cache.fence([step, foreign])).toThrow(ArgumentError);
    expect(() => cache.fence([other.cache.reserve([])])).toThrow(ArgumentError);
    step.cancel();
    expect(() => cache.fence([alone, step])).toThrow(StateError);
    expect(cache.stats().openFences).toBe(0);
    cache.check();
    cache[Symbol.dispose]();
    other.cache[Symbol.dispose]();
  });
  test("keeps rows that the work may read from being written over after a truncation", () => {
    const { cache, sequence } = started(7);
    using look = cache.reserve([{ sequence, tokens: 0 }]);
    const view = look.view(0);
    const before = gathered(view, 0);
    using fence = cache.fence([sequence]);
    look.commit();
    sequence.truncate(5);
    append(cache, [[sequence, [90, 91]]]);
    expect(fence.isOpen).toBe(true);
    expect(Array.from(sequence.pages)).toEqual([1, 3]); // page 2 is as the work finds it
    using again = cache.reserve([{ sequence, tokens: 0 }]);
    const { kPages } = floatView(again.view(0));
    const rows = Array.from(kPages.select(0, 2).contiguous().data as Float32Array);
    // [Hkv 2, 4 rows, 3]: rows 0 .. 2 of both heads
    for (const head of [0, 1]) {
      for (const row of [0, 1, 2]) {
        const at = (head * 4 + row) * 3;
        const was = ((4 + row) * 2 + head) * 3;
        expect(rows.slice(at, at + 3)).toEqual(before.k.slice(was, was + 3));
      }
    }
    again.cancel();
    expect(contents(cache, sequence, 0)).toEqual(expected(cache, [...idsFrom(0, 5), 90, 91], 0));
    cache.check();
    cache[Symbol.dispose]();
  });
  test("keeps such rows from a fork that was cut back before, and is the last to refer to the page", () => {
    const { cache, sequence } = started(7);
    const [fork] = sequence.fork(1);
    fork!.truncate(5);
    using fence = cache.fence([sequence]);
    sequence.release();
    append(cache, [[fork!, [90, 91]]]);
    expect(fence.isOpen).toBe(true);
    expect(Array.from(fork!.pages)).toEqual([1, 3]);
    expect(contents(cache, fork!, 0)).toEqual(expected(cache, [...idsFrom(0, 5), 90, 91], 0));
    cache.check();
    cache[Symbol.dispose]();
  });
  test("does not make a sequence that only grows copy its tail", () => {
    const { cache, sequence } = started(5);
    using fence = cache.fence([sequence]);
    append(cache, [[sequence, [5]]]);
    expect(fence.isOpen).toBe(true);
    expect(Array.from(sequence.pages)).toEqual([1, 2]);
    cache[Symbol.dispose]();
  });
  test("once gone, a truncated tail is written in place again", () => {
    const { cache, sequence } = started(7);
    const fence = cache.fence([sequence]);
    sequence.truncate(5);
    fence[Symbol.dispose]();
    append(cache, [[sequence, [90]]]);
    expect(Array.from(sequence.pages)).toEqual([1, 2]);
    cache[Symbol.dispose]();
  });
  test("covers every group, and leaves out the null page", () => {
    const rows = { numKvHeads: 1, headDim: 2, pageSize: 4, maxPages: 9 };
    using cache = poisonedGroups({
      groups: [
        { ...rows, layers: [0], window: 4 },
        { ...rows, layers: [1] },
      ],
    });
    const sequence = cache.open();
    append(cache, [[sequence, idsFrom(0, 12)]]);
    using fence = cache.fence([sequence]);
    expect(fence.isOpen).toBe(true);
    sequence.release();
    expect(cache.stats().groups.map((g) => g.inFlightPages)).toEqual([1, 3]);
    expect([0, 1].map((g) => poolOf(cache, g).fences(0))).toEqual([0, 0]);
    cache.check();
  });
  test("refuses what is no open sequence of this cache", () => {
    const { cache, sequence } = started(4);
    using other = poisonedCache();
    for (const wrong of [{}, null, undefined, 1, other.open()])
      expect(() => cache.fence([sequence, wrong as never])).toThrow(ArgumentError);
    sequence.release();
    expect(() => cache.fence([sequence])).toThrow(DisposedError);
    expect(cache.stats()).toMatchObject({ openFences: 0, inFlightPages: 0 });
    cache[Symbol.dispose]();
    expect(() => cache.fence([])).toThrow(DisposedError);
  });
  test("reset waits for it, dispose does not", () => {
    const { cache, sequence } = started(4);
    const fence = cache.fence([sequence]);
    sequence.release();
    expect(() => cache.reset()).toThrow(StateError);
    cache[Symbol.dispose]();
    expect(fence.isOpen).toBe(false);
    fence[Symbol.dispose]();
  });
  test("whose books are lost is noticed by check", () => {
    const { cache, sequence } = started(4);
    cache.fence([sequence]);
    cache.check();
    booksOf(cache).fences.clear();
    expect(() => cache.check()).toThrow("[kvcache");
    cache[Symbol.dispose]();
  });
});
