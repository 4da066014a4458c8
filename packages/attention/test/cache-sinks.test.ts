/** Sink tokens of a layer over a cache that keeps the first pages behind a window: what is seen is the sinks and the last W tokens. */
import "@heed/engine-cpu";
import { KvCache } from "@heed/kvcache";
import { ArgumentError, fill, getEngine, scope, type Tensor, tensor, toFloat64 } from "@heed/tensor";
import { assertClose, createRng, floatView } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { GroupedQueryAttention, LocalAttention } from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";

const HIDDEN = 6;
const HEADS = { hiddenSize: HIDDEN, numHeads: 4, numKvHeads: 2, headDim: 4, rope: {} } as const;

describe.each(engines)("sink tokens over a cache on %s", (name) => {
  const engine = getEngine(name);
  const on = { engine, dtype: "float64" } as const;
  const rowsOf = (length: number, seed: number): Tensor<"float64"> =>
    upload(createRng(seed).normalArray(length * HIDDEN), [length, HIDDEN], "float64", engine);
  /** Every row NaN, those of the null page as well. */
  const poisonedCache = (window: number, sinks: number, pageSize: number, maxPages: number): KvCache => {
    const cache = new KvCache({
      layers: 1,
      numKvHeads: 2,
      headDim: 4,
      window,
      sinks,
      pageSize,
      maxPages,
      ...on,
    });
    using step = cache.reserve([]);
    const { kPages, vPages } = floatView(step.view(0));
    for (const pages of [kPages, vPages]) fill(pages, NaN);
    return cache;
  };
  const local = (windowSize: number, sinkTokens: number): LocalAttention =>
    LocalAttention.create({ ...HEADS, windowSize, sinkTokens, seed: 1, ...on });

  test("chunks and decode steps over released pages equal full attention under a mask of the sinks and the last W", () => {
    const cases = fc.record({
      window: fc.integer({ min: 1, max: 7 }),
      sinks: fc.nat({ max: 6 }),
      spare: fc.nat({ max: 2 }),
      pageSize: fc.constantFrom(1, 2, 4),
      chunks: fc.array(fc.constantFrom(1, 1, 1, 2, 5, 9), { minLength: 1, maxLength: 12 }),
      seed: fc.nat({ max: 0xffff }),
    });
    fc.assert(
      fc.property(cases, ({ window, sinks, spare, pageSize, chunks, seed }) =>
        scope(() => {
          using cache = poisonedCache(window, sinks + spare, pageSize, 60);
          const layer = local(window, sinks);
          const length = chunks.reduce<number>((a, n) => a + n, 0);
          const x = rowsOf(length, seed);
          const sequence = cache.open();
          const found: number[] = [];
          for (const tokens of chunks) {
            const from = sequence.length;
            using step = cache.reserve([{ sequence, tokens }]);
            found.push(...toFloat64(layer.forward(x.slice(0, from, from + tokens), { cache: step })));
            step.commit();
          }
          const visible = Uint8Array.from({ length: length * length }, (_, e) => {
            const [i, j] = [Math.floor(e / length), e % length];
            return j <= i && (j < sinks || j > i - window) ? 1 : 0;
          });
          const attnMask = tensor(visible, [length, length], { engine, dtype: "bool" });
          const full = new GroupedQueryAttention({ ...HEADS, isCausal: false }, layer.parameters);
          const should = toFloat64(full.forward(x.unsqueeze(0), { attnMask }));
          assertClose(Float64Array.from(found), should, { rel: 1e-11, abs: 1e-13 });
        }),
      ),
      { numRuns: 40 },
    );
  });
  test("a long sequence needs the pages of the sinks and of the window, and no more", () => {
    scope(() => {
      using cache = poisonedCache(8, 4, 4, 5);
      const layer = local(8, 4);
      const sequence = cache.open();
      for (let t = 0; t < 100; t++) {
        using step = cache.reserve([{ sequence, tokens: 1 }]);
        const out = toFloat64(scope(() => layer.forward(rowsOf(1, t), { cache: step })));
        expect(out.every(Number.isFinite)).toBe(true);
        step.commit();
      }
      expect(cache.stats().usedPages).toBeLessThanOrEqual(4);
    });
  });
  test("a layer that asks for more sinks than the cache keeps is a typed error, and the cache goes on", () => {
    scope(() => {
      using cache = poisonedCache(4, 2, 2, 10);
      const sequence = cache.open();
      {
        using step = cache.reserve([{ sequence, tokens: 3 }]);
        expect(() => local(4, 3).forward(rowsOf(3, 1), { cache: step })).toThrow(ArgumentError);
        expect(() => local(4, 3).forward(rowsOf(3, 1), { cache: step })).toThrow(
          "sinkTokens must be at most the 2 first tokens whose pages the cache keeps; got 3",
        );
        expect(local(4, 2).forward(rowsOf(3, 1), { cache: step }).shape).toEqual([3, HIDDEN]);
        step.commit();
      }
      cache.check();
    });
  });
  test("a cache without a window keeps every token, so that a layer may ask for any sinks", () => {
    scope(() => {
      using cache = new KvCache({ layers: 1, numKvHeads: 2, headDim: 4, maxPages: 2, ...on });
      using step = cache.reserve([{ sequence: cache.open(), tokens: 9 }]);
      const x = rowsOf(9, 1);
      const layer = local(2, 3);
      const paged = toFloat64(layer.forward(x, { cache: step }));
      assertClose(paged, toFloat64(layer.forward(x.unsqueeze(0))), { rel: 1e-11, abs: 1e-13 });
    });
  });
  test("attributes name the sink tokens, and a number that is not whole is a typed error", () => {
    scope(() => {
      expect(local(4, 3).attributes().sinkTokens).toBe(3);
      for (const bad of [-1, 0.5, NaN]) expect(() => local(4, bad)).toThrow(ArgumentError);
    });
  });
});
