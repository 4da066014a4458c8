/** What other caches have got wrong, each under the name of the right behaviour. */
import { ArgumentError, DisposedError, pagedAttention, scope, type Tensor } from "@heed/tensor";
import { describe, expect, test } from "bun:test";
import {
  append,
  poolOf,
  contents,
  expected,
  floats,
  gathered,
  idsFrom,
  poisonAll,
  poisonedCache,
  writeLayer,
} from "./fixtures.ts";

describe("the cache", () => {
  test("never hands the same page out twice after a double free", () => {
    using cache = poisonedCache();
    const a = cache.open();
    append(cache, [[a, idsFrom(0, 8)]]);
    a.release();
    expect(() => a.release()).toThrow(DisposedError);
    a[Symbol.dispose]();
    const all = [cache.open(), cache.open(), cache.open()] as const;
    append(
      cache,
      all.map((sequence) => [sequence, idsFrom(0, 16)] as const),
    );
    const pages = all.flatMap((sequence) => Array.from(sequence.pages));
    expect(new Set(pages).size).toBe(12);
    cache.check();
  });
  test("does not re-expose freed pages by truncating to a greater length", () => {
    using cache = poisonedCache();
    using a = cache.open();
    using b = cache.open();
    append(cache, [[a, idsFrom(0, 8)]]);
    a.truncate(2);
    append(cache, [[b, idsFrom(50, 44)]]); // now holds the page that a gave back
    expect(() => a.truncate(8)).toThrow(ArgumentError);
    expect(a.length).toBe(2);
    expect(contents(cache, b, 0)).toEqual(expected(cache, idsFrom(50, 44), 0));
  });
  test("keeps nothing when truncated to 0", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    append(cache, [[sequence, idsFrom(0, 9)]]);
    sequence.truncate(0);
    expect([
      sequence.length,
      sequence.pages.length,
      sequence.tokenIds.length,
      cache.stats().usedPages,
    ]).toEqual([0, 0, 0, 0]);
    append(cache, [[sequence, [30]]]);
    expect(contents(cache, sequence, 1)).toEqual(expected(cache, [30], 1));
  });
  test("writes nothing outside its rows for a negative argument", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    append(cache, [[sequence, idsFrom(0, 5)]]);
    for (const tokens of [-1, -5, -(2 ** 31)])
      expect(() => cache.reserve([{ sequence, tokens }])).toThrow(ArgumentError);
    for (const length of [-1, -5, -(2 ** 31)]) expect(() => sequence.truncate(length)).toThrow(ArgumentError);
    using step = cache.reserve([{ sequence, tokens: 1 }]);
    expect(() => writeLayer(cache, step, [1], -1)).toThrow(ArgumentError);
    step.cancel();
    expect(contents(cache, sequence, 0)).toEqual(expected(cache, idsFrom(0, 5), 0));
    cache.check();
  });
  test("lets no NaN out of value rows that were never written", () => {
    using cache = poisonedCache({ valueHeadDim: 3 });
    using sequence = cache.open();
    using step = cache.reserve([{ sequence, tokens: 5 }]);
    writeLayer(cache, step, idsFrom(0, 5), 0);
    scope(() => {
      const q = floats(
        new Float64Array(5 * 4 * 3).fill(0.1),
        [5, 4, 3],
        "float32",
        "portable",
      ) as Tensor<"float32">;
      const out = pagedAttention(q, step.view(0));
      expect(Array.from(out.data).every(Number.isFinite)).toBe(true);
    });
  });
  test("shows a re-issued page to its new owner only", () => {
    using cache = poisonedCache({ maxPages: 2 });
    const first = cache.open();
    append(cache, [[first, idsFrom(0, 8)]]);
    const look = cache.reserve([{ sequence: first, tokens: 0 }]);
    const { table } = look.view(0);
    look.cancel();
    first.release();
    using second = cache.open();
    append(cache, [[second, idsFrom(30, 8)]]);
    expect(() => table.indices.data).toThrow(DisposedError);
    expect(() => cache.reserve([{ sequence: first, tokens: 0 }])).toThrow(DisposedError);
    expect(first.pages.length).toBe(0);
    using now = cache.reserve([{ sequence: second, tokens: 0 }]);
    expect(now.view(0).table.epoch).toBeGreaterThan(table.epoch);
  });
  test.each(["float16", "bfloat16"] as const)(
    "never re-encodes an earlier %s token when later ones come",
    (dtype) => {
      using cache = poisonedCache({ dtype, layers: 1 });
      using sequence = cache.open();
      const add = (scale: number): void => {
        using step = cache.reserve([{ sequence, tokens: 1 }]);
        const make = (width: number): Tensor =>
          floats(new Float64Array(2 * width).fill(scale / 3), [1, 2, width], "float32", "portable");
        scope(() => step.write(0, make(3), make(2)));
        step.commit();
      };
      add(1);
      const encoded = contents(cache, sequence, 0);
      for (let t = 1; t < 30; t++) add(10 ** (t % 5));
      const now = contents(cache, sequence, 0);
      expect({ k: now.k.slice(0, 6), v: now.v.slice(0, 4) }).toEqual(encoded);
    },
  );
  test("does not count tokens whose step lacks a layer", () => {
    using cache = poisonedCache();
    using sequence = cache.open();
    {
      using step = cache.reserve([{ sequence, tokens: 3 }]);
      writeLayer(cache, step, [1, 2, 3], 0);
    }
    expect([sequence.length, cache.stats().tokens]).toEqual([0, 0]);
  });
  test("keeps a failed reservation from touching what others hold", () => {
    using cache = poisonedCache({ maxPages: 6 });
    const [a, b] = [cache.open(), cache.open()] as const;
    append(cache, [
      [a, idsFrom(0, 8)],
      [b, idsFrom(0, 8)],
    ]);
    const references = [1, 2, 3, 4, 5, 6].map((page) => poolOf(cache).references(page));
    expect(() =>
      cache.reserve([
        { sequence: a, tokens: 4 },
        { sequence: b, tokens: 8 },
      ]),
    ).toThrow("needs 3 pages");
    expect([1, 2, 3, 4, 5, 6].map((page) => poolOf(cache).references(page))).toEqual(references);
  });
  test("changes nothing of one sequence by what another does in the same step", () => {
    using cache = poisonedCache();
    const [a, b] = [cache.open(), cache.open()] as const;
    append(cache, [
      [a, idsFrom(0, 3)],
      [b, idsFrom(10, 6)],
    ]);
    b.truncate(1);
    append(cache, [
      [b, idsFrom(40, 9)],
      [a, idsFrom(60, 2)],
    ]);
    const ids = [...idsFrom(0, 3), ...idsFrom(60, 2)];
    for (const layer of [0, 1]) expect(contents(cache, a, layer)).toEqual(expected(cache, ids, layer));
  });
  test("reads nothing of a page's former owner, even of rows that lie beyond the new one's end", () => {
    using cache = poisonedCache({ maxPages: 1, valueHeadDim: 3 });
    const attend = (): number[] => {
      using sequence = cache.open();
      using step = cache.reserve([{ sequence, tokens: 2 }]);
      writeLayer(cache, step, [1, 2], 0);
      return scope(() => {
        const q = floats(
          new Float64Array(2 * 2 * 3).fill(0.01),
          [2, 2, 3],
          "float32",
          "portable",
        ) as Tensor<"float32">;
        expect(gathered(step.view(0), 0)).toEqual(expected(cache, [1, 2], 0));
        return Array.from(pagedAttention(q, step.view(0)).data);
      });
    };
    const clean = attend();
    using former = cache.open();
    append(cache, [[former, idsFrom(90, 4)]]);
    former.release();
    expect(attend()).toEqual(clean);
    poisonAll(cache);
    expect(attend()).toEqual(clean);
  });
});
