/** Layers of several kinds over one cache of groups: what a window has let go of is missed by nobody. */
import "@heed/engine-cpu";
import { type GroupOptions, KvCache, type Sequence } from "@heed/kvcache";
import {
  type BlockTableReader,
  type Engine,
  fill,
  type FloatDType,
  getEngine,
  scope,
  type Tensor,
  toFloat64,
} from "@heed/tensor";
import { floatView, assertClose, conformanceTolerance, createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { GlobalAttention, GroupedQueryAttention, MultiHeadLatentAttention } from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";

const HIDDEN = 12;
const WINDOW = 6;
const HEADS = { hiddenSize: HIDDEN, numHeads: 6, numKvHeads: 2, headDim: 4, rope: {} } as const;
const LATENT = {
  numHeads: 3,
  qLoraRank: 7,
  kvLoraRank: 10,
  qkNopeHeadDim: 5,
  qkRopeHeadDim: 4,
  vHeadDim: 6,
} as const;
const DTYPES = ["float32", "bfloat16"] as const;
type Float = Tensor<"float32">;
type Dtype = (typeof DTYPES)[number];
type Layout = "head-major" | "token-major";
type Counts = readonly [number, number];
interface Layer {
  forward(x: Float, options: { readonly cache: BlockTableReader }): Float;
}
/** Local layers with sinks 0 and 2 as gpt-oss has them, a global one 1, latent ones 3 and 4. */
function layersOf(engine: Engine, dtype: FloatDType): Layer[] {
  const init = { engine, dtype };
  const local = { ...HEADS, sinks: true, window: { left: WINDOW - 1 } };
  const latent = { hiddenSize: HIDDEN, ...LATENT };
  return [
    GroupedQueryAttention.create({ ...local, ...init, layerIndex: 0, seed: 1 }),
    GlobalAttention.create({ ...HEADS, ...init, layerIndex: 1, seed: 2 }),
    GroupedQueryAttention.create({ ...local, ...init, layerIndex: 2, seed: 3 }),
    MultiHeadLatentAttention.create({ ...latent, ...init, layerIndex: 3, seed: 4 }),
    MultiHeadLatentAttention.create({ ...latent, ...init, layerIndex: 4, seed: 5 }),
  ] as unknown as Layer[];
}
/** The cache for these layers, with or without windows; every row NaN, those of the null pages as well. */
function cacheOf(
  engine: Engine,
  dtype: FloatDType,
  windows: boolean,
  layout?: GroupOptions["layout"],
): KvCache {
  const paged = { numKvHeads: 2, headDim: 4, dtype, layout };
  const latent = { numKvHeads: 1, headDim: 14, valueHeadDim: 10, valuesInKeys: true, dtype };
  const window = windows ? WINDOW : undefined;
  const groups = [
    { ...paged, layers: [0, 2], window, pageSize: 2, maxPages: 60 },
    { ...paged, layers: [1], pageSize: 4, maxPages: 30 },
    { ...latent, layers: [3, 4], pageSize: 4, maxPages: 30 },
  ];
  const cache = new KvCache({ groups, engine });
  using step = cache.reserve([]);
  for (let layer = 0; layer < cache.layout.layers; layer++) {
    const { kPages, vPages } = floatView(step.view(layer));
    for (const pages of [kPages, vPages]) fill(pages, NaN);
  }
  return cache;
}
/** Runs a step of all layers, one after the other, over the given rows; each layer's output. */
function advance(
  layers: readonly Layer[],
  cache: KvCache,
  parts: readonly (readonly [Sequence, number])[],
  x: Float,
): number[][] {
  using step = cache.reserve(parts.map(([sequence, tokens]) => ({ sequence, tokens })));
  const outputs = layers.map((layer) =>
    scope(() => Array.from(toFloat64(layer.forward(x, { cache: step })))),
  );
  step.commit();
  return outputs;
}
const rows = (engine: Engine, dtype: FloatDType, count: number, seed: number): Float =>
  upload(createRng(seed).normalArray(count * HIDDEN), [count, HIDDEN], dtype, engine) as Tensor as Float;

describe.each(engines)(
  "a decoder of local, global and latent layers over a cache of groups on %s",
  (name) => {
    const engine = getEngine(name);
    const steps = fc.array(fc.tuple(fc.nat({ max: 9 }), fc.constantFrom(1, 1, 1, 0, 4)), {
      minLength: 3,
      maxLength: 6,
    });
    /** The same steps of two sequences over a cache that releases pages behind windows, and over one that does not. */
    function compare(
      layers: readonly Layer[],
      dtype: Dtype,
      layout: Layout,
      counts: readonly Counts[],
    ): void {
      using released = cacheOf(engine, dtype, true, layout);
      using kept = cacheOf(engine, dtype, false, layout);
      const pairs = [released, kept].map((cache) => ({ cache, a: cache.open(), b: cache.open() }));
      counts.forEach(([first, second], seed) => {
        if (first + second === 0) return;
        const x = rows(engine, dtype, first + second, seed);
        const [found, should] = pairs.map(({ cache, a, b }) => {
          const parts = [[b, second] as const, [a, first] as const];
          return advance(layers, cache, parts, x);
        });
        expect(found!.flat().every(Number.isFinite)).toBe(true);
        expect(found!).toEqual(should!);
      });
      released.check();
      const { length, pages } = pairs[0]!.a;
      const behind = Math.max(0, Math.floor((length - WINDOW + 1) / 2));
      expect(pages.filter((page) => page === 0).length).toBe(behind);
    }
    test.each(DTYPES)(
      "gives the same bits whether windows release their pages or not: %s",
      (dtype) => {
        scope(() => {
          const layers = layersOf(engine, dtype);
          fc.assert(
            fc.property(steps, fc.constantFrom("head-major", "token-major"), (counts, layout) =>
              scope(() => compare(layers, dtype, layout, counts)),
            ),
            { numRuns: name === "portable" ? 5 : 15 },
          );
        });
      },
      60_000,
    );
    test.each(DTYPES)(
      "a prefill of 7 tokens and 3 decode steps equals a prefill of 10, and an early token matters: %s",
      (dtype) => {
        scope(() => {
          const layers = layersOf(engine, dtype);
          const last = (cuts: readonly number[], change: boolean): number[] => {
            using cache = cacheOf(engine, dtype, true);
            const sequence = cache.open();
            const x = rows(engine, dtype, 10, 1);
            if (change) fill(x.slice(0, 4, 5), 1); // within the window of the last
            let outputs: number[][] = [];
            let at = 0;
            for (const to of cuts) {
              outputs = advance(layers, cache, [[sequence, to - at]], x.slice(0, at, to) as Float);
              at = to;
            }
            return outputs.flatMap((out) => out.slice(-HIDDEN));
          };
          const whole = last([10], false);
          const split = last([7, 8, 9, 10], false);
          const rel = conformanceTolerance(dtype, "forward");
          assertClose(Float64Array.from(split), Float64Array.from(whole), { rel });
          const changed = last([10], true);
          for (let layer = 0; layer < layers.length; layer++) {
            const of = (all: number[]): number[] => all.slice(layer * HIDDEN, (layer + 1) * HIDDEN);
            expect(of(changed)).not.toEqual(of(whole));
          }
        });
      },
    );
    test("a fork goes its own way, and its parent's outputs are those of a sequence that was never forked", () => {
      scope(() => {
        const layers = layersOf(engine, "float32");
        const run = (forked: boolean): number[][] => {
          using cache = cacheOf(engine, "float32", true);
          const parent = cache.open();
          advance(layers, cache, [[parent, 9]], rows(engine, "float32", 9, 1));
          const [child] = forked ? parent.fork() : [cache.open()];
          advance(layers, cache, [[child!, 3]], rows(engine, "float32", 3, 2));
          return advance(layers, cache, [[parent, 2]], rows(engine, "float32", 2, 3));
        };
        expect(run(true)).toEqual(run(false));
      });
    });
  },
);
