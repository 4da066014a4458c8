/** A cache whose values are the first columns of its key rows, as latent attention has them. */
import { portable } from "@heed/engine-cpu";
import {
  ArgumentError,
  DTYPES,
  type Engine,
  fill,
  memoryUsage,
  OutOfMemoryError,
  pagedAttention,
  scope,
  ShapeError,
  type Tensor,
  toFloat64,
  zeros,
} from "@heed/tensor";
import { floatView, createRng, floatDTypes } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { KvCache, type KvCacheOptions, type Sequence } from "../src/index.ts";
import { engines } from "./engines.ts";
import { floats } from "./fixtures.ts";

const [HKV, D, DV] = [2, 6, 4] as const;
const sizes = { layers: 2, numKvHeads: HKV, headDim: D, valueHeadDim: DV, pageSize: 4, maxPages: 9 };

/** A cache whose pages all hold NaN. */
function poisoned(options: Partial<KvCacheOptions>): KvCache {
  const cache = new KvCache({ ...sizes, ...options });
  using step = cache.reserve([]);
  for (let layer = 0; layer < cache.layout.layers; layer++) {
    const { kPages, vPages } = floatView(step.view(layer));
    for (const pages of [kPages, vPages]) fill(pages, NaN);
  }
  return cache;
}
/** Appends rows k [T, Hkv, D] to one sequence in both layers, values apart where the cache wants them so. */
function append(cache: KvCache, sequence: Sequence, k: Tensor): void {
  using step = cache.reserve([{ sequence, tokens: k.shape[0]! }]);
  scope(() => {
    for (const layer of [0, 1]) {
      if (cache.layout.groups[0]!.valuesInKeys) step.write(layer, k);
      else step.write(layer, k, k.slice(-1, 0, DV));
    }
  });
  step.commit();
}

describe.each(engines)("values in keys on %s", (engine) => {
  test.each(floatDTypes)(
    "attention over them equals that over values of their own, bit for bit: %s",
    (dtype) => {
      scope(() => {
        using shared = poisoned({ valuesInKeys: true, dtype, engine });
        using apart = poisoned({ dtype, engine });
        const rng = createRng(3);
        const caches = [shared, apart].map((cache) => ({ cache, sequences: [cache.open(), cache.open()] }));
        for (const [n, count] of [
          [0, 5],
          [1, 9],
          [0, 1],
          [0, 2],
        ] as const) {
          const k = floats(rng.normalArray(count * HKV * D), [count, HKV, D], dtype, engine);
          for (const { cache, sequences } of caches) append(cache, sequences[n]!, k);
        }
        const q = floats(rng.normalArray(5 * 4 * D), [5, 4, D], dtype, engine) as Tensor<"float32">;
        const k = floats(rng.normalArray(5 * HKV * D), [5, HKV, D], dtype, engine);
        for (const fused of ["auto", "off"] as const) {
          const [a, b] = caches.map(({ cache, sequences }) => {
            using step = cache.reserve([
              { sequence: sequences[1]!, tokens: 1 },
              { sequence: sequences[0]!, tokens: 4 },
            ]);
            if (cache.layout.groups[0]!.valuesInKeys) step.write(1, k);
            else step.write(1, k, k.slice(-1, 0, DV));
            return toFloat64(pagedAttention(q, step.view(1), { fused }));
          });
          expect(a!.every(Number.isFinite)).toBe(true);
          expect(a).toEqual(b!);
        }
        shared.check();
      });
    },
  );
  test.each(floatDTypes)("a token takes Hkv * D numbers a layer and no more: %s", (dtype) => {
    const bytes = (maxPages: number): number => {
      const before = memoryUsage().bytes;
      using cache = new KvCache({ ...sizes, valuesInKeys: true, maxPages, dtype, engine });
      const { bytes: counted } = cache.stats();
      expect(memoryUsage().bytes - before).toBe(counted);
      return counted;
    };
    const page = 2 * HKV * 4 * D * DTYPES[dtype].bytes;
    expect([bytes(1), bytes(2), bytes(7)]).toEqual([2 * page, 3 * page, 8 * page]);
  });
});
describe("a cache with values in keys", () => {
  const engine = "portable";

  test("maxBytes buys the pages that the keys leave room for", () => {
    const page = 2 * HKV * 4 * D * 4;
    const { maxPages: _, ...rest } = sizes;
    using cache = new KvCache({ ...rest, valuesInKeys: true, engine, maxBytes: 6 * page + 1 });
    expect(cache.stats()).toMatchObject({ totalPages: 5, bytes: 6 * page });
  });
  test("values are at most as wide as keys, which is the default", () => {
    const make = (valueHeadDim: number | undefined): KvCache =>
      new KvCache({ ...sizes, valueHeadDim, valuesInKeys: true, engine });
    expect(() => make(D + 1)).toThrow(ArgumentError);
    expect(() => make(D + 1)).toThrow("valueHeadDim");
    using cache = make(undefined);
    expect(cache.layout.groups[0]).toMatchObject({ headDim: D, valueHeadDim: D, valuesInKeys: true });
  });
  test("a v too many, or none where values are apart, is refused and the layer counts as not written", () => {
    using shared = poisoned({ valuesInKeys: true, engine });
    using apart = poisoned({ engine });
    using k = zeros([1, HKV, D], { engine });
    using v = zeros([1, HKV, DV], { engine });
    using first = shared.reserve([{ sequence: shared.open(), tokens: 1 }]);
    using second = apart.reserve([{ sequence: apart.open(), tokens: 1 }]);
    expect(() => first.write(0, k, v)).toThrow(ArgumentError);
    expect(() => second.write(0, k)).toThrow(ArgumentError);
    for (const step of [first, second]) expect(() => step.view(0)).toThrow("has not written");
  });
  test("rows of the wrong shape are refused", () => {
    using cache = poisoned({ valuesInKeys: true, engine });
    using step = cache.reserve([{ sequence: cache.open(), tokens: 2 }]);
    for (const shape of [[1, HKV, D], [2, 1, D], [2, HKV, DV], [2, HKV * D], []]) {
      using k = zeros(shape, { engine });
      expect(() => step.write(0, k)).toThrow(ShapeError);
    }
  });
  test("scopes that end between write and view take nothing away, and disposal frees all", () => {
    const before = memoryUsage().storages;
    {
      using cache = scope(() => poisoned({ valuesInKeys: true, engine }));
      using sequence = cache.open();
      using k = floats(createRng(1).normalArray(3 * HKV * D), [3, HKV, D], "float32", engine);
      using step = cache.reserve([{ sequence, tokens: 3 }]);
      scope(() => step.write(0, k));
      const read = (): Float64Array =>
        scope(() => toFloat64(floatView(step.view(0)).vPages.select(0, 1).select(0, 0)));
      const rows = scope(() => toFloat64(k.select(1, 0).slice(-1, 0, DV)));
      expect(read().subarray(0, 3 * DV)).toEqual(rows);
      expect(read().subarray(0, 3 * DV)).toEqual(rows);
    }
    expect(memoryUsage().storages).toBe(before);
  });
  test("one that cannot be allocated in full leaves no memory behind", () => {
    const good = portable();
    let left = 2;
    const engine: Engine = {
      ...good,
      alloc: (bytes) => {
        if (--left === 0) throw new OutOfMemoryError("[test] no memory");
        return good.alloc(bytes);
      },
    };
    const before = memoryUsage().bytes;
    expect(() => new KvCache({ ...sizes, valuesInKeys: true, engine })).toThrow(OutOfMemoryError);
    expect(memoryUsage().bytes).toBe(before);
  });
});
