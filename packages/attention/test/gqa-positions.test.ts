/** Positions that a call gives itself beside a paged cache: three a token, or others than the cache's. */
import "@heed/engine-cpu";
import { KvCache } from "@heed/kvcache";
import {
  ArgumentError,
  concat,
  copyInto,
  type FloatDType,
  getEngine,
  recordTape,
  scope,
  ShapeError,
  tensor,
  type Tensor,
  toFloat64,
} from "@heed/tensor";
import { assertClose, conformanceTolerance, createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  GroupedQueryAttention,
  type GroupedQueryAttentionOptions,
  type PastKeysValues,
  type RopeSections,
} from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";
import { createPages } from "./support/reader.ts";

const HIDDEN = 12;
const BASE: GroupedQueryAttentionOptions = { hiddenSize: HIDDEN, numHeads: 4, numKvHeads: 2, headDim: 12 };
const SECTIONS: readonly RopeSections[] = [{ pairs: [1, 2, 3] }, { pairs: [2, 2, 2], order: "interleaved" }];
const KINDS: Readonly<Record<string, GroupedQueryAttentionOptions>> = {
  "blocks of pairs": { ...BASE, rope: { sections: SECTIONS[0] } },
  "interleaved pairs, norms, window, sinks": {
    ...BASE,
    rope: { sections: SECTIONS[1], pairing: "interleaved" },
    qkNorm: {},
    window: { left: 5 },
    sinks: true,
  },
  "scaled, biased": {
    ...BASE,
    rope: { sections: SECTIONS[0], scaling: { type: "linear", factor: 2 } },
    bias: true,
  },
};
const DTYPES = ["float64", "float32", "float16", "bfloat16"] as const;

/** A sentence, an image of 2 x 3 patches and a sentence, as Qwen2-VL places them: after an image all go on from its greatest. */
const GRID = {
  frames: [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7, 8],
  rows: [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8],
  columns: [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8],
} as const;
const TOKENS = GRID.frames.length;
/** The three positions of tokens from .. to - 1, frames first. */
const grid = (from: number, to: number): number[][] =>
  [GRID.frames, GRID.rows, GRID.columns].map((axis) => axis.slice(from, to));

