import "@heed/engine-cpu";
import { type FloatDType, getEngine, scope, tensor, type Tensor, toFloat64 } from "@heed/tensor";
import { assertClose, conformanceTolerance, createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc, { type Arbitrary } from "fast-check";
import {
  documentIds,
  documentPositions,
  type GroupedQueryAttention,
  type KeysValuesGradients,
  type PastKeysValues,
} from "../src/index.ts";
import { engines } from "./engines.ts";
import { layerOf, type Problem, problems, upload, valuesOf } from "./support/problem.ts";
import { createPages } from "./support/reader.ts";

const DTYPES = ["float64", "float32", "float16", "bfloat16"] as const;
const MAX_LENGTH = 12;

/** A causal layer with any options, sequences of any lengths, and steps that each bring some of their tokens. */
interface Split {
  readonly problem: Problem;
  readonly steps: readonly (readonly number[])[]; // new tokens of each sequence, step by step
}
function splits(): Arbitrary<Split> {
  const counts = fc.constantFrom(0, 1, 1, 1, 2, 4);
  const steps = fc
    .integer({ min: 1, max: 3 })
    .chain((B) => fc.array(fc.array(counts, { minLength: B, maxLength: B }), { minLength: 1, maxLength: 6 }));
  return fc.record({ problem: problems(), steps }).map(({ problem, steps: list }) => {
    const lengths = list[0]!.map(() => 0);
    const fitting = list.map((step) =>
      step.map((n, b) => {
        const taken = Math.min(n, MAX_LENGTH - lengths[b]!);
        lengths[b]! += taken;
        return taken;
      }),
    );
    const options = { ...problem.options, isCausal: true, contextSize: undefined, rotateContext: false };
    return { problem: { ...problem, options, B: lengths.length, S: MAX_LENGTH }, steps: fitting };
  });
}
const int32 = (values: readonly number[], engine: Tensor["engine"]): Tensor<"int32"> =>
  tensor(Int32Array.from(values), [values.length], { dtype: "int32", engine });

describe.each(engines)("GroupedQueryAttention, split on %s", (name) => {
  const engine = getEngine(name);

  /** The layer, each sequence's rows [12, hidden], and what each of them gives alone in one pass. */
  function setUp(
    { problem, steps }: Split,
    dtype: FloatDType,
  ): { layer: GroupedQueryAttention; rows: Float64Array[]; alone: Float64Array[] } {
    const { hiddenSize } = problem.options;
    const layer = layerOf(problem, valuesOf(problem).parameters, dtype, engine);
    const rows = steps[0]!.map((_, b) =>
      createRng(problem.seed + 100 * b).normalArray(MAX_LENGTH * hiddenSize),
    );
    const alone = rows.map((values, b) => {
      const length = steps.reduce((n, step) => n + step[b]!, 0);
      const x = upload(values.slice(0, length * hiddenSize), [1, length, hiddenSize], dtype, engine);
      return toFloat64(layer.forward(x));
    });
    return { layer, rows, alone };
  }
  /** New tokens as [B, most, hidden], in which the places without a token are NaN. */
  function padded(rows: Float64Array[], starts: number[], counts: readonly number[], hidden: number) {
    const most = Math.max(...counts);
    const all = new Float64Array(counts.length * most * hidden).fill(NaN);
    counts.forEach((n, b) =>
      all.set(rows[b]!.subarray(starts[b]! * hidden, (starts[b]! + n) * hidden), b * most * hidden),
    );
    return { all, shape: [counts.length, most, hidden] };
  }
  const runs: Readonly<Record<string, (split: Split, dtype: FloatDType) => void>> = {
    "given past keys and values": (split, dtype) => {
      const { layer, rows, alone } = setUp(split, dtype);
      const { hiddenSize, numKvHeads, headDim } = split.problem.options;
      const B = rows.length;
      const starts = rows.map(() => 0);
      const none = (): Tensor<FloatDType> =>
        upload(new Float64Array(0), [B, 0, numKvHeads, headDim], dtype, engine);
      let past: PastKeysValues = { k: none(), v: none(), lengths: int32(starts, engine) };
      const found = rows.map(() => [] as number[]);
      for (const counts of split.steps) {
        const { all, shape } = padded(rows, starts, counts, hiddenSize);
        const x = upload(all, shape, dtype, engine);
        const kvLengths = int32(counts, engine);
        const { output, present } = layer.forwardWithPresent(x, { past, kvLengths });
        const values = toFloat64(output);
        counts.forEach((n, b) => {
          const at = b * shape[1]! * hiddenSize;
          found[b]!.push(...values.subarray(at, at + n * hiddenSize));
          starts[b]! += n;
        });
        past = present;
        expect([...present.lengths!.data]).toEqual(starts);
      }
      compare(found, alone, dtype, hiddenSize);
    },
    "a paged cache": (split, dtype) => {
      const { layer, rows, alone } = setUp(split, dtype);
      const { hiddenSize, numKvHeads, headDim } = split.problem.options;
      const pages = createPages(rows.length, { numKvHeads, headDim, dtype, engine });
      const starts = rows.map(() => 0);
      const found = rows.map(() => [] as number[]);
      for (const counts of split.steps) {
        const ragged = counts.flatMap((n, b) => [
          ...rows[b]!.subarray(starts[b]! * hiddenSize, (starts[b]! + n) * hiddenSize),
        ]);
        const T = counts.reduce((sum, n) => sum + n, 0);
        const x = upload(Float64Array.from(ragged), [T, hiddenSize], dtype, engine);
        const values = toFloat64(layer.forward(x, { cache: pages.step(counts) }));
        let at = 0;
        counts.forEach((n, b) => {
          found[b]!.push(...values.subarray(at, (at += n * hiddenSize)));
          starts[b]! += n;
        });
      }
      compare(found, alone, dtype, hiddenSize);
    },
  };
  function compare(found: number[][], alone: Float64Array[], dtype: FloatDType, hidden: number): void {
    alone.forEach((expected, b) =>
      assertClose(found[b]!, expected, {
        rel: conformanceTolerance(dtype, "forward"),
        abs: conformanceTolerance(dtype, "forward"),
        shape: [expected.length / hidden, hidden],
        name: `sequence ${b}`,
      }),
    );
  }
  for (const [through, run] of Object.entries(runs)) {
    test.each(DTYPES)(
      `any split of sequences of different lengths through ${through} equals one pass each, %s`,
      (dtype) => {
        fc.assert(
          fc.property(splits(), (split) => scope(() => run(split, dtype))),
          { numRuns: 25 },
        );
      },
    );
  }
  test("the last token's output changes when an early one of the past does, and not through a window", () => {
    const run = (window: { left: number } | null, first: number): Float64Array =>
      scope(() => {
        const options = { hiddenSize: 4, numHeads: 2, numKvHeads: 1, headDim: 4, rope: {}, window } as const;
        const bias = { q: false, k: false, v: false, o: false };
        const problem = { ...base, options: { ...options, bias } };
        const layer = layerOf(problem, valuesOf(problem).parameters, "float64", engine);
        const values = createRng(3).normalArray(8 * 4);
        values[0] = first;
        const part = (from: number, to: number): Tensor<"float64"> =>
          upload(values.slice(from * 4, to * 4), [1, to - from, 4], "float64", engine);
        const { present } = layer.forwardWithPresent(part(0, 7));
        return toFloat64(layer.forward(part(7, 8), { past: present }));
      });
    const difference = (window: { left: number } | null): number => {
      const [a, b] = [run(window, 0), run(window, 3)];
      return Math.max(...a.map((y, i) => Math.abs(y - b[i]!)));
    };
    expect(difference(null)).toBeGreaterThan(1e-3);
    expect(difference({ left: 6 })).toBe(0);
    expect(difference({ left: 7 })).toBeGreaterThan(1e-3);
  });
  test("full backpropagation through the past of every step gives the gradients of one pass", () => {
    fc.assert(
      fc.property(splits(), (split) =>
        scope(() => {
          const { problem, steps } = split;
          const { hiddenSize } = problem.options;
          const { layer, rows } = setUp(split, "float64");
          const dRows = rows.map((_, b) =>
            createRng(problem.seed + 7 + b).normalArray(MAX_LENGTH * hiddenSize),
          );
          const total = new Map([...layer.parameters].map(([key, t]) => [key, new Float64Array(t.size)]));
          const expectedInput = rows.map((values, b) => {
            const length = steps.reduce((n, step) => n + step[b]!, 0);
            const one = (list: Float64Array): Tensor<"float64"> =>
              upload(list.slice(0, length * hiddenSize), [1, length, hiddenSize], "float64", engine);
            const { input, parameters } = layer.vjp(one(values)).backward(one(dRows[b]!));
            for (const [key, t] of parameters) addTo(total.get(key)!, toFloat64(t), 1);
            return toFloat64(input);
          });
          const { inputs, parameters } = chain(split, layer, rows, dRows);
          inputs.forEach((found, b) =>
            assertClose(found, expectedInput[b]!, { rel: 1e-9, abs: 1e-9, name: "input" }),
          );
          for (const [key, found] of parameters)
            assertClose(found, total.get(key)!, { rel: 1e-9, abs: 1e-9, name: key });
        }),
      ),
      { numRuns: 20 },
    );
  });
  /** All steps forward, then all of them backward, each handing the gradients of its past to the one before. */
  function chain(
    { problem, steps }: Split,
    layer: GroupedQueryAttention,
    rows: Float64Array[],
    d: Float64Array[],
  ) {
    const { hiddenSize: n } = problem.options;
    const starts = rows.map(() => 0);
    let past: PastKeysValues<"float64"> | undefined;
    const passes = steps.map((counts) => {
      const at = [...starts];
      const { all, shape } = padded(rows, at, counts, n);
      const x = upload(
        all.map((value) => value || 0),
        shape,
        "float64",
        engine,
      );
      const dOut = upload(
        padded(d, at, counts, n).all.map((value) => value || 0),
        shape,
        "float64",
        engine,
      );
      const first = { kvLengths: int32(counts, engine) };
      const pass = layer.vjp(x, past === undefined ? first : { ...first, past });
      past = pass.present;
      counts.forEach((count, b) => (starts[b]! += count));
      return { pass, dOut, at, counts, shape };
    });
    const inputs = rows.map((_, b) => new Float64Array(starts[b]! * n));
    const parameters = new Map([...layer.parameters].map(([key, t]) => [key, new Float64Array(t.size)]));
    let dPresent: KeysValuesGradients<"float64"> | undefined;
    for (const { pass, dOut, at, counts, shape } of passes.reverse()) {
      const found = pass.backward(dOut, dPresent);
      dPresent = found.past;
      for (const [key, t] of found.parameters) addTo(parameters.get(key)!, toFloat64(t), 1);
      const dx = toFloat64(found.input);
      counts.forEach((count, b) => {
        const from = b * shape[1]! * n;
        inputs[b]!.set(dx.subarray(from, from + count * n), at[b]! * n);
      });
    }
    return { inputs, parameters };
  }
  test("packed documents give what each gives alone, in one pass and in chunks through the past", () => {
    fc.assert(
      fc.property(
        problems(),
        fc.array(fc.integer({ min: 0, max: 4 }), { minLength: 1, maxLength: 3 }),
        fc.integer({ min: 0, max: 12 }),
        (problem, lengths, at) =>
          scope(() => {
            const options = { ...problem.options, contextSize: undefined, rotateContext: false };
            const { hiddenSize: n } = options;
            const layer = layerOf(
              { ...problem, options },
              valuesOf({ ...problem, options }).parameters,
              "float64",
              engine,
            );
            const S = lengths.reduce((sum, length) => sum + length, 0);
            const values = createRng(problem.seed).normalArray(S * n);
            const part = (from: number, to: number): Tensor<"float64"> =>
              upload(values.slice(from * n, to * n), [1, to - from, n], "float64", engine);
            const ends = [0];
            for (const length of lengths) ends.push(ends.at(-1)! + length);
            const alone = lengths.flatMap((_, i) => [
              ...toFloat64(layer.forward(part(ends[i]!, ends[i + 1]!))),
            ]);
            const documents = documentIds([ends], S, { engine });
            const positions = documentPositions(documents);
            const packed = toFloat64(layer.forward(part(0, S), { documents, positions }));
            assertClose(packed, alone, { rel: 1e-12, abs: 1e-12, name: "packed" });
            if (!options.isCausal) return;
            const cut = Math.min(at, S);
            const piece = (t: Tensor<"int32">, from: number, to: number): Tensor<"int32"> =>
              t.slice(1, from, to) as Tensor<"int32">;
            const call = (
              from: number,
              to: number,
            ): { documents: Tensor<"int32">; positions: Tensor<"int32"> } => ({
              documents: piece(documents, from, to),
              positions: piece(positions, from, to),
            });
            const first = layer.forwardWithPresent(part(0, cut), call(0, cut));
            const second = layer.forward(part(cut, S), { ...call(cut, S), past: first.present });
            const both = [...toFloat64(first.output), ...toFloat64(second)];
            assertClose(both, alone, { rel: 1e-12, abs: 1e-12, name: "chunks" });
          }),
      ),
      { numRuns: 40 },
    );
  });
});
const base: Omit<Problem, "options"> = {
  B: 1,
  S: 8,
  positions: 0,
  kvLengths: undefined,
  mask: undefined,
  seed: 4,
};
function addTo(total: Float64Array, more: Float64Array, factor: number): void {
  more.forEach((value, i) => (total[i]! += factor * value));
}
