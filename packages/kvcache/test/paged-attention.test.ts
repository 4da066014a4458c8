/** Attention over the cache's pages, in place, against the oracle and against contiguous keys and values. */
import {
  attention,
  copyInto,
  type FloatDType,
  fill,
  pagedAttention,
  type PagedView,
  scope,
  type Tensor,
} from "@heed/tensor";
import {
  floatView,
  assertClose,
  assertFusedBound,
  createRng,
  floatDTypes,
  type PagedOracleOptions,
  pagedAttentionOracle,
  poisonPages,
  type Rng,
} from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { KvCache, type Sequence, type Step } from "../src/index.ts";
import { engines } from "./engines.ts";
import { floats, gathered, hostTable, pageValues, poisonAll } from "./fixtures.ts";

const [HQ, HKV, D, DV] = [4, 2, 8, 6] as const;

/** What a batch does: tokens cached before (in chunks) and new ones, for each sequence. */
interface Batch {
  readonly pageSize: number;
  readonly sequences: readonly {
    readonly cached: number;
    readonly chunk: number;
    readonly queries: number;
  }[];
  readonly seed: number;
}
const batches: fc.Arbitrary<Batch> = fc.record({
  pageSize: fc.constantFrom(1, 2, 4, 16),
  sequences: fc.array(
    fc.record({
      cached: fc.nat({ max: 30 }),
      chunk: fc.integer({ min: 1, max: 30 }),
      queries: fc.oneof(fc.constant(1), fc.nat({ max: 9 })), // decode, or a chunk of a prefill
    }),
    { minLength: 1, maxLength: 4 },
  ),
  seed: fc.nat({ max: 0xffff }),
});
function normals(rng: Rng, shape: readonly number[], dtype: FloatDType, engine: string): Tensor {
  return floats(rng.normalArray(shape.reduce((a, b) => a * b)), shape, dtype, engine);
}
/** A cache whose pages hold NaN and come in an order that depends on `shuffle`. */
function shuffledCache(batch: Batch, dtype: FloatDType, engine: string, shuffle: number): KvCache {
  const pages = batch.sequences.reduce((n, s) => n + Math.ceil((s.cached + s.queries) / batch.pageSize), 0);
  const sizes = { layers: 1, numKvHeads: HKV, headDim: D, valueHeadDim: DV, dtype, engine };
  const cache = new KvCache({ ...sizes, pageSize: batch.pageSize, maxPages: pages + 3 });
  poisonAll(cache);
  const held = Array.from({ length: pages + 3 }, () => cache.open());
  for (const sequence of held) write(cache, [[sequence, 1]], () => createRng(0))?.commit();
  for (const at of createRng(shuffle).permutation(held.length)) held[at]!.release();
  poisonAll(cache);
  return cache;
}
/** Writes random rows for new tokens. A sequence's rows come from its own generator, whatever the batch around it. */
function write(
  cache: KvCache,
  requests: readonly (readonly [Sequence, number])[],
  rngOf: (n: number) => Rng,
): Step {
  const step = cache.reserve(requests.map(([sequence, tokens]) => ({ sequence, tokens })));
  const rows = requests.map(([, tokens], n) => {
    const rng = rngOf(n);
    return Array.from(
      { length: tokens },
      () => [rng.normalArray(HKV * D), rng.normalArray(HKV * DV)] as const,
    ).flat();
  });
  scope(() => {
    const join = (part: 0 | 1): number[] =>
      rows.flatMap((list) => list.filter((_, i) => i % 2 === part).flatMap((row) => Array.from(row)));
    const dtype = cache.layout.groups[0]!.dtype as FloatDType;
    const make = (part: 0 | 1, width: number): Tensor =>
      floats(join(part), [step.tokens, HKV, width], dtype, cache.engine.name);
    step.write(0, make(0, D), make(1, DV));
  });
  return step;
}
/** Caches what the batch says, in chunks, then opens and writes the step whose queries attend. */
function stepOf(cache: KvCache, batch: Batch): Step {
  const rngs = batch.sequences.map((_, n) => createRng(batch.seed + 17 * n));
  const sequences = batch.sequences.map(() => cache.open());
  const left = batch.sequences.map((s) => s.cached);
  while (left.some((n) => n > 0)) {
    const requests = sequences.map((s, n) => [s, Math.min(left[n]!, batch.sequences[n]!.chunk)] as const);
    requests.forEach(([, tokens], n) => (left[n]! -= tokens));
    write(cache, requests, (n) => rngs[n]!).commit();
  }
  return write(
    cache,
    batch.sequences.map((s, n) => [sequences[n]!, s.queries] as const),
    (n) => rngs[n]!,
  );
}
function queries(step: Step, batch: Batch, dtype: FloatDType, engine: string): Tensor<FloatDType> {
  return normals(createRng(batch.seed + 1), [Math.max(1, step.tokens), HQ, D], dtype, engine).slice(
    0,
    0,
    step.tokens,
  ) as Tensor<FloatDType>;
}
function poisonUnused(view: PagedView, dtype: FloatDType): void {
  const [numPages, Hkv, pageSize] = view.kPages.shape as [number, number, number];
  const table = hostTable(view.table, pageSize);
  for (const pages of [view.kPages, view.vPages]) {
    poisonPages(pages.data as Float32Array, table, { numPages, Hkv, width: pages.shape[3]!, dtype });
  }
}
const read = (t: Tensor): Float64Array => pageValues(t);
function oracle(q: Tensor, view: PagedView, options: Partial<PagedOracleOptions>): Float64Array {
  const table = hostTable(view.table, view.kPages.shape[2]!);
  const sizes = { Hq: HQ, Hkv: HKV, D, Dv: DV, isCausal: true, table };
  return pagedAttentionOracle(read(q), read(view.kPages), read(view.vPages), { ...sizes, ...options }).out;
}

