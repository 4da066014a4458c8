import "@heed/engine-cpu";
import {
  ArgumentError,
  concat,
  getEngine,
  scope,
  ShapeError,
  tensor,
  type Tensor,
  toFloat64,
} from "@heed/tensor";
import { assertClose, conformanceTolerance, createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import { GroupedQueryAttention, type GroupedQueryAttentionOptions } from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";
import { createPages } from "./support/reader.ts";

const HIDDEN = 12;
const BASE: GroupedQueryAttentionOptions = { hiddenSize: HIDDEN, numHeads: 6, numKvHeads: 2, headDim: 4 };
const KINDS: Readonly<Record<string, GroupedQueryAttentionOptions>> = {
  plain: BASE,
  rotated: { ...BASE, rope: {} },
  "partly rotated, interleaved": { ...BASE, rope: { rotaryDim: 2, pairing: "interleaved" } },
  windowed: { ...BASE, rope: {}, window: { left: 3 } },
  "softcapped, biased": { ...BASE, rope: {}, softcap: 2, bias: true },
  "normalised, with sinks": {
    ...BASE,
    rope: {},
    qkNorm: { unitOffset: true },
    sinks: true,
    window: { left: 4 },
  },
  "multi-query": { ...BASE, numKvHeads: 1, rope: {}, scale: 0.7 },
  "tied value, norm of the projection": {
    ...BASE,
    rope: {},
    tiedValue: true,
    qkNorm: { over: "projection" },
  },
  "merged weight, no rotation": { ...BASE, mergedQkv: true, bias: true },
  "second layer of a cache": { ...BASE, rope: {}, layerIndex: 1 },
};
const DTYPES = ["float64", "float32", "float16", "bfloat16"] as const;
const tokens = (n: number, seed = 5): Float64Array => createRng(seed).normalArray(n * HIDDEN);

describe.each(engines)("GroupedQueryAttention over a paged cache on %s", (name) => {
  const engine = getEngine(name);

  function build(
    options: GroupedQueryAttentionOptions,
    dtype: (typeof DTYPES)[number],
  ): { layer: GroupedQueryAttention; pages: ReturnType<typeof createPages> } {
    const random = GroupedQueryAttention.create({ ...options, engine, dtype: "float64", seed: 2 });
    // Weights of unit scale, so that attention is far from uniform.
    const scaled = [...random.parameters].map(
      ([key, t]) =>
        [
          key,
          upload(
            toFloat64(t).map((w) => 25 * w),
            t.shape,
            dtype,
            engine,
          ),
        ] as const,
    );
    const layer = GroupedQueryAttention.fromParameters(options, new Map<string, Tensor>(scaled));
    const pages = createPages(3, { layers: 2, numKvHeads: options.numKvHeads, headDim: 4, dtype, engine });
    return { layer, pages };
  }
  for (const [kind, options] of Object.entries(KINDS)) {
    test.each(DTYPES)(`a prefill of 7 and 3 decode steps equal a prefill of 10: ${kind}, %s`, (dtype) => {
      scope(() => {
        const { layer, pages } = build(options, dtype);
        const values = tokens(10);
        const part = (from: number, to: number): Tensor<typeof dtype> =>
          upload(values.slice(from * HIDDEN, to * HIDDEN), [1, to - from, HIDDEN], dtype, engine);
        const expected = toFloat64(layer.forward(part(0, 10)));
        const steps = [
          [0, 7],
          [7, 8],
          [8, 9],
          [9, 10],
        ] as const;
        const found = steps.flatMap(([from, to]) => [
          ...toFloat64(layer.forward(part(from, to), { cache: pages.step([to - from, 0, 0]) })),
        ]);
        assertClose(found, expected, { rel: conformanceTolerance(dtype, "forward"), shape: [10, HIDDEN] });
      });
    });
  }
  test("the last token's output changes when an early token does", () => {
    scope(() => {
      const last = (first: number): Float64Array => {
        const { layer, pages } = build(KINDS["rotated"]!, "float64");
        const values = tokens(10);
        values[0] = first;
        layer.forward(upload(values.slice(0, 9 * HIDDEN), [1, 9, HIDDEN], "float64", engine), {
          cache: pages.step([9, 0, 0]),
        });
        return toFloat64(
          layer.forward(upload(values.slice(9 * HIDDEN), [1, 1, HIDDEN], "float64", engine), {
            cache: pages.step([1, 0, 0]),
          }),
        );
      };
      const [a, b] = [last(0.5), last(2)];
      expect(Math.max(...a.map((x, i) => Math.abs(x - b[i]!)))).toBeGreaterThan(1e-3);
    });
  });
  test("a window hides early tokens at decode as in a full pass", () => {
    scope(() => {
      const last = (first: number): Float64Array => {
        const { layer, pages } = build(KINDS["windowed"]!, "float64");
        const values = tokens(10);
        values[0] = first;
        layer.forward(upload(values.slice(0, 9 * HIDDEN), [1, 9, HIDDEN], "float64", engine), {
          cache: pages.step([9, 0, 0]),
        });
        return toFloat64(
          layer.forward(upload(values.slice(9 * HIDDEN), [1, 1, HIDDEN], "float64", engine), {
            cache: pages.step([1, 0, 0]),
          }),
        );
      };
      expect(last(0.5)).toEqual(last(2));
    });
  });
  test("layers of one cache write and read their own pages", () => {
    scope(() => {
      const options = KINDS["rotated"]!;
      const first = build(options, "float64");
      const second = GroupedQueryAttention.fromParameters(
        { ...options, layerIndex: 1 },
        first.layer.parameters,
      );
      const [a, b] = [1, 2].map((seed) => upload(tokens(5, seed), [1, 5, HIDDEN], "float64", engine));
      const step = first.pages.step([5, 0, 0]);
      first.layer.forward(a!, { cache: step });
      second.forward(b!, { cache: step });
      const next = first.pages.step([1, 0, 0]);
      const token = upload(tokens(1, 3), [1, 1, HIDDEN], "float64", engine);
      const found = [first.layer, second].map((layer) => toFloat64(layer.forward(token, { cache: next })));
      const alone = [a!, b!].map((x) => toFloat64(first.layer.forward(concat([x, token], 1)).slice(1, 5)));
      found.forEach((y, i) => assertClose(y, alone[i]!, { rel: 1e-12, name: `layer ${i}` }));
    });
  });
  test("a ragged step of several sequences gives each what it gets alone", () => {
    scope(() => {
      const { layer, pages } = build(KINDS["normalised, with sinks"]!, "float64");
      const values = tokens(14);
      const rows = (from: number, to: number): Float64Array => values.slice(from * HIDDEN, to * HIDDEN);
      // 5, 2 and 0 tokens; then 1, 1 and 3, prefill and decode mixed; then 1, 0 and 1, as [B, S, hidden].
      const run = (from: number, shape: number[], counts: number[]): Float64Array =>
        toFloat64(
          layer.forward(upload(rows(from, from + counts.reduce((a, b) => a + b)), shape, "float64", engine), {
            cache: pages.step(counts),
          }),
        );
      const found = [
        run(0, [7, HIDDEN], [5, 2, 0]),
        run(7, [5, HIDDEN], [1, 1, 3]),
        run(12, [2, 1, HIDDEN], [1, 0, 1]),
      ];
      const alone = (...parts: Float64Array[]): Float64Array => {
        const all = Float64Array.from(parts.flatMap((p) => [...p]));
        return toFloat64(layer.forward(upload(all, [1, all.length / HIDDEN, HIDDEN], "float64", engine)));
      };
      const pick = (step: number, from: number, to: number): Float64Array =>
        found[step]!.subarray(from * HIDDEN, to * HIDDEN);
      const first = [...pick(0, 0, 5), ...pick(1, 0, 1), ...pick(2, 0, 1)];
      const second = [...pick(0, 5, 7), ...pick(1, 1, 2)];
      const third = [...pick(1, 2, 5), ...pick(2, 1, 2)];
      assertClose(first, alone(rows(0, 5), rows(7, 8), rows(12, 13)), { rel: 1e-12, name: "first" });
      assertClose(second, alone(rows(5, 7), rows(8, 9)), { rel: 1e-12, name: "second" });
      assertClose(third, alone(rows(9, 12), rows(13, 14)), { rel: 1e-12, name: "third" });
    });
  });
  test("tokens that do not fit the step, and options that a cache gives itself, are typed errors", () => {
    scope(() => {
      const { layer, pages } = build(KINDS["rotated"]!, "float64");
      const x = upload(tokens(3), [1, 3, HIDDEN], "float64", engine);
      expect(() => layer.forward(x, { cache: pages.step([2, 0, 0]) })).toThrow(ShapeError);
      expect(() => layer.forward(x, { cache: pages.step([3, 0, 0]), positions: 0 })).toThrow(ArgumentError);
      const kv = upload(new Float64Array(8), [1, 1, 2, 4], "float64", engine);
      const documents = tensor(new Int32Array(3), [1, 3], { dtype: "int32", engine });
      for (const given of [{ past: { k: kv, v: kv } }, { documents }] as const) {
        const call = { ...given, cache: pages.step([0, 0, 0]) };
        expect(() => layer.forward(x.slice(1, 0, 0) as typeof x, call)).toThrow("exclude each other");
      }
      const cross = GroupedQueryAttention.create({ ...BASE, contextSize: 4, engine, dtype: "float64" });
      expect(() => cross.forward(x.slice(1, 0, 0) as typeof x, { cache: pages.step([0, 0, 0]) })).toThrow(
        "a layer with contextSize takes no cache",
      );
      const cached = { cache: pages.step([3, 0, 0]) } as object;
      for (const call of [
        () => layer.vjp(x, cached),
        () => layer.scores(x, cached),
        () => layer.forwardWithPresent(x, cached),
      ])
        expect(call).toThrow("takes no cache");
    });
  });
});
