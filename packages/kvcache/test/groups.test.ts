/** Caches of several groups of layers: options, limits, tables and counts. */
import { ArgumentError, memoryUsage, OutOfMemoryError } from "@heed/tensor";
import { floatView } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { type GroupOptions, KvCache, StateError } from "../src/index.ts";
import {
  append,
  contents,
  expected,
  idsFrom,
  poisonAll,
  poisonedGroups,
  poolOf,
  usage,
  writeLayer,
} from "./fixtures.ts";

const rows = { numKvHeads: 2, headDim: 3, valueHeadDim: 2 };
const local: GroupOptions = { ...rows, layers: [0, 2], pageSize: 2, maxPages: 12, window: 4 };
const global: GroupOptions = { ...rows, layers: [1], pageSize: 4, maxPages: 6, dtype: "bfloat16" };
const latent: GroupOptions = { ...rows, layers: [3], pageSize: 4, maxPages: 7, valuesInKeys: true };
const GROUPS = [local, global, latent];
const engine = "portable";

describe("groups of layers", () => {
  test("have layouts of their own, defaults filled in", () => {
    using cache = poisonedGroups({ groups: GROUPS, draftMargin: 3 });
    const { layers, blockTokens, draftMargin, groups } = cache.layout;
    expect([layers, blockTokens, draftMargin]).toEqual([4, 4, 3]);
    expect(groups[1]!).toEqual({
      ...rows,
      layers: [1],
      valuesInKeys: false,
      window: Infinity,
      sinks: 0,
      pageSize: 4,
      layout: "head-major",
      dtype: "bfloat16",
    });
    expect(groups.map((g) => [g.window, g.valuesInKeys])).toEqual([
      [4, false],
      [Infinity, false],
      [Infinity, true],
    ]);
  });
  test("each layer's rows come back from its own pages", () => {
    using cache = poisonedGroups({ groups: [{ ...local, window: undefined }, global, latent] });
    using a = cache.open();
    using b = cache.open();
    append(cache, [
      [a, idsFrom(0, 5)],
      [b, idsFrom(30, 3)],
    ]);
    append(cache, [
      [b, idsFrom(40, 2)],
      [a, idsFrom(50, 1)],
    ]);
    for (const layer of [0, 1, 2, 3]) {
      expect(contents(cache, a, layer)).toEqual(expected(cache, [...idsFrom(0, 5), 50], layer));
      expect(contents(cache, b, layer)).toEqual(expected(cache, [...idsFrom(30, 3), 40, 41], layer));
    }
    expect([a, b].map((s) => [0, 1, 2].map((g) => s.pagesOf(g).length))).toEqual([
      [3, 2, 2],
      [3, 2, 2],
    ]);
    cache.check();
  });
  test("token-major pages hold what head-major ones do", () => {
    using cache = poisonedGroups({
      groups: [
        { ...global, layers: [0] },
        { ...global, layers: [1], layout: "token-major" },
      ],
    });
    using sequence = cache.open();
    for (const ids of [idsFrom(0, 6), idsFrom(6, 1)]) append(cache, [[sequence, ids]]);
    for (const layer of [0, 1])
      expect(contents(cache, sequence, layer)).toEqual(expected(cache, idsFrom(0, 7), layer));
    using step = cache.reserve([{ sequence, tokens: 0 }]);
    expect([0, 1].map((layer) => floatView(step.view(layer)).kPages.strides)).toEqual([
      [2 * 4 * 3, 4 * 3, 3, 1],
      [2 * 4 * 3, 3, 2 * 3, 1],
    ]);
  });
  test("tables share starts, lengths and positions, and list each group's own pages", () => {
    using cache = poisonedGroups({ groups: GROUPS });
    using a = cache.open();
    using b = cache.open();
    append(cache, [[a, idsFrom(0, 9)]]); // local: pages 1 .. 5, of which 1, 2, 3 are behind the window
    using step = cache.reserve([
      { sequence: b, tokens: 2 },
      { sequence: a, tokens: 1 },
    ]);
    for (const layer of [0, 1, 2, 3]) writeLayer(cache, step, [80, 81, 9], layer);
    const of = (layer: number): unknown => {
      const { queryIndptr, lengths, indptr, indices, lastPageLengths, slots } = step.view(layer).table;
      return [queryIndptr, lengths, indptr, indices, lastPageLengths, slots].map((t) => Array.from(t.data));
    };
    const shared = [
      [0, 2, 3],
      [2, 10],
    ];
    expect(of(0)).toEqual([...shared, [0, 1, 6], [6, 0, 0, 0, 4, 5], [2, 2], [12, 13, 11]]);
    expect(of(2)).toEqual(of(0));
    expect(of(1)).toEqual([...shared, [0, 1, 4], [4, 1, 2, 3], [2, 2], [16, 17, 13]]);
    expect(of(3)).toEqual(of(1));
    expect(Array.from(step.positions.data)).toEqual([0, 1, 9]);
    expect(step.view(0).table.epoch).toBe(step.view(1).table.epoch);
  });
  test("a table built over another's memory is as one built anew, whatever changed between", () => {
    using cache = poisonedGroups({
      groups: [
        { ...local, maxPages: 40 },
        { ...global, maxPages: 40 },
      ].map((g, i) => ({ ...g, layers: i === 0 ? [0, 2] : [1] })),
    });
    const all = [cache.open(), cache.open(), cache.open(), cache.open()] as const;
    append(
      cache,
      all.map((s, i) => [s, idsFrom(100 * i, 2 + 3 * i)] as const),
    );
    const look = (requests: readonly (readonly [number, number])[]): unknown => {
      using step = cache.reserve(requests.map(([i, tokens]) => ({ sequence: all[i]!, tokens })));
      step.markWritten();
      return [0, 1].map((layer) => {
        const { indptr, indices, slots } = step.view(layer).table;
        const g = layer;
        const lists = requests.map(([i]) => Array.from(all[i]!.pagesOf(g)));
        expect(Array.from(indices.data)).toEqual(lists.flat());
        expect(Array.from(indptr.data).slice(1)).toEqual(
          lists.map((_, n) => lists.slice(0, n + 1).flat().length),
        );
        return Array.from(slots.data);
      });
    };
    look([
      [0, 1],
      [1, 1],
      [2, 1],
      [3, 1],
    ]);
    look([
      [0, 1],
      [1, 1],
      [2, 1],
      [3, 1],
    ]);
    look([
      [0, 1],
      [2, 1],
      [1, 1],
    ]);
    look([
      [3, 0],
      [0, 7],
      [2, 1],
      [1, 1],
    ]);
    all[2].truncate(7);
    append(cache, [
      [all[2], [7]],
      [all[0], idsFrom(3, 9)],
    ]);
    look([
      [0, 1],
      [1, 1],
      [2, 1],
      [3, 1],
    ]);
    all[1].truncate(0);
    look([
      [0, 1],
      [1, 1],
      [2, 1],
      [3, 1],
    ]);
    look([
      [1, 0],
      [0, 1],
    ]);
  });
  test("a step takes pages of every group or of none", () => {
    using cache = poisonedGroups({ groups: GROUPS });
    using a = cache.open();
    append(cache, [[a, idsFrom(0, 20)]]); // 5 of the 6 global pages
    const before = [usage(cache), ...[0, 1, 2].map((g) => poolOf(cache, g).freePages())];
    expect(() => cache.reserve([{ sequence: a, tokens: 5 }])).toThrow(
      expect.objectContaining({ constructor: OutOfMemoryError, details: { needed: 2, free: 1, total: 6 } }),
    );
    expect([usage(cache), ...[0, 1, 2].map((g) => poolOf(cache, g).freePages())]).toEqual(before);
    cache.check();
    cache.reserve([{ sequence: a, tokens: 4 }]).cancel();
    expect([usage(cache), ...[0, 1, 2].map((g) => poolOf(cache, g).freePages())]).toEqual(before);
  });
  test("a commit needs the layers of every group", () => {
    using cache = poisonedGroups({ groups: GROUPS });
    using step = cache.reserve([{ sequence: cache.open(), tokens: 1 }]);
    for (const layer of [0, 1, 3]) writeLayer(cache, step, [1], layer);
    expect(() => step.commit()).toThrow("layer 2 of 4 has not written");
    expect(() => step.view(2)).toThrow(StateError);
  });
  test("pagesOf a group that does not exist is refused", () => {
    using cache = poisonedGroups({ groups: GROUPS });
    for (const group of [-1, 3, 0.5, NaN]) expect(() => cache.open().pagesOf(group)).toThrow(ArgumentError);
  });
});
describe("options of groups", () => {
  const make = (groups: readonly unknown[], more: object = {}): KvCache =>
    new KvCache({ groups: groups as GroupOptions[], engine, ...more });
  test.each([
    ["no group", []],
    ["no layers", [{ ...local, layers: [] }]],
    ["layers that are no list", [{ ...local, layers: 2 }]],
    ["a layer in two groups", [local, { ...global, layers: [1, 2] }]],
    ["a layer twice", [{ ...local, layers: [0, 0] }]],
    ["a gap", [{ ...local, layers: [0, 2] }]],
    ["a layer that is no number", [{ ...local, layers: [0, "1"] }]],
    ["a negative layer", [{ ...local, layers: [-1, 0] }]],
    ["a page size that does not divide the largest", [{ ...local, pageSize: 3 }, global]],
    ["a window of nothing", [{ ...local, layers: [0], window: 0 }]],
    ["half a sink", [{ ...local, layers: [0], sinks: 0.5 }]],
    ["an unknown layout", [{ ...local, layers: [0], layout: "row-major" }]],
    ["a group without a limit", [local, { ...global, maxPages: undefined }]],
  ])("%s is an ArgumentError", (_, groups) => {
    expect(() => make(groups)).toThrow(ArgumentError);
  });
  test("maxBytes goes with no maxPages, and must hold a block in every group", () => {
    const groups = GROUPS.map((g) => ({ ...g, maxPages: undefined }));
    expect(() => make(GROUPS, { maxBytes: 2 ** 20 })).toThrow(ArgumentError);
    const [localPage, globalPage, latentPage] = [2 * 2 * 2 * 5 * 4, 2 * 4 * 5 * 2, 2 * 4 * 3 * 4] as const;
    const least = localPage + globalPage + latentPage + (2 * localPage + globalPage + latentPage);
    expect(() => make(groups, { maxBytes: least - 1 })).toThrow(ArgumentError);
    for (const blocks of [1, 2, 5]) {
      const maxBytes = least + (blocks - 1) * (2 * localPage + globalPage + latentPage) + 7;
      using cache = make(groups, { maxBytes });
      const { groups: counts, pageBytes } = cache.stats();
      expect(counts.map((g) => g.totalPages)).toEqual([2 * blocks, blocks, blocks]); // room for equally many tokens
      expect(pageBytes).toBe(maxBytes - 7);
    }
  });
  test.each([-1, 0.5, NaN, "1"])("a draft margin of %p is refused", (draftMargin) => {
    expect(() => make([{ ...local, layers: [0] }], { draftMargin })).toThrow(ArgumentError);
  });
  test("a group that cannot be allocated takes the others with it", () => {
    const before = memoryUsage();
    const large = { ...global, headDim: 2 ** 30, numKvHeads: 2 ** 10 };
    expect(() => make([local, large, latent])).toThrow(OutOfMemoryError);
    expect(memoryUsage().bytes).toBe(before.bytes);
    expect(memoryUsage().storages).toBe(before.storages);
  });
});
describe("stats of groups", () => {
  test("count the pages and rows of each, and weigh the waste by bytes", () => {
    using cache = poisonedGroups({ groups: GROUPS });
    using a = cache.open();
    append(cache, [[a, idsFrom(0, 9)]]);
    const { groups, waste, ...total } = cache.stats();
    expect(groups.map((g) => [g.totalPages, g.usedPages, g.freePages])).toEqual([
      [12, 2, 10],
      [6, 3, 3],
      [7, 3, 4],
    ]);
    // local: rows 6 .. 8 on two pages of 2; the others: 9 rows on three pages of 4
    expect(groups.map((g) => g.waste)).toEqual([1 - 3 / 4, 1 - 9 / 12, 1 - 9 / 12]);
    expect(waste).toBe(0.25);
    expect(total).toMatchObject({ totalPages: 25, usedPages: 8, freePages: 17, tokens: 9, sequences: 1 });
    expect(groups.map((g) => g.layers)).toEqual([[0, 2], [1], [3]]);
  });
  test("pages shared by forks count once, tokens for each", () => {
    using cache = poisonedGroups({ groups: GROUPS });
    using a = cache.open();
    append(cache, [[a, idsFrom(0, 6)]]);
    const before = cache.stats();
    a.fork(3);
    expect(cache.stats()).toMatchObject({
      usedPages: before.usedPages,
      waste: before.waste,
      tokens: 24,
      sequences: 4,
    });
  });
  test("a tail that one sequence has cut and another still fills is in use in full", () => {
    using cache = poisonedGroups({ groups: [{ ...global, layers: [0] }] });
    using a = cache.open();
    append(cache, [[a, idsFrom(0, 8)]]);
    a.fork()[0]!.truncate(5);
    expect(cache.stats().waste).toBe(0);
  });
  test("bytes are set aside at the start, and touched as pages are handed out", () => {
    using cache = poisonedGroups({ groups: [{ ...global, layers: [0] }] });
    const page = 2 * 4 * 5 * 2;
    expect(cache.stats()).toMatchObject({ pageBytes: 7 * page, touchedBytes: page });
    using a = cache.open();
    append(cache, [[a, idsFrom(0, 5)]]);
    expect(cache.stats().touchedBytes).toBe(3 * page);
    a.truncate(0);
    expect(cache.stats().touchedBytes).toBe(3 * page);
  });
  test("reset puts every group's free pages back in order", () => {
    using cache = poisonedGroups({ groups: GROUPS });
    const a = cache.open();
    append(cache, [[a, idsFrom(0, 9)]]);
    a.release();
    cache.reset();
    GROUPS.forEach(({ maxPages }, g) =>
      expect(Array.from(poolOf(cache, g).freePages())).toEqual(idsFrom(1, maxPages!)),
    );
    poisonAll(cache);
    cache.check();
  });
});
