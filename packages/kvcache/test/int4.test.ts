/** Caches whose pages are encoded in 4 bits once they are full: what rows are before and after, and what nobody can do any more. */
import {
  ArgumentError,
  DTypeError,
  getEngine,
  OutOfMemoryError,
  type QuantisedGroups,
  toFloat64,
} from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type KvCache, type KvCacheOptions, type Sequence, StateError } from "../src/index.ts";
import { engines } from "./engines.ts";
import { booksOf, faulty, idsFrom, poisonAll, poolOf, usage } from "./fixtures.ts";
import {
  appendTokens,
  expectedRows,
  int4Cache,
  sealedTokens,
  storedRows,
  tokenRow,
  writeTokens,
} from "./int4-fixtures.ts";

/** Every row is what it must be when the first `sealed` tokens are encoded. */
function expectRows(cache: KvCache, sequence: Sequence, ids: readonly number[], sealed: number): void {
  cache.check();
  expect(sequence.length).toBe(ids.length);
  for (let layer = 0; layer < cache.layout.layers; layer++)
    for (const part of ["k", "v"] as const) {
      const found = storedRows(cache, sequence, layer, part);
      expect(found.sealed.filter(Boolean).length).toBe(sealed);
      expect(found.rows).toEqual(expectedRows(cache, ids, sealed, layer, part));
    }
}
const residualPool = (cache: KvCache) => booksOf(cache).groups[0]!.residuals!.pool;