describe.each(engines)("attention over the cache on %s", (engine) => {
  test.each(floatDTypes)(
    "%s: any mix of prefill and decode equals the oracle, with all unused rows NaN",
    (dtype) => {
      const window = fc.constantFrom(undefined, { left: 5, right: 0 });
      fc.assert(
        fc.property(batches, window, (batch, w) => {
          using cache = shuffledCache(batch, dtype, engine, batch.seed);
          using step = stepOf(cache, batch);
          scope(() => {
            const view = floatView(step.view(0));
            poisonUnused(view, dtype);
            const q = queries(step, batch, dtype, engine);
            if (step.tokens === 0) return;
            const options = w === undefined ? {} : { window: w };
            assertFusedBound({
              fused: read(pagedAttention(q, view, options)),
              composed: read(pagedAttention(q, view, { ...options, fused: "off" })),
              oracle: oracle(q, view, options as Partial<PagedOracleOptions>),
              dtype,
              shape: [step.tokens, HQ, DV],
            });
          });
        }),
        { numRuns: 40 },
      );
    },
  );
  test("the order of page numbers changes no output bit", () => {
    fc.assert(
      fc.property(batches, fc.nat(), (batch, shuffle) => {
        const outputs = [shuffle, shuffle + 1].map((order) => {
          using cache = shuffledCache(batch, "float32", engine, order);
          using step = stepOf(cache, batch);
          return scope(() =>
            Array.from(read(pagedAttention(queries(step, batch, "float32", engine), step.view(0)))),
          );
        });
        expect(outputs[1]).toEqual(outputs[0]!);
      }),
      { numRuns: 40 },
    );
  });
  test.each(["off", "auto"] as const)(
    "paged equals contiguous to the bit, whatever the page size, with fused: %p",
    (fused) => {
      fc.assert(
        fc.property(batches, (batch) => {
          using cache = shuffledCache(batch, "float32", engine, 1);
          using step = stepOf(cache, batch);
          scope(() => {
            const view = floatView(step.view(0));
            const paged = read(pagedAttention(queries(step, batch, "float32", engine), view, { fused }));
            let at = 0;
            batch.sequences.forEach((s, n) => {
              if (s.queries === 0) return;
              const rows = gathered(view, n);
              const length = s.cached + s.queries;
              const q = queries(step, batch, "float32", engine)
                .slice(0, at, at + s.queries)
                .unsqueeze(0) as Tensor<FloatDType>;
              const k = floats(rows.k, [1, length, HKV, D], "float32", engine) as Tensor<FloatDType>;
              const v = floats(rows.v, [1, length, HKV, DV], "float32", engine) as Tensor<FloatDType>;
              const contiguous = read(attention(q, k, v, { isCausal: true, fused }));
              assertClose(paged.slice(at * HQ * DV, (at + s.queries) * HQ * DV), contiguous);
              at += s.queries;
            });
          });
        }),
        { numRuns: 40 },
      );
    },
  );
  test("a prefill of 7 tokens and 3 decode steps equals a prefill of 10, and an early key matters", () => {
    const batch = (cached: number, n: number): Batch => ({
      pageSize: 4,
      seed: 5,
      sequences: [{ cached, chunk: 99, queries: n }],
    });
    const last = (cached: number, n: number, change = false): number[] => {
      using cache = shuffledCache(batch(cached, n), "float64", engine, 2);
      using step = stepOf(cache, batch(cached, n));
      return scope(() => {
        const view = floatView(step.view(0));
        if (change) {
          using row = view.vPages.select(0, view.table.indices.data[0]!).slice(1, 0, 1);
          fill(row, 3);
        }
        const q = normals(createRng(9), [10, HQ, D], "float64", engine).slice(
          0,
          10 - n,
        ) as Tensor<FloatDType>;
        return Array.from(read(pagedAttention(q, view))).slice(-HQ * DV);
      });
    };
    const whole = last(0, 10);
    assertClose(last(9, 1), whole, { rel: 1e-14 });
    assertClose(last(7, 3), whole, { rel: 1e-14 });
    expect(last(9, 1, true)).not.toEqual(whole);
  });
  test("a new step's rows are read in place, not from a copy", () => {
    using cache = shuffledCache(
      { pageSize: 4, seed: 1, sequences: [{ cached: 0, chunk: 1, queries: 5 }] },
      "float32",
      engine,
      3,
    );
    using sequence = cache.open();
    using step = write(cache, [[sequence, 5]], () => createRng(4));
    scope(() => {
      const { kPages } = floatView(step.view(0));
      const changed = floats(new Float64Array(kPages.size).fill(2), kPages.shape, "float32", engine);
      copyInto(changed, kPages);
      expect(gathered(step.view(0), 0).k).toEqual(new Array(5 * HKV * D).fill(2));
    });
  });
});
