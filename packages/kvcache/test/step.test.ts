import {
  ArgumentError,
  DisposedError,
  DTypeError,
  OutOfMemoryError,
  scope,
  ShapeError,
  zeros,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { type KvCache, type Sequence, StateError, type Step } from "../src/index.ts";
import {
  append,
  poolOf,
  contents,
  expected,
  gathered,
  idsFrom,
  poisonedCache,
  usage,
  writeLayer,
} from "./fixtures.ts";

const engine = "portable";
const reserve = (cache: KvCache, ...requests: readonly (readonly [Sequence, number])[]): Step =>
  cache.reserve(requests.map(([sequence, tokens]) => ({ sequence, tokens })));

describe("reserve", () => {
  test("positions continue each sequence, in the order of the requests", () => {
    using cache = poisonedCache();
    const [a, b, c] = [cache.open(), cache.open(), cache.open()] as const;
    append(cache, [
      [a, idsFrom(0, 5)],
      [c, idsFrom(9, 2)],
    ]);
    using step = reserve(cache, [c, 3], [b, 2], [a, 1]);
    expect(step.tokens).toBe(6);
    expect(Array.from(step.positions.data)).toEqual([2, 3, 4, 0, 1, 5]);
  });
  test("the table lists pages, lengths with the new tokens, and where each new row goes", () => {
    using cache = poisonedCache();
    const [a, b] = [cache.open(), cache.open()] as const;
    append(cache, [
      [a, idsFrom(0, 5)],
      [b, idsFrom(9, 3)],
    ]); // a: pages 1, 2; b: page 3
    using step = reserve(cache, [b, 2], [a, 0]); // b: pages 3, 4
    writeLayer(cache, step, [20, 21], 0);
    const { queryIndptr, indptr, indices, lengths, slots } = step.view(0).table;
    const read = [queryIndptr, indptr, indices, lengths, slots].map((t) => Array.from(t.data));
    expect(read).toEqual([
      [0, 2, 2],
      [0, 2, 4],
      [3, 4, 1, 2],
      [5, 5],
      [3 * 4 + 3, 4 * 4],
    ]);
  });
  test("a table grows with the step: 1,500 tokens in pages of 4, next to one that is already cached", () => {
    using cache = poisonedCache({ maxPages: 400 });
    const [a, b] = [cache.open(), cache.open()] as const;
    append(cache, [[a, [7]]]);
    using step = reserve(cache, [a, 2], [b, 1500]);
    const ids = idsFrom(8, 1502);
    writeLayer(cache, step, ids, 0);
    const view = step.view(0);
    expect(gathered(view, 0)).toEqual(expected(cache, [7, 8, 9], 0));
    expect(gathered(view, 1)).toEqual(expected(cache, idsFrom(10, 1500), 0));
    expect(Array.from(step.positions.data)).toEqual([1, 2, ...idsFrom(0, 1500)]);
  });
  test("every table has a higher epoch than the last", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    let last = 0;
    for (let i = 0; i < 3; i++) {
      using step = reserve(cache, [sequence, 0]);
      expect(step.view(0).table.epoch).toBeGreaterThan(last);
      last = step.view(0).table.epoch;
    }
  });
  test("takes all pages or none: without enough of them nothing changes", () => {
    using cache = poisonedCache({ maxPages: 5 });
    const [a, b] = [cache.open(), cache.open()] as const;
    append(cache, [[a, idsFrom(0, 6)]]);
    const free = poolOf(cache).freePages();
    const stats = cache.stats();
    expect(() => reserve(cache, [b, 9], [a, 3])).toThrow(
      expect.objectContaining({ constructor: OutOfMemoryError, details: { needed: 4, free: 3, total: 5 } }),
    );
    expect(() => reserve(cache, [a, Number.MAX_SAFE_INTEGER])).toThrow(OutOfMemoryError);
    expect(() => reserve(cache, [a, Number.MAX_SAFE_INTEGER], [b, Number.MAX_SAFE_INTEGER])).toThrow(
      OutOfMemoryError,
    );
    expect(poolOf(cache).freePages()).toEqual(free);
    expect(cache.stats()).toEqual(stats);
    expect([a.length, a.pages.length, b.pages.length]).toEqual([6, 2, 0]);
    cache.check();
    using step = reserve(cache, [b, 8], [a, 6]); // exactly what is left
    expect(step.tokens).toBe(14);
  });
  test.each([-1, -0.5, 1.5, NaN, Infinity, 2 ** 53, "3", null, undefined, 3n])(
    "%p tokens are refused",
    (tokens) => {
      using cache = poisonedCache();
      const [a, b] = [cache.open(), cache.open()] as const;
      expect(() => reserve(cache, [a, 3], [b, tokens as number])).toThrow(ArgumentError);
      expect(cache.stats()).toMatchObject({ usedPages: 0, openSteps: 0 });
      reserve(cache, [a, 1], [b, 1]).cancel(); // neither is left in a step
      cache.check();
    },
  );
  test("positions are int32: a sequence never has 2^31 tokens, whatever its window lets go of", () => {
    using cache = poisonedCache({ window: 4 });
    const sequence = cache.open();
    append(cache, [[sequence, [1]]]);
    expect(() => reserve(cache, [sequence, 2 ** 31 - 1])).toThrow("at most 2147483647 tokens");
    expect(() => reserve(cache, [sequence, 2 ** 31 - 2])).toThrow("pages of 4 tokens");
    cache.check();
  });
  test("a sequence is in one open step at a time, and once in a step", () => {
    using cache = poisonedCache();
    const [a, b] = [cache.open(), cache.open()] as const;
    expect(() => reserve(cache, [a, 1], [b, 1], [a, 1])).toThrow(ArgumentError);
    const step = reserve(cache, [a, 1]);
    expect(() => reserve(cache, [b, 1], [a, 1])).toThrow(StateError);
    expect(cache.stats()).toMatchObject({ usedPages: 1, openSteps: 1 });
    cache.check();
    step.cancel();
    reserve(cache, [b, 1], [a, 1]).cancel();
  });
  test("a sequence of another cache, or what is none, is refused", () => {
    using cache = poisonedCache();
    using other = poisonedCache();
    using foreign = other.open();
    expect(() => reserve(cache, [foreign, 1])).toThrow(ArgumentError);
    for (const sequence of [{}, null, undefined, 1]) {
      expect(() => reserve(cache, [sequence as never, 1])).toThrow(ArgumentError);
    }
  });
  test("nothing to add is a step too", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    append(cache, [[sequence, [3, 4]]]);
    const step = reserve(cache, [sequence, 0]);
    expect(gathered(step.view(1), 0)).toEqual(expected(cache, [3, 4], 1));
    step.commit([]);
    expect(sequence.length).toBe(2);
    const empty = cache.reserve([]);
    expect([empty.tokens, empty.positions.size]).toEqual([0, 0]);
    empty.commit();
    cache.check();
  });
});
describe("write and view", () => {
  test("a layer reads its new rows before the commit, with the old ones", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    append(cache, [[sequence, idsFrom(0, 3)]]);
    using step = reserve(cache, [sequence, 4]);
    writeLayer(cache, step, idsFrom(10, 4), 1);
    expect(gathered(step.view(1), 0)).toEqual(expected(cache, [0, 1, 2, 10, 11, 12, 13], 1));
    expect(sequence.length).toBe(3);
  });
  test("viewing a layer that has not written is an error", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    using step = reserve(cache, [sequence, 1]);
    writeLayer(cache, step, [1], 0);
    expect(() => step.view(1)).toThrow(StateError);
  });
  test("writing a layer again replaces its rows", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    using step = reserve(cache, [sequence, 2]);
    for (const first of [1, 30])
      for (const layer of [0, 1]) writeLayer(cache, step, idsFrom(first, 2), layer);
    step.commit();
    for (const layer of [0, 1])
      expect(contents(cache, sequence, layer)).toEqual(expected(cache, [30, 31], layer));
  });
  test("rows of the wrong shape or dtype are refused and count as not written", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    using step = reserve(cache, [sequence, 2]);
    const rows = (...shape: number[]) => zeros(shape, { engine });
    for (const [k, v] of [
      [rows(1, 2, 3), rows(1, 2, 2)],
      [rows(2, 1, 3), rows(2, 1, 2)],
      [rows(2, 2, 2), rows(2, 2, 2)],
      [rows(2, 2, 3), rows(2, 2, 3)],
      [rows(2, 6), rows(2, 4)],
    ] as const) {
      expect(() => step.write(0, k, v)).toThrow(ShapeError);
    }
    const whole = zeros([2, 2, 3], { engine, dtype: "int32" });
    expect(() => step.write(0, whole, whole)).toThrow(DTypeError);
    expect(() => step.view(0)).toThrow(StateError);
    expect(() => step.commit()).toThrow(StateError);
  });
  test.each([-1, 2, 0.5, NaN, "0", undefined])("layer %p of 2 is refused", (layer) => {
    using cache = poisonedCache();
    using sequence = cache.open();
    using step = reserve(cache, [sequence, 1]);
    using k = zeros([1, 2, 3], { engine });
    using v = zeros([1, 2, 2], { engine });
    expect(() => step.write(layer as number, k, v)).toThrow(ArgumentError);
    expect(() => step.view(layer as number)).toThrow(ArgumentError);
  });
  test("a scope that ends between reserve and commit takes nothing away", () => {
    using cache = scope(() => {
      const made = poisonedCache();
      return made;
    });
    const sequence = cache.open();
    const step = scope(() => reserve(cache, [sequence, 40])); // the table's memory grows inside the scope
    for (const layer of [0, 1]) {
      scope(() => writeLayer(cache, step, idsFrom(0, 40), layer));
      scope(() => expect(Array.from(step.positions.data)).toEqual(idsFrom(0, 40)));
      scope(() => expect(gathered(step.view(layer), 0)).toEqual(expected(cache, idsFrom(0, 40), layer)));
    }
    step.commit();
    expect(contents(cache, sequence, 0)).toEqual(expected(cache, idsFrom(0, 40), 0));
  });
  test("the tensors of a view are gone when its step closes", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    const step = reserve(cache, [sequence, 1]);
    for (const layer of [0, 1]) writeLayer(cache, step, [1], layer);
    const { table } = step.view(0);
    const { lengths } = table;
    const { positions } = step;
    step.commit();
    for (const t of [lengths, positions, table.indices]) expect(() => t.data).toThrow(DisposedError);
  });
});
describe("commit", () => {
  test("needs every layer; until then the step stays open and lengths stay", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    const step = reserve(cache, [sequence, 3]);
    expect(() => step.commit()).toThrow("layer 0 of 2 has not written");
    writeLayer(cache, step, [1, 2, 3], 1);
    expect(() => step.commit()).toThrow("layer 0 of 2 has not written");
    expect([step.isOpen, sequence.length]).toEqual([true, 0]);
    cache.check();
    writeLayer(cache, step, [1, 2, 3], 0);
    step.commit();
    expect([step.isOpen, sequence.length]).toEqual([false, 3]);
  });
  test.each([
    [[1, 2]],
    [[1, 2, 3, 4]],
    [[1, -1, 3]],
    [[1, NaN, 3]],
    [[1, 2.5, 3]],
    [[1, 2, 2 ** 31]],
    [["1", 2, 3]],
  ])("ids %p for 3 tokens are refused; the step stays open", (ids) => {
    using cache = poisonedCache();
    using sequence = cache.open();
    const step = reserve(cache, [sequence, 3]);
    for (const layer of [0, 1]) writeLayer(cache, step, [1, 2, 3], layer);
    expect(() => step.commit(ids as number[])).toThrow(ArgumentError);
    expect([step.isOpen, sequence.length, sequence.tokenIds.length]).toEqual([true, 0, 0]);
    step.commit([1, 2, 3]);
    expect(Array.from(sequence.tokenIds)).toEqual([1, 2, 3]);
  });
  test("steps of different sequences may be open at once, and close in any order", () => {
    using cache = poisonedCache();
    const [a, b] = [cache.open(), cache.open()] as const;
    const [first, second] = [reserve(cache, [a, 5]), reserve(cache, [b, 5])] as const;
    for (const layer of [0, 1]) {
      writeLayer(cache, second, idsFrom(40, 5), layer);
      writeLayer(cache, first, idsFrom(0, 5), layer);
    }
    cache.check();
    first.commit();
    second.commit();
    for (const layer of [0, 1]) {
      expect(contents(cache, a, layer)).toEqual(expected(cache, idsFrom(0, 5), layer));
      expect(contents(cache, b, layer)).toEqual(expected(cache, idsFrom(40, 5), layer));
    }
  });
});
describe("cancel", () => {
  test("leaves no trace: lengths, pages, the order of free pages and the rows are as before", () => {
    using cache = poisonedCache();
    const [a, b] = [cache.open(), cache.open()] as const;
    append(cache, [
      [a, idsFrom(0, 5)],
      [b, idsFrom(20, 9)],
    ]);
    b.truncate(2); // the free list is out of order
    const before = { free: poolOf(cache).freePages(), usage: usage(cache), pages: [a.pages, b.pages] };
    const step = reserve(cache, [b, 14], [a, 7]);
    writeLayer(cache, step, idsFrom(60, 21), 0);
    step.cancel();
    expect({
      free: poolOf(cache).freePages(),
      usage: usage(cache),
      pages: [a.pages, b.pages],
    }).toEqual(before);
    expect(contents(cache, a, 0)).toEqual(expected(cache, idsFrom(0, 5), 0));
    expect(contents(cache, b, 0)).toEqual(expected(cache, [20, 21], 0));
    cache.check();
  });
  test("dispose cancels an open step and leaves a closed one alone", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    {
      using step = reserve(cache, [sequence, 2]);
      expect(step.isOpen).toBe(true);
    }
    expect(cache.stats()).toMatchObject({ usedPages: 0, openSteps: 0 });
    {
      using step = reserve(cache, [sequence, 2]);
      for (const layer of [0, 1]) writeLayer(cache, step, [1, 2], layer);
      step.commit();
    }
    expect(sequence.length).toBe(2);
  });
  test.each(["commit", "cancel"] as const)("after %s every use is an error", (how) => {
    using cache = poisonedCache();
    using sequence = cache.open();
    const step = reserve(cache, [sequence, 1]);
    for (const layer of [0, 1]) writeLayer(cache, step, [1], layer);
    step[how]();
    using k = zeros([1, 2, 3], { engine });
    for (const use of [
      () => step.commit(),
      () => step.cancel(),
      () => step.view(0),
      () => step.write(0, k, k),
      () => step.positions,
    ]) {
      expect(use).toThrow(StateError);
    }
    expect(cache.stats().usedPages).toBe(how === "commit" ? 1 : 0);
    cache.check();
  });
});