describe.each(engines)("a cache of int4 pages on %s", (engine) => {
  const cacheOf = (o: Partial<KvCacheOptions> = {}): KvCache => {
    const cache = int4Cache({ engine, ...o });
    poisonAll(cache);
    return cache;
  };

  test("a page is exact until it is full, and encoded by the commit that fills it", () => {
    using cache = cacheOf();
    using sequence = cache.open();
    for (let n = 0; n < 10; n++) {
      appendTokens(cache, [[sequence, [n]]]);
      expectRows(cache, sequence, idsFrom(0, n + 1), Math.floor((n + 1) / 4) * 4);
    }
    expect(cache.stats().freeResidualPages).toBe(cache.stats().residualPages - 1);
  });
  test("pages of several groups of tokens, and any layout and residual dtype, hold the same", () => {
    const residual = ["float32", "float16", "bfloat16"] as const;
    const sizes = [1, 5, 32, 64];
    for (const [n, pageSize] of sizes.entries())
      for (const layout of ["head-major", "token-major"] as const) {
        const maxPages = Math.ceil(71 / pageSize);
        const residualDtype = residual[(n + (layout === "head-major" ? 0 : 1)) % 3];
        using cache = cacheOf({ pageSize, layout, residualDtype, maxPages, maxResidualPages: maxPages });
        using sequence = cache.open();
        for (const tokens of [40, 1, 30]) appendTokens(cache, [[sequence, idsFrom(sequence.length, tokens)]]);
        expectRows(cache, sequence, idsFrom(0, 71), Math.floor(71 / pageSize) * pageSize);
      }
  });
  test("rows are encoded once: forks, truncation and later tokens change none", () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 5 }),
        fc.nat({ max: 5 }),
        fc.nat({ max: 12 }),
        fc.array(fc.integer({ min: 1, max: 9 }), { maxLength: 3 }),
        (counts, draftMargin, cut, more) => {
          using cache = cacheOf({ draftMargin, maxPages: 60, maxResidualPages: 60 });
          const first = cache.open();
          const ids: number[] = [];
          const add = (sequence: Sequence, list: number[], count: number, from: number): void => {
            const next = idsFrom(from + list.length, count);
            appendTokens(cache, [[sequence, next]]);
            list.push(...next);
          };
          for (const n of counts) add(first, ids, n, 0);
          const sealed = Math.floor(Math.max(0, ids.length - draftMargin) / 4) * 4;
          const [second] = first.fork();
          const kept = Math.max(0, ids.length - cut);
          const others = ids.slice(0, kept);
          if (kept < sealed && kept % 4 !== 0) {
            expect(kept).toBeLessThan(ids.length - draftMargin); // the margin is always there
            expect(() => second!.truncate(kept)).toThrow(StateError);
            return;
          }
          second!.truncate(kept);
          for (const n of more) {
            add(first, ids, n, 0);
            add(second!, others, n, 500);
          }
          for (const [sequence, list] of [
            [first, ids],
            [second!, others],
          ] as const) {
            const now = sealedTokens(cache, sequence);
            expect(now).toBeLessThanOrEqual(Math.max(Math.min(sealed, kept), list.length - draftMargin));
            expectRows(cache, sequence, list, now);
          }
        },
      ),
      { numRuns: engine === "portable" ? 10 : 40 },
    );
  });
  test("drafts within the margin are taken back exactly; further back only whole pages go", () => {
    using cache = cacheOf({ draftMargin: 3 });
    using sequence = cache.open();
    appendTokens(cache, [[sequence, idsFrom(0, 18)]]);
    expectRows(cache, sequence, idsFrom(0, 18), 12);
    sequence.truncate(15);
    expectRows(cache, sequence, idsFrom(0, 15), 12);
    appendTokens(cache, [[sequence, [90, 91]]]);
    expectRows(cache, sequence, [...idsFrom(0, 15), 90, 91], 12);
    const before = usage(cache);
    for (const length of [11, 9, 7, 1]) {
      expect(() => sequence.truncate(length)).toThrow("multiples of 4 below 12, and 12 to 17");
      expect(() => sequence.truncate(length)).toThrow(StateError);
    }
    expect(usage(cache)).toEqual(before);
    sequence.truncate(8);
    appendTokens(cache, [[sequence, [50, 51, 52]]]);
    expectRows(cache, sequence, [...idsFrom(0, 8), 50, 51, 52], 8);
    sequence.truncate(0);
    expectRows(cache, sequence, [], 0);
    expect(residualPool(cache).free).toBe(residualPool(cache).count);
  });
  test("a shared page is encoded when it is full, and beyond the margin, for all who share it", () => {
    using cache = cacheOf({ draftMargin: 4 });
    using first = cache.open();
    appendTokens(cache, [[first, idsFrom(0, 8)]]);
    const [second] = first.fork();
    second!.truncate(6);
    appendTokens(cache, [[first, idsFrom(8, 4)]]);
    expectRows(cache, first, idsFrom(0, 12), 4); // 4 .. 7 would be due
    expectRows(cache, second!, idsFrom(0, 6), 4);
    appendTokens(cache, [[second!, [70, 71, 72, 73, 74, 75]]]); // has a copy of 4 and 5 now
    expectRows(cache, second!, [...idsFrom(0, 6), 70, 71, 72, 73, 74, 75], 8);
    appendTokens(cache, [[first, [12]]]);
    expectRows(cache, first, idsFrom(0, 13), 8);
    second!.release();
    cache.check();
  });
  test("a page that an open step reads waits, with all behind it", () => {
    using cache = cacheOf({ draftMargin: 2 });
    using first = cache.open();
    appendTokens(cache, [[first, idsFrom(0, 5)]]); // page 0 is full but within the margin
    const [second] = first.fork();
    appendTokens(cache, [[second!, [20]]]); // for which page 0 could be encoded
    {
      using look = cache.reserve([{ sequence: second!, tokens: 0 }]);
      appendTokens(cache, [[first, idsFrom(5, 9)]]);
      expectRows(cache, first, idsFrom(0, 14), 0);
      expect(look.view(0).table.indices.data[0]).toBeGreaterThanOrEqual(25); // as it was
    }
    second!.release();
    appendTokens(cache, [[first, [14]]]);
    expectRows(cache, first, idsFrom(0, 15), 12);
  });
  test("a page to which a cancelled step would go back waits", () => {
    using cache = cacheOf({ draftMargin: 1 });
    using first = cache.open();
    appendTokens(cache, [[first, idsFrom(0, 4)]]);
    const [second] = first.fork();
    second!.truncate(3);
    const step = cache.reserve([{ sequence: second!, tokens: 1 }]); // on a copy of the page
    appendTokens(cache, [[first, idsFrom(4, 3)]]);
    expectRows(cache, first, idsFrom(0, 7), 0);
    step.cancel();
    expectRows(cache, second!, idsFrom(0, 3), 0);
    second!.release();
    appendTokens(cache, [[first, [7]]]);
    expectRows(cache, first, idsFrom(0, 8), 4);
  });
  test("sequences that share a full page fill it together and it is encoded once", () => {
    using cache = cacheOf({ draftMargin: 2 });
    using first = cache.open();
    appendTokens(cache, [[first, idsFrom(0, 5)]]);
    const [second] = first.fork();
    appendTokens(cache, [
      [first, [10, 11, 12]],
      [second!, [20, 21]],
    ]);
    expectRows(cache, first, [...idsFrom(0, 5), 10, 11, 12], 4);
    expectRows(cache, second!, [...idsFrom(0, 5), 20, 21], 4);
    expect(first.pages[0]).toBe(second!.pages[0]!);
    second!.release();
  });
  test("who keeps a tail that others have left, and fills it, has it encoded by the same commit", () => {
    using cache = cacheOf();
    using first = cache.open();
    appendTokens(cache, [[first, idsFrom(0, 3)]]);
    const [second] = first.fork();
    appendTokens(cache, [
      [first, [10]],
      [second!, [20]],
    ]);
    expectRows(cache, first, [...idsFrom(0, 3), 10], 4);
    expectRows(cache, second!, [...idsFrom(0, 3), 20], 4);
    second!.release();
  });
  test("the tables of all who share a page name the encoded one, also where nothing else has changed", () => {
    using cache = cacheOf({ draftMargin: 2 });
    using first = cache.open();
    appendTokens(cache, [[first, idsFrom(0, 5)]]);
    const [second] = first.fork();
    appendTokens(cache, [[second!, [20]]]);
    const shape = (tokens: number) => [
      { sequence: first, tokens },
      { sequence: second!, tokens: 0 },
    ];
    const step = cache.reserve(shape(1));
    for (let layer = 0; layer < 2; layer++) writeTokens(cache, step, [5], layer);
    step.commit([5]);
    using look = cache.reserve(shape(0));
    const names = look.view(0).table.indices.data;
    expect([names[0], names[2]]).toEqual([first.pages[0], second!.pages[0]]);
    expect(names[1]).toBeGreaterThanOrEqual(25);
    look.cancel();
    second!.release();
  });
  test("a step that lacks residual pages changes nothing and says what to do; chunks fit", () => {
    using cache = cacheOf({ maxResidualPages: 2 });
    using sequence = cache.open();
    appendTokens(cache, [[sequence, idsFrom(0, 3)]]);
    const before = usage(cache);
    expect(() => cache.reserve([{ sequence, tokens: 6 }])).toThrow("shorter chunks");
    expect(() => cache.reserve([{ sequence, tokens: 6 }])).toThrow(OutOfMemoryError);
    expect(usage(cache)).toEqual(before);
    expectRows(cache, sequence, idsFrom(0, 3), 0);
    for (let n = 3; n < 40; n += 4) appendTokens(cache, [[sequence, idsFrom(n, 4)]]);
    expectRows(cache, sequence, idsFrom(0, 43), 40);
  });
  test("a cancelled step leaves no trace, in the order of residual pages neither", () => {
    using cache = cacheOf();
    const [a, b] = [cache.open(), cache.open()];
    appendTokens(cache, [
      [a, idsFrom(0, 3)],
      [b, idsFrom(20, 9)],
    ]);
    const [fork] = a.fork();
    const state = (): unknown => [usage(cache), poolOf(cache).freePages(), residualPool(cache).freePages()];
    const before = state();
    const step = cache.reserve([
      { sequence: a, tokens: 7 },
      { sequence: fork!, tokens: 1 },
      { sequence: b, tokens: 4 },
    ]);
    for (let layer = 0; layer < 2; layer++) writeTokens(cache, step, idsFrom(60, 12), layer);
    step.cancel();
    expect(state()).toEqual(before);
    expectRows(cache, a, idsFrom(0, 3), 0);
    expectRows(cache, fork!, idsFrom(0, 3), 0);
    expectRows(cache, b, idsFrom(20, 9), 8);
  });
  test("a fenced residual page is not handed out, encoded or released", () => {
    for (const how of ["encoded", "released"] as const) {
      using cache = cacheOf({ maxResidualPages: 3 });
      const [sequence, other] = [cache.open(), cache.open()];
      appendTokens(cache, [[sequence, idsFrom(0, 3)]]);
      using look = cache.reserve([{ sequence, tokens: 0 }]);
      const name = look.view(0).table.indices.data[0]!;
      look.cancel();
      const fence = cache.fence([sequence]);
      if (how === "encoded") appendTokens(cache, [[sequence, [3]]]);
      else sequence.release();
      cache.check();
      expect(cache.stats().freeResidualPages).toBe(2);
      appendTokens(cache, [[other, idsFrom(40, 8)]]); // takes all the others
      using again = cache.reserve([]);
      const { residual } = again.view(0).kPages as QuantisedGroups;
      const row = toFloat64(
        residual
          .select(0, name - 25)
          .slice(1, 0, 1)
          .contiguous(),
      );
      expect([...row]).toEqual([...tokenRow(0, 0, "k", 2, 37)]);
      fence[Symbol.dispose]();
      cache.check();
      expect(cache.stats().freeResidualPages).toBe(3);
    }
  });
  test("an engine that fails in a commit leaves the step open, and it can be committed again", () => {
    const { engine: weak, arm, fired } = faulty(engine);
    using cache = int4Cache({ engine: weak });
    using sequence = cache.open();
    appendTokens(cache, [[sequence, idsFrom(0, 6)]]);
    let failures = 0;
    for (let n = 1; ; n += n < 6 ? 1 : 9) {
      using step = cache.reserve([{ sequence, tokens: 3 }]);
      for (let layer = 0; layer < 2; layer++) writeTokens(cache, step, idsFrom(6, 3), layer);
      const before = usage(cache);
      arm(n);
      try {
        step.commit(idsFrom(6, 3));
      } catch (error) {
        if (!(error instanceof OutOfMemoryError)) throw error;
        failures++;
      }
      const failed = fired();
      arm(Infinity);
      if (!failed) break;
      expect(step.isOpen).toBe(true);
      expect(usage(cache)).toEqual(before);
      cache.check();
      if (n % 2 === 0) continue; // cancelled
      step.commit(idsFrom(6, 3));
      expectRows(cache, sequence, idsFrom(0, 9), 8);
      sequence.truncate(4);
      appendTokens(cache, [[sequence, [4, 5]]]);
    }
    expect(failures).toBeGreaterThan(1);
    expectRows(cache, sequence, idsFrom(0, 9), 8);
  });
  test("the null page reads as zeros", () => {
    using cache = int4Cache({ engine });
    using step = cache.reserve([]);
    const { kPages, vPages } = step.view(1);
    for (const { codes, scales, zeros } of [kPages, vPages] as QuantisedGroups[])
      for (const t of [codes, scales, zeros])
        expect(new Set(toFloat64((t as typeof scales).select(0, 0).contiguous()))).toEqual(new Set([0]));
  });
  test("windows drop encoded pages and keep sinks", () => {
    using cache = cacheOf({ window: 6, sinks: 2 });
    using sequence = cache.open();
    for (let n = 0; n < 30; n += 3) appendTokens(cache, [[sequence, idsFrom(n, 3)]]);
    cache.check();
    expect([...sequence.pages].map((page) => page !== 0)).toEqual([
      true,
      false,
      false,
      false,
      false,
      false,
      true,
      true,
    ]);
    const { rows } = storedRows(cache, sequence, 1, "k");
    const wanted = expectedRows(cache, idsFrom(0, 30), 28, 1, "k");
    for (const t of [0, 3, 24, 27, 28, 29]) expect(rows[t]).toEqual(wanted[t]!);
  });
});

