import "@heed/engine-cpu";
import { KvCache, type Sequence } from "@heed/kvcache";
import {
  ArgumentError,
  cast,
  concat,
  copyInto,
  DTYPES,
  fill,
  getEngine,
  type Recorded,
  recordTape,
  scope,
  ShapeError,
  tensor,
  type Tensor,
  toFloat64,
  zeros,
} from "@heed/tensor";
import { floatView, assertClose, conformanceTolerance, createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { MultiHeadLatentAttention, type MultiHeadLatentAttentionOptions } from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";

const HIDDEN = 12;
const BASE: MultiHeadLatentAttentionOptions = {
  hiddenSize: HIDDEN,
  numHeads: 3,
  qLoraRank: 7,
  kvLoraRank: 10,
  qkNopeHeadDim: 5,
  qkRopeHeadDim: 4,
  vHeadDim: 6,
};
const KINDS: Readonly<Record<string, MultiHeadLatentAttentionOptions>> = {
  "low-rank queries": BASE,
  "full queries, half pairs": { ...BASE, qLoraRank: null, rope: { pairing: "half", base: 100 } },
  "biases, a scale, one head": { ...BASE, bias: true, numHeads: 1, scale: 0.4 },
  "no rotation": { ...BASE, rope: null },
  "YaRN's temperature": {
    ...BASE,
    rope: { scaling: { type: "yarn", factor: 8, originalMaxPositions: 64, mscale: 1, mscaleAllDim: 1 } },
  },
};
const FLOATS = ["float64", "float32", "float16", "bfloat16"] as const;
type Float = (typeof FLOATS)[number];

describe.each(engines)("MultiHeadLatentAttention over latent pages on %s", (name) => {
  const engine = getEngine(name);

  /** Weights of unit scale, so that attention is far from uniform. */
  function build(options: MultiHeadLatentAttentionOptions, dtype: Float): MultiHeadLatentAttention {
    const random = MultiHeadLatentAttention.create({ ...options, engine, dtype: "float64", seed: 2 });
    const scaled = [...random.parameters].map(([key, t]) => {
      const factor = key.endsWith("layernorm.weight") ? 0.9 : 20;
      return [
        key,
        upload(
          toFloat64(t).map((w) => factor * w),
          t.shape,
          dtype,
          engine,
        ),
      ] as const;
    });
    return MultiHeadLatentAttention.fromParameters(options, new Map<string, Tensor>(scaled));
  }
  /** A cache whose pages hold NaN. */
  function cacheOf(layer: MultiHeadLatentAttention, dtype: Float, layers = 1): KvCache {
    const cache = new KvCache({ layers, ...layer.cacheLayout, pageSize: 4, maxPages: 24, dtype, engine });
    using step = cache.reserve([]);
    for (let i = 0; i < layers; i++) fill(floatView(step.view(i)).kPages, NaN);
    return cache;
  }
  const tokens = (n: number, dtype: Float, seed = 5): Tensor<Float> =>
    upload(createRng(seed).normalArray(n * HIDDEN), [n, HIDDEN], dtype, engine);
  /** One step of the given sequences, x [T, hidden] being their tokens one after the other. */
  function advance(
    layer: MultiHeadLatentAttention,
    cache: KvCache,
    parts: readonly (readonly [Sequence, number])[],
    x: Tensor<Float>,
    expand?: boolean,
  ): Tensor<Float> {
    using step = cache.reserve(parts.map(([sequence, n]) => ({ sequence, tokens: n })));
    const y = layer.forward(x, { cache: step, expand });
    step.commit();
    return y;
  }
  /** All tokens in one pass without a cache: the expanded form. */
  const onePass = (layer: MultiHeadLatentAttention, x: Tensor<Float>): Float64Array =>
    toFloat64(layer.forward(x.unsqueeze(0)));

  for (const [kind, options] of Object.entries(KINDS)) {
    test.each(FLOATS)(`a prefill of 7 and 3 decode steps equal a pass of 10: ${kind}, %s`, (dtype) => {
      scope(() => {
        const layer = build(options, dtype);
        const x = tokens(10, dtype);
        const cache = cacheOf(layer, dtype);
        const sequence = cache.open();
        const cuts = [0, 7, 8, 9, 10];
        const found = cuts.slice(1).map((to, i) => {
          const part = x.slice(0, cuts[i]!, to) as Tensor<Float>;
          return advance(layer, cache, [[sequence, to - cuts[i]!]], part, false);
        });
        // In 16 bits the two forms round in different places, so both are judged by float64 on the same rounded values.
        const weights = new Map([...layer.parameters].map(([key, t]) => [key, cast(t, "float64") as Tensor]));
        const reference = MultiHeadLatentAttention.fromParameters(layer.attributes(), weights);
        const expected = onePass(reference, cast(x, "float64"));
        const rel = conformanceTolerance(dtype, "forward");
        assertClose(toFloat64(concat(found, 0)), expected, { rel, shape: [10, HIDDEN], name: "absorbed" });
        assertClose(onePass(layer, x), expected, { rel, shape: [10, HIDDEN], name: "expanded" });
        const start = advance(layer, cache, [[cache.open(), 7]], x.slice(0, 0, 7) as Tensor<Float>, true);
        assertClose(toFloat64(start), expected.subarray(0, 7 * HIDDEN), { rel, name: "expanded, cached" });
        cache[Symbol.dispose]();
      });
    });
  }
  test("any split of any sequences into steps equals one pass of each", () => {
    const plans = fc.record({
      kind: fc.constantFrom(...Object.keys(KINDS)),
      steps: fc.array(fc.tuple(fc.nat({ max: 5 }), fc.nat({ max: 5 }), fc.nat({ max: 5 })), {
        minLength: 1,
        maxLength: 4,
      }),
    });
    fc.assert(
      fc.property(plans, ({ kind, steps }) =>
        scope(() => {
          const layer = build(KINDS[kind]!, "float64");
          const cache = cacheOf(layer, "float64");
          const sequences = [cache.open(), cache.open(), cache.open()];
          const inputs = sequences.map((_, n) => tokens(20, "float64", n));
          const found = sequences.map((): number[] => []);
          for (const counts of steps) {
            const rows = counts.map((n, s) =>
              inputs[s]!.slice(0, sequences[s]!.length, sequences[s]!.length + n),
            );
            const parts = counts.map((n, s) => [sequences[s]!, n] as const);
            const y = toFloat64(advance(layer, cache, parts, concat(rows, 0) as Tensor<Float>));
            let at = 0;
            counts.forEach((n, s) => found[s]!.push(...y.subarray(at * HIDDEN, (at += n) * HIDDEN)));
          }
          sequences.forEach(({ length }, s) => {
            if (length === 0) return;
            const expected = onePass(layer, inputs[s]!.slice(0, 0, length) as Tensor<Float>);
            assertClose(found[s]!, expected, { rel: 1e-11, abs: 1e-12, name: `sequence ${s}` });
          });
          cache.check();
          cache[Symbol.dispose]();
        }),
      ),
      { numRuns: 25 },
    );
  });
  test("sequences that begin with a step are expanded unless told otherwise, others are absorbed", () => {
    scope(() => {
      const layer = build(BASE, "float64");
      using cache = cacheOf(layer, "float64");
      const x = tokens(6, "float64");
      const run = (expand?: boolean, [n, m] = [4, 2] as const): Float64Array =>
        toFloat64(
          advance(
            layer,
            cache,
            [
              [cache.open(), n],
              [cache.open(), m],
            ],
            x,
            expand,
          ),
        );
      expect(run()).toEqual(run(true));
      expect(run()).not.toEqual(run(false)); // other roundings
      assertClose(run(true), run(false), { rel: 1e-12 });
      const old = cache.open();
      advance(layer, cache, [[old, 4]], x.slice(0, 0, 4) as Tensor<Float>);
      const mixed = (expand?: boolean): Tensor<Float> =>
        advance(
          layer,
          cache,
          [
            [old, 4],
            [cache.open(), 2],
          ],
          x,
          expand,
        );
      expect(() => mixed(true)).toThrow("expand needs sequences that begin with the step");
      expect(old.length).toBe(4);
      expect(mixed().shape).toEqual([6, HIDDEN]);
      expect(() => layer.forward(x.unsqueeze(0), { expand: true })).toThrow(ArgumentError);
    });
  });
  test("a tape over an expanded prefill serves other prompts, and says so when sequences have a past", () => {
    scope(() => {
      const layer = build(BASE, "float64");
      using cache = cacheOf(layer, "float64");
      using table = cache.fixedTable({ sequences: 1, tokens: 6 });
      const x = tokens(6, "float64");
      const sequence = cache.open();
      const first = cache.reserve([{ sequence, tokens: 6 }], { table });
      const { outputs, tape } = recordTape(engine, () => layer.forward(x, { cache: first }));
      first.commit();
      const other = tokens(6, "float64", 8);
      const second = cache.reserve([{ sequence: cache.open(), tokens: 6 }], { table });
      copyInto(other, x);
      tape.replay();
      second.markWritten();
      second.commit();
      expect(toFloat64(outputs)).toEqual(onePass(layer, other));
      using third = cache.reserve([{ sequence, tokens: 6 }], { table });
      expect(() => tape.replay()).toThrow("record it with expand: false");
      expect(third.isOpen).toBe(true);
      tape[Symbol.dispose]();
    });
  });
  test("both forms agree at the head sizes of DeepSeek-V3, over more keys than a kernel takes at once", () => {
    scope(() => {
      const heads = { kvLoraRank: 512, qkNopeHeadDim: 128, qkRopeHeadDim: 64, vHeadDim: 128 };
      const layer = build({ ...BASE, numHeads: 2, ...heads }, "float32");
      const sizes = { layers: 1, ...layer.cacheLayout, pageSize: 64, maxPages: 4, engine };
      using cache = new KvCache(sizes);
      const sequence = cache.open();
      const x = tokens(150, "float32");
      const part = (from: number, to: number): Tensor<Float> => x.slice(0, from, to) as Tensor<Float>;
      const found = concat(
        [
          advance(layer, cache, [[sequence, 130]], part(0, 130)),
          advance(layer, cache, [[sequence, 19]], part(130, 149)),
          advance(layer, cache, [[sequence, 1]], part(149, 150)),
        ],
        0,
      );
      assertClose(toFloat64(found), onePass(layer, x), { rel: conformanceTolerance("float32", "forward") });
    });
  });
  test("a tape over a decode step of the first token serves later positions", () => {
    scope(() => {
      const layer = build(BASE, "float64");
      using cache = cacheOf(layer, "float64");
      using table = cache.fixedTable({ sequences: 1 });
      const all = tokens(5, "float64");
      const x = concat([all.slice(0, 0, 1)]) as Tensor<Float>; // memory of its own
      const sequence = cache.open();
      const decode = (f: (step: ReturnType<KvCache["reserve"]>) => void): void => {
        using step = cache.reserve([{ sequence, tokens: 1 }], { table });
        f(step);
        step.markWritten();
        step.commit();
      };
      let recorded: Recorded<Tensor<Float>> | undefined;
      decode((step) => (recorded = recordTape(engine, () => layer.forward(x, { cache: step }))));
      for (let t = 1; t < 5; t++) {
        copyInto(all.slice(0, t, t + 1), x);
        decode(() => recorded!.tape.replay());
      }
      const expected = onePass(layer, all).subarray(4 * HIDDEN);
      assertClose(toFloat64(recorded!.outputs), expected, { rel: 1e-12 });
    });
  });
  test.each([true, false])(
    "a layer that is not causal sees all of its step's tokens, expanded %p",
    (expand) => {
      scope(() => {
        const layer = build({ ...BASE, isCausal: false }, "float64");
        using cache = cacheOf(layer, "float64");
        const x = tokens(6, "float64");
        const found = toFloat64(advance(layer, cache, [[cache.open(), 6]], x, expand));
        assertClose(found, onePass(layer, x), { rel: 1e-12 });
      });
    },
  );
  test("the last token's output changes when an early token does", () => {
    scope(() => {
      const layer = build(BASE, "float64");
      const last = (first: number): Float64Array => {
        const x = tokens(10, "float64");
        (x.data as Float64Array)[0] = first;
        using cache = cacheOf(layer, "float64");
        const sequence = cache.open();
        advance(layer, cache, [[sequence, 9]], x.slice(0, 0, 9) as Tensor<Float>);
        return toFloat64(advance(layer, cache, [[sequence, 1]], x.slice(0, 9) as Tensor<Float>));
      };
      const [a, b] = [last(0.5), last(2)];
      expect(Math.max(...a.map((v, i) => Math.abs(v - b[i]!)))).toBeGreaterThan(1e-3);
    });
  });
  test.each(FLOATS)("a token takes kvLoraRank + qkRopeHeadDim numbers a layer and no more, %s", (dtype) => {
    scope(() => {
      const layer = build(BASE, dtype);
      const bytes = (maxPages: number): number => {
        const sizes = { layers: 3, ...layer.cacheLayout, pageSize: 16, dtype, engine };
        using cache = new KvCache({ ...sizes, maxPages });
        return cache.stats().bytes;
      };
      const perToken = (bytes(5) - bytes(4)) / 16;
      expect(perToken).toBe(3 * (10 + 4) * DTYPES[dtype].bytes);
      expect(bytes(4)).toBe(5 * 16 * perToken); // the null page is the fifth
    });
  });
  test("the rows hold the normalised latent and the rotated shared key, and values are those same rows", () => {
    scope(() => {
      const layer = build(BASE, "float64");
      using cache = cacheOf(layer, "float64");
      using step = cache.reserve([{ sequence: cache.open(), tokens: 3 }]);
      layer.forward(tokens(3, "float64"), { cache: step });
      const { kPages, vPages } = floatView(step.view(0));
      expect(vPages.storage).toBe(kPages.storage);
      const row = toFloat64(kPages.select(0, 1).select(0, 0).select(0, 2)); // page 1 holds tokens 0 .. 3
      const value = toFloat64(vPages.select(0, 1).select(0, 0).select(0, 2));
      expect([row.length, value]).toEqual([14, row.subarray(0, 10)]);
      const squares = value.reduce((sum, v) => sum + (v / 0.9) ** 2, 0); // the norm's weight is 0.9
      expect(squares / 10).toBeCloseTo(1, 5);
    });
  });
  test("a float32 input with 16-bit weights and 16-bit pages is close to the same in float32", () => {
    scope(() => {
      const layer = build(BASE, "bfloat16");
      const weights = new Map([...layer.parameters].map(([key, t]) => [key, cast(t, "float32") as Tensor]));
      const wide = MultiHeadLatentAttention.fromParameters(BASE, weights);
      const x = tokens(6, "float32");
      const run = (of: MultiHeadLatentAttention, pages: Float): Float64Array => {
        using cache = cacheOf(of, pages);
        const sequence = cache.open();
        const first = advance(of, cache, [[sequence, 5]], x.slice(0, 0, 5) as Tensor<Float>);
        const second = advance(of, cache, [[sequence, 1]], x.slice(0, 5) as Tensor<Float>);
        return toFloat64(concat([first, second], 0));
      };
      const expected = run(wide, "float32");
      assertClose(run(layer, "float32"), expected, { rel: conformanceTolerance("float32", "forward") });
      assertClose(run(layer, "bfloat16"), expected, { rel: conformanceTolerance("bfloat16", "forward") });
    });
  });
  test("layers of one cache write and read their own pages", () => {
    scope(() => {
      const first = build(BASE, "float64");
      const second = MultiHeadLatentAttention.fromParameters({ ...BASE, layerIndex: 1 }, first.parameters);
      using cache = cacheOf(first, "float64", 2);
      const sequence = cache.open();
      const inputs = [1, 2].map((seed) => tokens(6, "float64", seed));
      const run = (from: number, to: number): Float64Array[] => {
        using step = cache.reserve([{ sequence, tokens: to - from }]);
        const y = [first, second].map((layer, i) =>
          toFloat64(layer.forward(inputs[i]!.slice(0, from, to), { cache: step })),
        );
        step.commit();
        return y;
      };
      run(0, 5);
      run(5, 6).forEach((y, i) =>
        assertClose(y, onePass(first, inputs[i]!).subarray(5 * HIDDEN), { rel: 1e-11, name: `layer ${i}` }),
      );
    });
  });
  test("x may be [B, S, hidden] beside a cache, and a step of no tokens gives none", () => {
    scope(() => {
      const layer = build(BASE, "float64");
      using cache = cacheOf(layer, "float64");
      const sequences = [cache.open(), cache.open()];
      const x = tokens(6, "float64");
      const parts = sequences.map((sequence) => [sequence, 3] as const);
      const y = advance(layer, cache, parts, x.reshape([2, 3, HIDDEN]) as Tensor<Float>);
      expect(y.shape).toEqual([2, 3, HIDDEN]);
      assertClose(toFloat64(y.select(0, 1)), onePass(layer, x.slice(0, 3) as Tensor<Float>), { rel: 1e-11 });
      const none = advance(
        layer,
        cache,
        [[sequences[0]!, 0]],
        zeros([0, HIDDEN], { engine, dtype: "float64" }),
      );
      expect(none.shape).toEqual([0, HIDDEN]);
    });
  });
  test("a step's rows are those of the present that a call without a cache gives", () => {
    scope(() => {
      const layer = build(BASE, "float64");
      using cache = cacheOf(layer, "float64");
      const x = tokens(5, "float64");
      const { present } = layer.forwardWithPresent(x.slice(0, 0, 4).unsqueeze(0) as Tensor<Float>);
      const last = layer.forward(x.slice(0, 4).unsqueeze(0) as Tensor<Float>, { past: present });
      const sequence = cache.open();
      advance(layer, cache, [[sequence, 4]], x.slice(0, 0, 4) as Tensor<Float>);
      const y = advance(layer, cache, [[sequence, 1]], x.slice(0, 4) as Tensor<Float>);
      assertClose(toFloat64(y), toFloat64(last), { rel: 1e-11 });
    });
  });
  test.each([
    ["one position a token", {}],
    ["three positions a token", { sections: { pairs: [1, 1, 0] } }],
  ] as const)(
    "positions of the call turn as they do without a cache, whatever the cache counts: %s",
    (what, rope) => {
      scope(() => {
        const layer = build({ ...BASE, rope: { base: 100, ...rope } }, "float64");
        const x = tokens(6, "float64");
        const places = [40, 3, 3, 9, 0, 1];
        const at = (from: number, to: number): Tensor<"int32"> => {
          const one = places.slice(from, to);
          const all = what.startsWith("one")
            ? one
            : [...one, ...one.map((p) => 2 * p), ...one.map((p) => p + 1)];
          return tensor(Int32Array.from(all), [all.length / one.length, one.length], { engine });
        };
        const whole = (positions: Tensor<"int32"> | number): Float64Array =>
          toFloat64(layer.forward(x.unsqueeze(0), { positions }));
        const given = what.startsWith("one") ? at(0, 6) : at(0, 6).unsqueeze(1);
        for (const expand of [undefined, false]) {
          using cache = cacheOf(layer, "float64");
          const sequence = cache.open();
          const found = [
            [0, 4],
            [4, 5],
            [5, 6],
          ].flatMap(([from, to]) => {
            using step = cache.reserve([{ sequence, tokens: to! - from! }]);
            const y = layer.forward(x.slice(0, from!, to!), {
              cache: step,
              positions: at(from!, to!),
              expand,
            });
            step.commit();
            return [...toFloat64(y)];
          });
          assertClose(found, whole(given), { rel: 1e-11 });
        }
        expect(whole(given)).not.toEqual(whole(0));
      });
    },
  );
  test("tokens that do not fit the step, options that a cache gives itself, and another cache are typed errors", () => {
    scope(() => {
      const layer = build(BASE, "float64");
      const x = tokens(3, "float64");
      const stepOf = (cache: KvCache, n = 3): ReturnType<KvCache["reserve"]> =>
        cache.reserve([{ sequence: cache.open(), tokens: n }]);
      using cache = cacheOf(layer, "float64");
      expect(() => layer.forward(x, { cache: stepOf(cache, 2) })).toThrow("the 2 tokens of the cache's step");
      expect(() => layer.forward(x, { cache: stepOf(cache), positions: 0 })).toThrow(ArgumentError);
      const two = zeros([2], { engine, dtype: "int32" });
      expect(() => layer.forward(x, { cache: stepOf(cache), positions: two })).toThrow(ShapeError);
      const past = layer.forwardWithPresent(x.unsqueeze(0) as Tensor<Float>).present;
      const documents = zeros([1, 3], { engine, dtype: "int32" });
      for (const [option, given] of Object.entries({ past, documents, kvLengths: documents })) {
        const run = (): unknown => layer.forward(x, { cache: stepOf(cache), [option]: given });
        expect(run).toThrow(`${option} and cache exclude each other`);
        expect(run).toThrow(ArgumentError);
      }
      for (const method of ["vjp", "forwardWithPresent", "scores"] as const) {
        const run = (): unknown => layer[method](x.unsqueeze(0), { cache: stepOf(cache) } as object);
        expect(run).toThrow(`${method} takes no cache`);
        expect(run).toThrow(ArgumentError);
      }
      const sizes = { layers: 1, numKvHeads: 1, headDim: 14, maxPages: 2, dtype: "float64", engine } as const;
      using separate = new KvCache({ ...sizes, valueHeadDim: 10 });
      expect(() => layer.forward(x, { cache: stepOf(separate) })).toThrow("valuesInKeys");
      using narrow = new KvCache({ ...sizes, valueHeadDim: 9, valuesInKeys: true });
      expect(() => layer.forward(x, { cache: stepOf(narrow) })).toThrow("the layer's cacheLayout");
      using wide = new KvCache({ ...sizes, headDim: 16, valueHeadDim: 10, valuesInKeys: true });
      expect(() => layer.forward(x, { cache: stepOf(wide) })).toThrow(ShapeError);
    });
  });
});
