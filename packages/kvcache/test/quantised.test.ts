/** Caches whose rows are stored in 8 bits, each with its scale. */
import {
  DTypeError,
  getEngine,
  pagedAttention,
  type QuantisedRows,
  scope,
  type Tensor,
  toFloat64,
} from "@heed/tensor";
import {
  assertClose,
  attentionOracle,
  createRng,
  decodeRowOracle,
  encodeRowOracle,
  gatherPages,
} from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { HostTier, KvCache, type KvCacheOptions, type Sequence } from "../src/index.ts";
import { engines } from "./engines.ts";
import { floats, hostTable } from "./fixtures.ts";

const HKV = 2;
const D = 6;
const FORMATS = ["int8", "float8e4m3"] as const;

/** Numbers of the token at a position: the same wherever it is written. */
const tokenRow = (seed: number, position: number, width: number): Float64Array =>
  createRng(seed * 1009 + position).normalArray(HKV * width, 0, 3);

describe.each(engines)("a cache of 8-bit rows on %s", (name) => {
  const engine = getEngine(name);
  const cacheOf = (dtype: (typeof FORMATS)[number], o: Partial<KvCacheOptions> = {}): KvCache =>
    new KvCache({ layers: 2, numKvHeads: HKV, headDim: D, pageSize: 4, maxPages: 24, dtype, engine, ...o });
  function append(cache: KvCache, sequence: Sequence, seed: number, tokens: number): void {
    using step = cache.reserve([{ sequence, tokens }]);
    const { valuesInKeys } = cache.layout.groups[0]!;
    scope(() => {
      for (let layer = 0; layer < 2; layer++) {
        const rows = (part: number): Tensor => {
          const all = Array.from({ length: tokens }, (_, t) => [
            ...tokenRow(seed + 10 * layer + 100 * part, sequence.length + t, D),
          ]).flat();
          return floats(all, [tokens, HKV, D], "float32", engine);
        };
        if (valuesInKeys) step.write(layer, rows(0));
        else step.write(layer, rows(0), rows(1));
      }
    });
    step.commit(Array.from({ length: tokens }, (_, t) => sequence.length + t));
  }
  /** Codes and scales of a sequence's rows, [length, Hkv, width] and [length, Hkv]. */
  function stored(cache: KvCache, sequence: Sequence, layer: number, part: "kPages" | "vPages") {
    using step = cache.reserve([{ sequence, tokens: 0 }]);
    return scope(() => {
      const view = step.view(layer);
      const { codes, scales } = view[part] as QuantisedRows;
      const table = hostTable(view.table, codes.shape[2]!);
      const read = (t: Tensor, width: number): number[] =>
        Array.from(gatherPages(toFloat64(t.contiguous()), table, 0, { Hkv: HKV, width }));
      return { codes: read(codes as unknown as Tensor, codes.shape[3]!), scales: read(scales, 1) };
    });
  }
  /** What {@link stored} must give for tokens 0 .. length - 1. */
  function encoded(dtype: (typeof FORMATS)[number], seed: number, length: number) {
    const rows = Array.from({ length: length * HKV }, (_, i) => {
      const row = tokenRow(seed, Math.floor(i / HKV), D).slice((i % HKV) * D, (i % HKV) * D + D);
      return encodeRowOracle(dtype, row);
    });
    return { codes: rows.flatMap((r) => [...r.codes]), scales: rows.map((r) => r.scale) };
  }

  test.each(FORMATS)("%s rows are encoded once: forks, truncation and later tokens change none", (dtype) => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1, maxLength: 5 }),
        fc.nat({ max: 6 }),
        fc.constantFrom("head-major", "token-major"),
        (counts, cut, layout) => {
          using cache = cacheOf(dtype, { layout: layout as "head-major" });
          const first = cache.open();
          for (const n of counts) append(cache, first, 1, n);
          const [second] = first.fork(1);
          append(cache, first, 1, 3); // copies the shared tail
          const kept = Math.max(0, second!.length - cut);
          second!.truncate(kept);
          append(cache, second!, 1, 2);
          cache.check();
          for (const [sequence, length] of [
            [first, counts.reduce((a, b) => a + b) + 3],
            [second!, kept + 2],
          ] as const)
            for (const layer of [0, 1]) {
              expect(stored(cache, sequence, layer, "kPages")).toEqual(
                encoded(dtype, 1 + 10 * layer, length),
              );
              expect(stored(cache, sequence, layer, "vPages")).toEqual(
                encoded(dtype, 101 + 10 * layer, length),
              );
            }
        },
      ),
      { numRuns: 25 },
    );
  });
  test.each(FORMATS)("%s pages swap out and in, and hits share them, bit for bit", async (dtype) => {
    using cache = cacheOf(dtype, { prefixes: true });
    using sequence = cache.open();
    append(cache, sequence, 3, 11);
    const before = [0, 1].map((layer) => stored(cache, sequence, layer, "vPages"));
    const tier = new HostTier({ maxBytes: 1 << 20 });
    await cache.swapOut(sequence, tier);
    using other = cache.open();
    append(cache, other, 4, 20); // takes pages that were the sequence's
    await cache.swapIn(sequence);
    expect([0, 1].map((layer) => stored(cache, sequence, layer, "vPages"))).toEqual(before);
    using hit = cache.open({ match: cache.match([...sequence.tokenIds]) });
    expect(hit.length).toBe(8); // two full pages
    expect(stored(cache, hit, 1, "vPages").codes).toEqual(before[1]!.codes.slice(0, 8 * HKV * D));
    cache.check();
  });
  test.each(FORMATS)(
    "attention over %s rows is that over what they stand for, values in keys too",
    (dtype) => {
      for (const valuesInKeys of [false, true]) {
        using cache = cacheOf(dtype, { valuesInKeys, ...(valuesInKeys && { valueHeadDim: 5 }) });
        using sequence = cache.open();
        append(cache, sequence, 5, 9);
        using step = cache.reserve([{ sequence, tokens: 1 }]);
        scope(() => {
          const row = (part: number): Tensor =>
            floats(tokenRow(5 + 100 * part, 9, D), [1, HKV, D], "float32", engine);
          if (valuesInKeys) step.write(0, row(0));
          else step.write(0, row(0), row(1));
          const q = createRng(7).normalArray(2 * HKV * D);
          const view = step.view(0);
          const out = pagedAttention(
            floats(q, [1, 2 * HKV, D], "float32", engine) as Tensor<"float32">,
            view,
          );
          const numbers = (seed: number, width: number): number[] =>
            Array.from({ length: 10 * HKV }, (_, i) => {
              const whole = tokenRow(seed, Math.floor(i / HKV), D).slice((i % HKV) * D, (i % HKV) * D + D);
              return Array.from(decodeRowOracle(dtype, encodeRowOracle(dtype, whole)).subarray(0, width));
            }).flat();
          const Dv = valuesInKeys ? 5 : D;
          const dims = { B: 1, S: 1, Sk: 10, Hq: 2 * HKV, Hkv: HKV, D, Dv };
          const [k, v] = [numbers(5, D), numbers(valuesInKeys ? 5 : 105, Dv)];
          const oracle = attentionOracle(Float64Array.from(q, Math.fround), k, v, { dims });
          assertClose(toFloat64(out), oracle.out, { rel: 1e-5, shape: [2 * HKV, Dv] });
        });
      }
    },
  );
  test("a row takes its codes and four bytes for its scale", () => {
    const bytes = (dtype: KvCacheOptions["dtype"]): number => {
      using cache = new KvCache({
        layers: 1,
        numKvHeads: 1,
        headDim: 128,
        pageSize: 4,
        maxPages: 9,
        dtype,
        engine,
      });
      return cache.stats().bytes;
    };
    const tables = bytes("float32") - 2 * 10 * 4 * 128 * 4;
    for (const dtype of FORMATS) expect(bytes(dtype) - tables).toBe(2 * 10 * 4 * (128 + 4));
  });
  test("a storage that there is none of is a typed error", () => {
    expect(() => cacheOf("int2" as "int8")).toThrow(DTypeError);
    expect(() => cacheOf("uint8" as "int8")).toThrow("float8e4m3, int8 or int4");
  });
});