describe.each(engines)("positions beside a paged cache on %s", (name) => {
  const engine = getEngine(name);
  const int32 = (values: readonly number[], shape: readonly number[]): Tensor<"int32"> =>
    tensor(Int32Array.from(values), shape, { dtype: "int32", engine });

  /** Weights of unit scale, so that attention is far from uniform. */
  function build(options: GroupedQueryAttentionOptions, dtype: FloatDType): GroupedQueryAttention {
    const random = GroupedQueryAttention.create({ ...options, engine, dtype: "float64", seed: 2 });
    const scaled = [...random.parameters].map(
      ([key, t]) =>
        [
          key,
          upload(
            toFloat64(t).map((w) => 20 * w),
            t.shape,
            dtype,
            engine,
          ),
        ] as const,
    );
    return GroupedQueryAttention.fromParameters(options, new Map<string, Tensor>(scaled));
  }
  const pagesOf = (sequences: number, dtype: FloatDType): ReturnType<typeof createPages> =>
    createPages(sequences, { numKvHeads: 2, headDim: 12, dtype, engine });
  const tokens = (n: number, seed = 5): Float64Array => createRng(seed).normalArray(n * HIDDEN);
  const rowsOf = (values: Float64Array, from: number, to: number, dtype: FloatDType): Tensor<FloatDType> =>
    upload(values.slice(from * HIDDEN, to * HIDDEN), [1, to - from, HIDDEN], dtype, engine);

  for (const [kind, options] of Object.entries(KINDS)) {
    test.each(DTYPES)(
      `three positions a token, in any split, equal one pass, given past and paged: ${kind}, %s`,
      (dtype) => {
        const cuts = fc.uniqueArray(fc.integer({ min: 1, max: TOKENS - 1 }), { maxLength: TOKENS - 1 });
        fc.assert(
          fc.property(cuts, (inner) =>
            scope(() => {
              const layer = build(options, dtype);
              const values = tokens(TOKENS);
              const at = (from: number, to: number): Tensor<"int32"> =>
                int32(grid(from, to).flat(), [3, 1, to - from]);
              const whole = layer.forward(rowsOf(values, 0, TOKENS, dtype), { positions: at(0, TOKENS) });
              const ends = [...inner.toSorted((a, b) => a - b), TOKENS];
              const pages = pagesOf(1, dtype);
              const found = { paged: [] as number[], contiguous: [] as number[] };
              let past: PastKeysValues | undefined;
              ends.forEach((to, i) => {
                const from = ends[i - 1] ?? 0;
                const x = rowsOf(values, from, to, dtype);
                const positions = at(from, to);
                found.paged.push(
                  ...toFloat64(layer.forward(x, { cache: pages.step([to - from]), positions })),
                );
                const { output, present } = layer.forwardWithPresent(x, { past, positions });
                found.contiguous.push(...toFloat64(output));
                past = present;
              });
              const rel = conformanceTolerance(dtype, "forward");
              for (const [through, y] of Object.entries(found))
                assertClose(y, toFloat64(whole), { rel, shape: [TOKENS, HIDDEN], name: through });
            }),
          ),
          { numRuns: 8 },
        );
      },
    );
  }
  test("sequences of different lengths each have their own three positions", () => {
    scope(() => {
      const layer = build(KINDS["blocks of pairs"]!, "float64");
      const inputs = [1, 2].map((seed) => tokens(TOKENS, seed));
      const pages = pagesOf(2, "float64");
      const found: number[][] = [[], []];
      // 7 and 2 tokens, then one each five times: the sentence of one goes on inside the other's image.
      const starts = [0, 0];
      for (const counts of [[7, 2], ...Array.from({ length: 5 }, () => [1, 1])]) {
        const parts = counts.map((n, b) => grid(starts[b]!, starts[b]! + n));
        const positions = int32(
          [0, 1, 2].flatMap((axis) => parts.flatMap((part) => part[axis]!)),
          [3, counts[0]! + counts[1]!],
        );
        const x = concat(
          counts.map((n, b) => rowsOf(inputs[b]!, starts[b]!, starts[b]! + n, "float64").squeeze(0)),
          0,
        ) as Tensor<"float64">;
        const y = toFloat64(layer.forward(x, { cache: pages.step(counts), positions }));
        let row = 0;
        counts.forEach((n, b) => {
          found[b]!.push(...y.subarray(row * HIDDEN, (row += n) * HIDDEN));
          starts[b]! += n;
        });
      }
      expect(starts).toEqual([12, 7]);
      inputs.forEach((values, b) => {
        const n = starts[b]!;
        const positions = int32(grid(0, n).flat(), [3, 1, n]);
        const alone = toFloat64(layer.forward(rowsOf(values, 0, n, "float64"), { positions }));
        assertClose(found[b]!, alone, { rel: 1e-12, abs: 1e-13, name: `sequence ${b}` });
      });
    });
  });
  test("one position a token, whatever the cache counts, turns as it does without a cache", () => {
    scope(() => {
      const layer = build({ ...BASE, rope: { rotaryDim: 8 } }, "float64");
      const [values, places] = [tokens(8), [40, 3, 3, 90, 0, 1, 2, 500]];
      const whole = toFloat64(
        layer.forward(rowsOf(values, 0, 8, "float64"), { positions: int32(places, [1, 8]) }),
      );
      const pages = pagesOf(1, "float64");
      const steps = [
        [0, 5, [5]],
        [5, 7, [1, 2]],
        [7, 8, [1]],
      ] as const;
      const found = steps.flatMap(([from, to, shape]) => [
        ...toFloat64(
          layer.forward(rowsOf(values, from, to, "float64"), {
            cache: pages.step([to - from]),
            positions: int32(places.slice(from, to), shape),
          }),
        ),
      ]);
      assertClose(found, whole, { rel: 1e-12, abs: 1e-13 });
      const plain = layer.forward(rowsOf(values, 0, 8, "float64"));
      expect(toFloat64(plain)).not.toEqual(whole);
    });
  });
  test("strided positions are those of their elements", () => {
    scope(() => {
      const layer = build(KINDS["blocks of pairs"]!, "float64");
      const x = rowsOf(tokens(4), 0, 4, "float64");
      const three = int32(grid(2, 6).flat(), [3, 4]);
      const turned = int32(
        [0, 1, 2, 3].flatMap((t) => grid(2 + t, 3 + t).flat()),
        [4, 3],
      ).transpose(0, 1);
      const run = (positions: Tensor<"int32">): Float64Array =>
        toFloat64(layer.forward(x, { cache: pagesOf(1, "float64").step([4]), positions }));
      expect(run(turned)).toEqual(run(three));
    });
  });
  test.each(["three positions a token", "one position a token"])(
    "a recorded decode step replays with new ones, bit for bit: %s",
    (what) => {
      scope(() => {
        const three = what.startsWith("three");
        const layer = build(three ? KINDS["blocks of pairs"]! : { ...BASE, rope: {} }, "float32");
        const sizes = { layers: 1, numKvHeads: 2, headDim: 12, pageSize: 4, maxPages: 8, engine };
        using plain = new KvCache(sizes);
        using taped = new KvCache(sizes);
        using table = taped.fixedTable({ sequences: 1 });
        const [eagerly, replayed] = [plain, taped].map((cache) => [{ sequence: cache.open(), tokens: 1 }]);
        const shape = three ? [3, 1] : [1];
        const [x, positions] = [rowsOf(tokens(1), 0, 1, "float32"), int32(three ? [0, 0, 0] : [0], shape)];
        let recorded: ReturnType<typeof recordTape<Tensor<FloatDType>>> | undefined;
        const seen: string[] = [];
        for (let t = 0; t < TOKENS; t++) {
          copyInto(rowsOf(tokens(1, 20 + t), 0, 1, "float32"), x);
          const at = grid(t, t + 1).flat();
          copyInto(int32(three ? at : [3 * t + (t % 2)], shape), positions);
          using step = taped.reserve(replayed!, { table });
          if (recorded === undefined)
            recorded = recordTape(engine, () => layer.forward(x, { cache: step, positions }));
          else {
            recorded.tape.replay();
            step.markWritten();
          }
          using eager = plain.reserve(eagerly!);
          const expected = toFloat64(layer.forward(x, { cache: eager, positions }));
          expect(toFloat64(recorded.outputs)).toEqual(expected);
          seen.push(expected.join());
          step.commit();
          eager.commit();
        }
        expect(new Set(seen).size).toBe(TOKENS);
        recorded!.tape[Symbol.dispose]();
      });
    },
  );
  test("positions that do not fit the step or the rotation are typed errors, and nothing is written", () => {
    scope(() => {
      const layer = build({ ...BASE, rope: { maxPositions: 50 } }, "float64");
      const cache = new KvCache({
        layers: 1,
        numKvHeads: 2,
        headDim: 12,
        maxPages: 2,
        dtype: "float64",
        engine,
      });
      using step = cache.reserve([{ sequence: cache.open(), tokens: 2 }]);
      const x = rowsOf(tokens(2), 0, 2, "float64");
      const run = (positions: number | Tensor<"int32">) => (): Tensor =>
        layer.forward(x, { cache: step, positions });
      expect(run(0)).toThrow("positions beside a cache must be a tensor; got 0");
      expect(run(0)).toThrow(ArgumentError);
      for (const shape of [[1], [3], [2, 2], [3, 1], [6], [2, 3], [1, 3, 2], [1, 1, 2], []])
        expect(run(int32(new Array(shape.reduce((n, d) => n * d, 1)).fill(0) as number[], shape))).toThrow(
          ShapeError,
        );
      expect(run(int32([0, 1, 0, 1, 0, 1], [3, 2]))).toThrow("without sections");
      const sectioned = build(KINDS["blocks of pairs"]!, "float64");
      for (const shape of [[6], [2, 3], [1, 3, 2], [1, 1, 3, 2]]) {
        const call = { cache: step, positions: int32([0, 1, 0, 1, 0, 1], shape) };
        expect(() => sectioned.forward(x, call)).toThrow("or three, [3, T] or [3, B, S]");
      }
      expect(run(int32([0, 50], [2]))).toThrow("position 50 is not below maxPositions 50");
      expect(run(int32([0, -1], [2]))).toThrow("position -1 is below 0");
      const floats = upload(new Float64Array(2), [2], "float64", engine) as Tensor as Tensor<"int32">;
      expect(run(floats)).toThrow("positions must be int32");
      const gone = int32([0, 1], [2]);
      gone[Symbol.dispose]();
      expect(run(gone)).toThrow("disposed");
      expect(() => step.commit()).toThrow("written");
      run(int32([7, 8], [2]))();
      step.commit();
      cache.check();
      cache[Symbol.dispose]();
    });
  });
  test("an empty step takes empty positions", () => {
    scope(() => {
      for (const options of [{ ...BASE, rope: {} }, KINDS["blocks of pairs"]!]) {
        const layer = build(options, "float64");
        const x = rowsOf(tokens(0), 0, 0, "float64");
        for (const shape of [[0], [3, 0]]) {
          const call = { cache: pagesOf(1, "float64").step([0]), positions: int32([], shape) };
          expect(layer.forward(x, call).shape).toEqual([1, 0, HIDDEN]);
        }
      }
    });
  });
});
