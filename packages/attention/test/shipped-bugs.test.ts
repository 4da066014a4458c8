/** What another attention package has got wrong, each under the name of the right behaviour; see docs/from-zerfoo.md. */
import "@heed/engine-cpu";
import { KvCache } from "@heed/kvcache";
import {
  attention,
  attentionVjp,
  cast,
  concat,
  copyInto,
  type FloatDType,
  getEngine,
  scope,
  tensor,
  type Tensor,
  toFloat64,
} from "@heed/tensor";
import { assertClose, checkDirectionalGradient, createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import {
  AttentionHead,
  buildLayer,
  GlobalAttention,
  GroupedQueryAttention,
  type GroupedQueryAttentionOptions,
  type InitOptions,
  LocalAttention,
  MultiHeadLatentAttention,
  RotaryEmbedding,
  ScaledDotProductAttention,
} from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";

const SMALL = { hiddenSize: 8, numHeads: 4, numKvHeads: 2, headDim: 4 } as const;
const LATENT = { hiddenSize: 6, numHeads: 2, kvLoraRank: 5, qkNopeHeadDim: 4, qkRopeHeadDim: 2, vHeadDim: 3 };

describe.each(engines)("on %s", (name) => {
  const engine = getEngine(name);
  const on = { engine, dtype: "float64" } as const;
  const random = (seed: number, ...shape: number[]): Tensor<"float64"> =>
    upload(createRng(seed).normalArray(shape.reduce((a, b) => a * b, 1)), shape, "float64", engine);
  /** A layer whose parameters are all random and of unit scale. */
  const layerOf = (options: GroupedQueryAttentionOptions & InitOptions): GroupedQueryAttention => {
    const layer = GroupedQueryAttention.create({ ...options, ...on });
    [...layer.parameters.values()].forEach((t, i) => copyInto(random(50 + i, ...t.shape), t));
    return layer;
  };
  /** Holds a parameter's gradient of sum(output * dOut) against a central difference of the forward pass. */
  const checkParameter = (layer: GroupedQueryAttention, key: string, x: Tensor<"float64">): void => {
    const weight = layer.parameters.get(key)!;
    const dOut = random(99, ...x.shape);
    const upstream = toFloat64(dOut);
    const objective = (values: Float64Array): number =>
      scope(() => {
        copyInto(tensor(values, weight.shape, on), weight);
        return toFloat64(layer.forward(x)).reduce((sum, y, i) => sum + y * upstream[i]!, 0);
      });
    const at = toFloat64(weight);
    const gradient = toFloat64(layer.vjp(x).backward(dOut).parameters.get(key)!);
    expect(gradient.some((d) => d !== 0)).toBe(true);
    checkDirectionalGradient(objective, at, gradient, { name: key, h: 2 ** -12, rel: 1e-7, abs: 1e-7 });
  };

  test("gradients of keys and values add up over the query heads of one group, with 1 < Hkv < Hq", () => {
    scope(() => {
      const [q, k, v] = [random(1, 2, 5, 6, 4), random(2, 2, 5, 2, 4), random(3, 2, 5, 2, 4)];
      const repeated = (t: Tensor<"float64">): Tensor<"float64"> =>
        concat(
          [0, 0, 0, 1, 1, 1].map((g) => t.slice(2, g, g + 1)),
          2,
        );
      const dOut = random(4, 2, 5, 6, 4);
      const grouped = attentionVjp(q, k, v, { isCausal: true }).backward(dOut);
      const single = attentionVjp(q, repeated(k), repeated(v), { isCausal: true }).backward(dOut);
      for (const which of ["k", "v"] as const) {
        const [each, found] = [toFloat64(single[which]), toFloat64(grouped[which])]; // [2, 5, 6, 4], [2, 5, 2, 4]
        const summed = found.map((_, i) => {
          const [token, head, d] = [Math.floor(i / 8), Math.floor(i / 4) % 2, i % 4];
          return [0, 1, 2].reduce((sum, h) => sum + each[(token * 6 + head * 3 + h) * 4 + d]!, 0);
        });
        assertClose(found, summed, { abs: 1e-12, name: which });
      }
    });
  });
  test("multi-query attention serves any batch as it serves each sequence", () => {
    scope(() => {
      const layer = layerOf({ ...SMALL, numKvHeads: 1, rope: {} });
      const x = random(1, 3, 4, 8);
      const each = [0, 1, 2].map((b) => layer.forward(x.slice(0, b, b + 1)));
      assertClose(toFloat64(layer.forward(x)), toFloat64(concat(each, 0)), { abs: 1e-12 });
    });
  });
  test.each(["q_norm.weight", "k_norm.weight", "q_proj.weight", "k_proj.weight"])(
    "norms are part of the backward pass: %s",
    (key) =>
      scope(() => checkParameter(layerOf({ ...SMALL, qkNorm: {}, rope: {} }), key, random(1, 2, 4, 8))),
  );
  test("a tied value's gradient reaches k_proj", () => {
    scope(() => checkParameter(layerOf({ ...SMALL, tiedValue: true }), "k_proj.weight", random(1, 2, 4, 8)));
  });
  test.each([[[9]], [[5, 4]], [[3, 1, 1, 4]], [[1, 1, 1, 1, 1, 1, 1, 1, 1]]])(
    "the window holds at decode and in every chunk: %p tokens at a time",
    (chunks) => {
      scope(() => {
        const layer = layerOf({ ...SMALL, window: { left: 2 }, rope: {} });
        const x = random(1, 1, 9, 8);
        const full = toFloat64(layer.forward(x));
        const cache = new KvCache({ layers: 1, numKvHeads: 2, headDim: 4, maxPages: 8, pageSize: 4, ...on });
        const sequence = cache.open();
        let at = 0;
        for (const tokens of chunks) {
          const step = cache.reserve([{ sequence, tokens }]);
          const output = layer.forward(x.slice(1, at, at + tokens), { cache: step });
          step.commit();
          assertClose(toFloat64(output), full.subarray(at * 8, (at + tokens) * 8), { abs: 1e-12 });
          at += tokens;
        }
        cache[Symbol.dispose]();
      });
    },
  );
  test.each(["float16", "bfloat16", "float32", "float64"] as const)(
    "causality holds in %s: no bit of an output depends on later tokens",
    (dtype) => {
      scope(() => {
        const layer = GroupedQueryAttention.create({ ...SMALL, engine, dtype, rope: {} });
        const x = random(1, 2, 6, 8);
        const changed = concat([x.slice(1, 0, 4), random(2, 2, 2, 8)], 1);
        const early = (t: Tensor<"float64">): Float64Array =>
          toFloat64(layer.forward(cast(t, dtype) as Tensor<FloatDType>).slice(1, 0, 4));
        expect(early(changed)).toEqual(early(x));
      });
    },
  );
  test("a merged weight adds its biases, for any batch and any length", () => {
    scope(() => {
      const bias = { q: true, k: true, v: true, o: false };
      const apart = layerOf({ ...SMALL, bias, rope: {} });
      const part = (kind: string): Tensor<"float64"> =>
        concat(
          ["q", "k", "v"].map((which) => apart.parameters.get(`${which}_proj.${kind}`) as Tensor<"float64">),
        );
      const merged = new GroupedQueryAttention(
        { ...apart.attributes(), mergedQkv: true },
        {
          "qkv_proj.weight": part("weight"),
          "qkv_proj.bias": part("bias"),
          "o_proj.weight": apart.parameters.get("o_proj.weight")!,
        },
      );
      for (const [batch, length] of [
        [1, 1],
        [3, 1],
        [2, 5],
      ] as const) {
        const x = random(1, batch, length, 8);
        const past = { k: random(2, batch, 3, 2, 4), v: random(3, batch, 3, 2, 4) };
        const [a, b] = [apart, merged].map((layer) => toFloat64(layer.forward(x, { past })));
        assertClose(b!, a!, { abs: 1e-12 });
      }
    });
  });
  test("latent attention keeps its heads apart: another value map of one head changes that head alone", () => {
    scope(() => {
      const eye = tensor(
        Float64Array.from({ length: 36 }, (_, i) => +(i % 7 === 0)),
        [6, 6],
        on,
      );
      const layer = MultiHeadLatentAttention.create({ ...LATENT, ...on });
      const expand = random(7, 14, 5); // per head 4 rows of keys, then 3 of values
      const other = concat([expand.slice(0, 0, 11), random(8, 3, 5)]);
      const outputs = [expand, other].map((weight) => {
        const parameters = new Map([
          ...layer.parameters,
          ["kv_b_proj.weight", weight],
          ["o_proj.weight", eye],
        ]);
        return new MultiHeadLatentAttention(layer.attributes(), parameters as never).forward(
          random(1, 2, 4, 6),
        );
      });
      const [a, b] = outputs.map(toFloat64);
      a!.forEach((y, i) => expect([i, y === b![i]]).toEqual([i, i % 6 < 3]));
    });
  });
  test("latent attention is causal", () => {
    scope(() => {
      const layer = MultiHeadLatentAttention.create({ ...LATENT, ...on });
      const x = random(1, 2, 5, 6);
      const changed = concat([x.slice(1, 0, 3), random(2, 2, 2, 6)], 1);
      const early = (t: Tensor<"float64">): Float64Array => toFloat64(layer.forward(t).slice(1, 0, 3));
      expect(early(changed)).toEqual(early(x));
    });
  });
  test("latent attention is cached: decoded tokens are those of one pass, at kvLoraRank + qkRopeHeadDim numbers each", () => {
    scope(() => {
      const layer = MultiHeadLatentAttention.create({ ...LATENT, ...on });
      const x = random(1, 1, 6, 6);
      const cache = new KvCache({ layers: 1, ...layer.cacheLayout, pageSize: 1, maxPages: 6, ...on });
      expect(cache.stats().bytes).toBe(7 * (5 + 2) * 8); // six pages of a token and the null page
      const sequence = cache.open();
      const outputs = [0, 1, 2, 3, 4, 5].map((t) => {
        const step = cache.reserve([{ sequence, tokens: 1 }]);
        const y = layer.forward(x.slice(1, t, t + 1), { cache: step });
        step.commit();
        return y;
      });
      assertClose(toFloat64(concat(outputs, 1)), toFloat64(layer.forward(x)), { abs: 1e-12 });
      cache[Symbol.dispose]();
    });
  });
  test("rotation goes back at the positions at which it went forward", () => {
    scope(() => {
      using rope = new RotaryEmbedding({ rotaryDim: 4 });
      const x = random(1, 1, 3, 2, 4);
      const back = (at: number): Float64Array => toFloat64(rope.applyBackward(rope.apply(x, 5), at));
      assertClose(back(5), toFloat64(x), { abs: 1e-14 });
      expect(Math.abs(back(0)[0]! - toFloat64(x)[0]!)).toBeGreaterThan(0.01);
    });
  });
  test("scaleRope divides positions and keeps lengths, however often it is called", () => {
    scope(() => {
      using rope = new RotaryEmbedding({ rotaryDim: 4 });
      const x = random(1, 1, 1, 2, 4);
      const expected = toFloat64(rope.apply(x, 3));
      for (let call = 0; call < 2; call++) {
        rope.scaleRope(4);
        assertClose(toFloat64(rope.apply(x, 12)), expected, { abs: 1e-14 });
      }
    });
  });
  test("isCausal decides in every layer: early outputs see later tokens where it is false, and only there", () => {
    scope(() => {
      const x = random(1, 1, 5, 8);
      const shorter = x.slice(1, 0, 4);
      const heads = (t: Tensor<"float64">): Tensor<"float64"> => t.reshape([1, -1, 2, 4]);
      for (const isCausal of [true, false]) {
        const sdpa = new ScaledDotProductAttention({ isCausal });
        const forwards: ((t: Tensor<"float64">) => Tensor<"float64">)[] = [
          (t) => AttentionHead.create({ hiddenSize: 8, headDim: 4, isCausal, ...on }).forward(t),
          (t) => GroupedQueryAttention.create({ ...SMALL, isCausal, ...on }).forward(t),
          (t) => GlobalAttention.create({ ...SMALL, isCausal, ...on }).forward(t),
          (t) => LocalAttention.create({ ...SMALL, windowSize: 5, isCausal, ...on }).forward(t),
          (t) => MultiHeadLatentAttention.create({ ...LATENT, hiddenSize: 8, isCausal, ...on }).forward(t),
          (t) => sdpa.forward(heads(t), heads(t), heads(t)),
          (t) => attention(heads(t), heads(t), heads(t), { isCausal }),
        ];
        for (const [i, forward] of forwards.entries()) {
          const [a, b] = [toFloat64(forward(x).slice(1, 0, 1)), toFloat64(forward(shorter).slice(1, 0, 1))];
          expect([i, isCausal, a.some((y, j) => Math.abs(y - b[j]!) > 1e-9)]).toEqual([
            i,
            isCausal,
            !isCausal,
          ]);
        }
      }
    });
  });
  test("a layer keeps nothing of a call: another forward and vjp before backward change no bit of it", () => {
    scope(() => {
      const layer = layerOf({ ...SMALL, rope: {}, qkNorm: {} });
      const [x, y, dOut] = [random(1, 2, 4, 8), random(2, 1, 7, 8), random(3, 2, 4, 8)];
      const alone = toFloat64(layer.vjp(x).backward(dOut).input);
      const first = layer.vjp(x);
      const second = layer.vjp(y);
      layer.forward(y, { positions: 9 });
      second.backward(y);
      expect(toFloat64(first.backward(dOut).input)).toEqual(alone);
    });
  });
  test("builders use the given weights, and a layer builds again from its own attributes", () => {
    scope(() => {
      const x = random(1, 2, 4, 8);
      const layers = [
        layerOf({ ...SMALL, rope: { base: 500 }, qkNorm: {}, bias: true, window: { left: 2 } }),
        GlobalAttention.create({ ...SMALL, rope: { base: 500 }, seed: 3, ...on }),
        LocalAttention.create({ ...SMALL, windowSize: 3, seed: 4, ...on }),
        MultiHeadLatentAttention.create({ ...LATENT, hiddenSize: 8, seed: 5, ...on }),
        AttentionHead.create({ hiddenSize: 8, headDim: 4, isCausal: false, seed: 6, ...on }),
      ];
      for (const layer of layers) {
        const attributes = JSON.parse(JSON.stringify(layer.attributes()));
        const built = buildLayer(attributes.operation, attributes, layer.parameters) as typeof layer;
        expect(toFloat64(built.forward(x))).toEqual(toFloat64(layer.forward(x)));
      }
    });
  });
});