describe("the books of int4 pages", () => {
  test("bytes are those of codes, scales, zeros and residual pages", () => {
    using cache = int4Cache({ maxResidualPages: 3, residualDtype: "bfloat16" });
    using step = cache.reserve([]);
    const view = [0, 1].map((layer) => step.view(layer));
    const tensors = view.flatMap(({ kPages, vPages }) =>
      ([kPages, vPages] as QuantisedGroups[]).flatMap(({ codes, scales, zeros, residual }) => [
        codes.size,
        4 * scales.size,
        4 * zeros.size,
        2 * residual.size,
      ]),
    );
    expect(cache.stats().pageBytes).toBe(tensors.reduce((a, b) => a + b));
    expect(cache.stats().residualPages).toBe(3);
  });
  test("residual pages are a sixteenth of the pages, and as many as are of use", () => {
    const share = (maxPages: number): number => {
      using cache = int4Cache({ maxPages });
      return cache.stats().residualPages;
    };
    expect([1, 10, 100, 256, 257, 1600].map(share)).toEqual([1, 10, 16, 16, 17, 100]);
  });
  test("maxBytes counts residual pages, of groups of any storage", () => {
    for (const maxResidualPages of [undefined, 5])
      for (const maxBytes of [30_000, 100_000, 1_000_000]) {
        using cache = int4Cache({ maxBytes, maxResidualPages });
        const { pageBytes, totalPages, residualPages } = cache.stats();
        expect(pageBytes).toBeLessThanOrEqual(maxBytes);
        using larger = int4Cache({ maxPages: totalPages + 1, maxResidualPages });
        expect(larger.stats().pageBytes).toBeGreaterThan(maxBytes);
        expect(residualPages).toBe(
          maxResidualPages ?? Math.min(totalPages, Math.max(16, Math.ceil(totalPages / 16))),
        );
      }
    expect(() => int4Cache({ maxBytes: 2000 })).toThrow(ArgumentError);
  });
  test("stats count residual pages in use", () => {
    using cache = int4Cache({ maxResidualPages: 7 });
    using sequence = cache.open();
    const before = cache.stats().touchedBytes;
    appendTokens(cache, [[sequence, idsFrom(0, 10)]]);
    const { freeResidualPages, groups, touchedBytes, pageBytes } = cache.stats();
    expect([freeResidualPages, groups[0]!.freeResidualPages, groups[0]!.residualPages]).toEqual([6, 6, 7]);
    const residual = 2 * 2 * 4 * (37 + 5) * 4;
    const page = (pageBytes - 7 * residual) / 25;
    expect(touchedBytes - before).toBe(3 * page + 3 * residual);
  });
  test("what the format does not allow is a typed error", () => {
    expect(() => int4Cache({ pageSize: 33 })).toThrow(ArgumentError);
    expect(() => int4Cache({ pageSize: 48 })).toThrow("below 32 or a multiple");
    expect(() => int4Cache({ valuesInKeys: true })).toThrow(ArgumentError);
    expect(() => int4Cache({ residualDtype: "float64" as "float32" })).toThrow(DTypeError);
    for (const maxResidualPages of [0, -1, 1.5, NaN, 2 ** 31])
      for (const limit of [{}, { maxBytes: 100_000 }])
        expect(() => int4Cache({ maxResidualPages, ...limit })).toThrow(ArgumentError);
    expect(() => int4Cache({ dtype: "int8", maxResidualPages: 3 })).toThrow("int4 groups");
    expect(() => int4Cache({ dtype: "float32", residualDtype: "float16" })).toThrow(ArgumentError);
  });
  test("a reset cache is as a new one", () => {
    using cache = int4Cache({ engine: getEngine("portable") });
    using sequence = cache.open();
    appendTokens(cache, [[sequence, idsFrom(0, 10)]]);
    sequence.release();
    cache.reset();
    cache.check();
    expect([...residualPool(cache).freePages()]).toEqual(idsFrom(1, 16));
  });
});
