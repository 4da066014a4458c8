import { ArgumentError, DisposedError, memoryUsage, OutOfMemoryError } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import { type FixedTable, type KvCache, type Sequence, StateError, type Step } from "../src/index.ts";
import {
  append,
  expected,
  gathered,
  idsFrom,
  poisonedCache,
  poisonedGroups,
  writeLayer,
} from "./fixtures.ts";

const PARTS = ["queryIndptr", "indptr", "indices", "lengths", "slots"] as const;
const where = (step: Step): unknown => {
  const { table } = step.view(0);
  return [...PARTS.map((part) => table[part]), step.positions].map((t) => [t.storage, t.offset, t.shape]);
};
const next = (cache: KvCache, table: FixedTable, ...sequences: Sequence[]): Step =>
  cache.reserve(
    sequences.map((sequence) => ({ sequence, tokens: 1 })),
    { table },
  );

describe("a fixed table", () => {
  test("lies at one place for all steps, over page borders and beside other steps", () => {
    using cache = poisonedCache({ maxPages: 40 });
    using table = cache.fixedTable({ sequences: 2 });
    const [a, b, other] = [cache.open(), cache.open(), cache.open()];
    append(cache, [[b, idsFrom(50, 70)]]);
    let first: unknown;
    for (let t = 0; t < 12; t++) {
      using beside = cache.reserve([{ sequence: other, tokens: 1 }]);
      using step = next(cache, table, a, b);
      for (const layer of [0, 1]) {
        writeLayer(cache, step, [t, t + 9], layer);
        writeLayer(cache, beside, [t], layer);
      }
      first ??= where(step);
      expect(where(step)).toEqual(first);
      step.commit([t, t + 9]);
      beside.commit();
    }
    cache.check();
  });
  test("has the contents of a table of the step's own", () => {
    using cache = poisonedCache();
    using table = cache.fixedTable({ sequences: 2, tokens: 5 });
    const [a, b] = [cache.open(), cache.open()];
    append(cache, [[a, idsFrom(0, 6)]]);
    const requests = [
      { sequence: a, tokens: 3 },
      { sequence: b, tokens: 2 },
    ];
    const seen = [undefined, table].map((t) => {
      using step = cache.reserve(requests, { table: t });
      for (const layer of [0, 1]) writeLayer(cache, step, idsFrom(30, 5), layer);
      const view = step.view(1);
      const pages = view.table.indptr.data[2]!;
      const values = PARTS.map((part) =>
        Array.from(view.table[part].data.subarray(0, part === "indices" ? pages : undefined)),
      );
      return [values, [...step.positions.data], gathered(view, 0), gathered(view, 1)];
    });
    expect(seen[1]).toEqual(seen[0]);
  });
  test("takes steps of its own shape alone", () => {
    using cache = poisonedCache();
    using table = cache.fixedTable({ sequences: 1, tokens: 2 });
    const [a, b] = [cache.open(), cache.open()];
    expect(() => next(cache, table, a)).toThrow(ArgumentError);
    expect(() => next(cache, table, a, b)).toThrow(ArgumentError);
    expect(cache.stats().usedPages).toBe(0);
    using step = cache.reserve([{ sequence: a, tokens: 2 }], { table });
    expect(step.tokens).toBe(2);
  });
  test("refuses more pages than it holds, and nothing has changed", () => {
    using cache = poisonedCache();
    using table = cache.fixedTable({ sequences: 1, pages: 2 });
    const a = cache.open();
    append(cache, [[a, idsFrom(0, 8)]]);
    expect(() => next(cache, table, a)).toThrow(OutOfMemoryError);
    expect(cache.stats()).toMatchObject({ usedPages: 2, openSteps: 0 });
    cache.check();
    a.truncate(7);
    next(cache, table, a).cancel();
  });
  test("serves one open step at a time", () => {
    using cache = poisonedCache();
    using table = cache.fixedTable({ sequences: 1 });
    const [a, b] = [cache.open(), cache.open()];
    const step = next(cache, table, a);
    expect(() => next(cache, table, b)).toThrow(StateError);
    step.cancel();
    next(cache, table, b).cancel();
  });
  test("is no other step's memory, before or after its own steps", () => {
    using cache = poisonedCache();
    using table = cache.fixedTable({ sequences: 1 });
    const [a, b] = [cache.open(), cache.open()];
    next(cache, table, a).cancel();
    using own = cache.reserve([{ sequence: b, tokens: 1 }]);
    using fixed = next(cache, table, a);
    expect(own.positions.storage).not.toBe(fixed.positions.storage);
  });
  test("is freed by its owner; disposed it takes no step", () => {
    using cache = poisonedCache();
    const before = memoryUsage().bytes;
    const table = cache.fixedTable({ sequences: 1 });
    const a = cache.open();
    next(cache, table, a).cancel();
    table[Symbol.dispose]();
    table[Symbol.dispose]();
    expect(memoryUsage().bytes).toBe(before);
    expect(() => next(cache, table, a)).toThrow(DisposedError);
  });
  test("does not outlive a disposed cache's steps", () => {
    const cache = poisonedCache();
    using table = cache.fixedTable({ sequences: 1 });
    const step = next(cache, table, cache.open());
    cache[Symbol.dispose]();
    expect(step.isOpen).toBe(false);
    expect(() => cache.fixedTable({ sequences: 1 })).toThrow(DisposedError);
  });
  test.each([{ sequences: 0 }, { sequences: 1.5 }, { sequences: 1, tokens: 0 }, { sequences: 1, pages: 0 }])(
    "options %o are an ArgumentError",
    (options) => {
      using cache = poisonedCache();
      expect(() => cache.fixedTable(options)).toThrow(ArgumentError);
    },
  );
});

test("a fixed table over groups lies at one place while a window slides and a fork parts", () => {
  const rows = { numKvHeads: 1, headDim: 2, maxPages: 20 };
  using cache = poisonedGroups({
    groups: [
      { ...rows, layers: [0], pageSize: 2, window: 3 },
      { ...rows, layers: [1], pageSize: 4 },
    ],
  });
  const a = cache.open();
  append(cache, [[a, idsFrom(0, 5)]]);
  const [b] = a.fork() as [Sequence];
  using table = cache.fixedTable({ sequences: 2, pages: 24 });
  const ids = [a, b].map((_, n) => [...idsFrom(0, 5), ...idsFrom(100 * (n + 1), 15)]);
  let first: unknown;
  for (let t = 5; t < 20; t++) {
    using step = next(cache, table, a, b);
    for (const layer of [0, 1]) writeLayer(cache, step, [ids[0]![t]!, ids[1]![t]!], layer);
    const place = [0, 1].map((layer) =>
      PARTS.map((part) => step.view(layer).table[part]).map((x) => [x.storage, x.offset, x.shape]),
    );
    expect(place).toEqual((first ??= place) as typeof place);
    for (const n of [0, 1]) {
      const [seen, should] = [gathered(step.view(1), n), expected(cache, ids[n]!.slice(0, t + 1), 1)];
      expect(seen).toEqual(should);
      const local = expected(cache, ids[n]!.slice(0, t + 1), 0);
      expect(gathered(step.view(0), n).k.slice(-6)).toEqual(local.k.slice(-6));
    }
    step.commit([ids[0]![t]!, ids[1]![t]!]);
  }
  cache.check();
  const many = a.fork(10); // each lists all of its pages: 11 * 5 in the second group
  using wide = cache.fixedTable({ sequences: 11, pages: 54 });
  expect(() => next(cache, wide, a, ...many)).toThrow(OutOfMemoryError);
});
test("a step whose rows a tape wrote can be read and committed", () => {
  using cache = poisonedCache();
  const a = cache.open();
  using step = cache.reserve([{ sequence: a, tokens: 1 }]);
  expect(() => step.view(1)).toThrow(StateError);
  expect(() => step.commit()).toThrow(StateError);
  step.markWritten();
  expect(step.view(1).table.lengths.data[0]).toBe(1);
  step.commit();
  expect(a.length).toBe(1);
  expect(() => step.markWritten()).toThrow(StateError);
});
