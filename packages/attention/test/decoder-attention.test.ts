import "@heed/engine-cpu";
import {
  ArgumentError,
  DTypeError,
  type FloatDType,
  getEngine,
  memoryUsage,
  scope,
  ShapeError,
  type Tensor,
  toFloat64,
  type Window,
  zeros,
} from "@heed/tensor";
import {
  assertClose,
  checkDirectionalGradient,
  conformanceTolerance,
  createRng,
  dotProduct,
} from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  buildLayer,
  type DecoderAttention,
  GlobalAttention,
  type GlobalAttentionOptions,
  GroupedQueryAttention,
  type GroupedQueryAttentionGradients,
  LocalAttention,
} from "../src/index.ts";
import { engines } from "./engines.ts";
import { gqaOracle } from "./support/oracle.ts";
import { callOptions, type Problem, problems, shapesOf, upload, valuesOf } from "./support/problem.ts";
import { createPages } from "./support/reader.ts";

/** The two layers behind one face: a window of so many tokens, or none. */
function build(
  options: GlobalAttentionOptions,
  windowSize: number | undefined,
  parameters: ReadonlyMap<string, Tensor>,
): DecoderAttention {
  return windowSize === undefined
    ? new GlobalAttention(options, parameters)
    : new LocalAttention({ ...options, windowSize }, parameters);
}
function windowOf(isCausal: boolean, windowSize: number | undefined): Window | null {
  if (windowSize === undefined) return null;
  const reach = windowSize - 1;
  return isCausal ? { left: reach } : { left: reach, right: reach };
}
interface Case {
  readonly problem: Problem;
  readonly windowSize: number | undefined;
}
/** Problems whose window is the layer's: the same as options of GroupedQueryAttention. */
const cases = fc
  .record({
    problem: problems(),
    windowSize: fc.option(fc.integer({ min: 1, max: 4 }), { nil: undefined, freq: 2 }),
  })
  .map(({ problem, windowSize }): Case => {
    const { isCausal = !problem.options.contextSize } = problem.options;
    return {
      windowSize,
      problem: {
        ...problem,
        options: { ...problem.options, isCausal, window: windowOf(isCausal, windowSize) },
      },
    };
  });
function flat(gradients: GroupedQueryAttentionGradients): Map<string, Float64Array> {
  const { input, parameters, context, past } = gradients;
  const all = Object.entries({
    input,
    context,
    pastK: past?.k,
    pastV: past?.v,
    ...Object.fromEntries(parameters),
  });
  return new Map(all.flatMap(([key, t]) => (t === undefined ? [] : [[key, toFloat64(t)] as const])));
}
const HIDDEN = 12;
const BASE = {
  hiddenSize: HIDDEN,
  numHeads: 6,
  numKvHeads: 2,
  headDim: 4,
  rope: { pairing: "half" },
  qkNorm: { unitOffset: true },
  sinks: true,
} as const satisfies GlobalAttentionOptions;
const DTYPES = ["float64", "float32", "float16", "bfloat16"] as const;

describe.each(engines)("GlobalAttention and LocalAttention on %s", (name) => {
  const engine = getEngine(name);
  const parametersOf = (problem: Problem): Map<string, Tensor> => {
    const shapes = shapesOf(problem);
    return new Map(
      [...valuesOf(problem).parameters].map(([key, values]) => [
        key,
        upload(values, shapes.get(key)!, "float64", engine),
      ]),
    );
  };

  test("are GroupedQueryAttention with and without a window, bit for bit, backward included", () => {
    fc.assert(
      fc.property(cases, ({ problem, windowSize }) =>
        scope(() => {
          const values = valuesOf(problem);
          const parameters = parametersOf(problem);
          const { window: _own, ...options } = problem.options;
          const layer = build(options, windowSize, parameters);
          const expected = new GroupedQueryAttention(problem.options, parameters);
          expect(layer.config).toEqual(expected.config);
          expect([...layer.parameters.keys()]).toEqual([...expected.parameters.keys()]);
          const x = upload(values.x, [problem.B, problem.S, options.hiddenSize], "float64", engine);
          const call = callOptions(problem, values, engine);
          const [a, b] = [layer.vjp(x, call), expected.vjp(x, call)];
          expect(toFloat64(a.output)).toEqual(toFloat64(b.output));
          expect(toFloat64(layer.forward(x, call))).toEqual(toFloat64(expected.forward(x, call)));
          const dOutput = upload(createRng(problem.seed).normalArray(x.size), x.shape, "float64", engine);
          expect(flat(a.backward(dOutput))).toEqual(flat(b.backward(dOutput)));
        }),
      ),
      { numRuns: 40 },
    );
  });
  test("have its scores and its present, for any options", () => {
    fc.assert(
      fc.property(cases, ({ problem, windowSize }) =>
        scope(() => {
          const values = valuesOf(problem);
          const parameters = parametersOf(problem);
          const { window: _own, ...options } = problem.options;
          const layer = build(options, windowSize, parameters);
          const expected = new GroupedQueryAttention(problem.options, parameters);
          expect(layer.isMerged).toBe(expected.isMerged);
          const x = upload(values.x, [problem.B, problem.S, options.hiddenSize], "float64", engine);
          const call = callOptions(problem, values, engine);
          const scores = (it: DecoderAttention | GroupedQueryAttention): Float64Array =>
            toFloat64(it.scores(x, { ...call, stage: "masked" }));
          expect(scores(layer)).toEqual(scores(expected));
          const present = (it: DecoderAttention | GroupedQueryAttention): Float64Array[] => {
            const { output, present: all } = it.forwardWithPresent(x, call);
            return [output, ...Object.values(all)].map(toFloat64);
          };
          expect(present(layer)).toEqual(present(expected));
        }),
      ),
      { numRuns: 15 },
    );
  });
  test.each([
    ["GlobalAttention", undefined, true],
    ["LocalAttention", 3, true],
    ["LocalAttention, two-sided", 2, false],
  ] as const)("%s has the gradients of central differences", (_kind, windowSize, isCausal) => {
    const problem: Problem = {
      B: 2,
      S: 5,
      positions: 3,
      kvLengths: undefined,
      mask: undefined,
      seed: 17,
      options: {
        ...BASE,
        bias: { q: true, k: true, v: true, o: true },
        isCausal,
        window: windowOf(isCausal, windowSize),
      },
    };
    const values = valuesOf(problem);
    const dOut = createRng(18).normalArray(problem.B * problem.S * HIDDEN);
    const found = scope(() => {
      const { window: _own, ...options } = problem.options;
      const layer = build(options, windowSize, parametersOf(problem));
      const pass = layer.vjp(upload(values.x, [2, 5, HIDDEN], "float64", engine), { positions: 3 });
      return flat(pass.backward(upload(dOut, [2, 5, HIDDEN], "float64", engine)));
    });
    expect([...found.keys()]).toEqual(["input", ...shapesOf(problem).keys()]);
    for (const [key, gradient] of found) {
      const at = key === "input" ? values.x : values.parameters.get(key)!;
      const objective = (moved: Float64Array): number => {
        const parameters = new Map(values.parameters).set(key, moved);
        const changed = key === "input" ? { ...values, x: moved } : { ...values, parameters };
        return dotProduct(dOut, gqaOracle(problem, changed));
      };
      // The norm of a near-zero head bends the function, so the step is small; that costs 2 of 10 digits.
      checkDirectionalGradient(objective, at, gradient, { name: key, h: 2 ** -12, rel: 1e-7, abs: 1e-7 });
    }
  });

  const tokens = (n: number, seed = 5): Float64Array => createRng(seed).normalArray(n * HIDDEN);
  /** A layer with weights of unit scale, so that attention is far from uniform. */
  function make(windowSize: number | undefined, dtype: FloatDType, isCausal = true): DecoderAttention {
    const random = GlobalAttention.create({ ...BASE, engine, dtype: "float64", seed: 2 });
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
    return build({ ...BASE, isCausal }, windowSize, new Map<string, Tensor>(scaled));
  }
  const rows = (values: Float64Array, from: number, to: number, dtype: FloatDType): Tensor<FloatDType> =>
    upload(values.slice(from * HIDDEN, to * HIDDEN), [1, to - from, HIDDEN], dtype, engine);

  for (const windowSize of [undefined, 1, 4]) {
    test.each(DTYPES)(
      `a prefill of 7 and 3 decode steps equal a prefill of 10, window ${windowSize ?? "none"}, %s`,
      (dtype) => {
        for (const cuts of [
          [0, 7, 8, 9, 10],
          [0, 2, 3, 9, 10],
        ]) {
          scope(() => {
            const layer = make(windowSize, dtype);
            const pages = createPages(1, { numKvHeads: 2, headDim: 4, dtype, engine });
            const values = tokens(10);
            const expected = toFloat64(layer.forward(rows(values, 0, 10, dtype)));
            const found = cuts.slice(1).flatMap((to, i) => {
              const x = rows(values, cuts[i]!, to, dtype);
              return [...toFloat64(layer.forward(x, { cache: pages.step([to - cuts[i]!]) }))];
            });
            assertClose(found, expected, {
              rel: conformanceTolerance(dtype, "forward"),
              shape: [10, HIDDEN],
            });
          });
        }
      },
    );
  }
  test("an early token changes the last output, at decode, unless the window hides it", () => {
    const last = (windowSize: number | undefined, first: number): Float64Array =>
      scope(() => {
        const layer = make(windowSize, "float64");
        const pages = createPages(1, { numKvHeads: 2, headDim: 4, dtype: "float64", engine });
        const values = tokens(10);
        values[0] = first;
        layer.forward(rows(values, 0, 9, "float64"), { cache: pages.step([9]) });
        return toFloat64(layer.forward(rows(values, 9, 10, "float64"), { cache: pages.step([1]) }));
      });
    for (const windowSize of [undefined, 10]) {
      const [a, b] = [last(windowSize, 0.5), last(windowSize, 2)];
      expect(Math.max(...a.map((x, i) => Math.abs(x - b[i]!)))).toBeGreaterThan(1e-3);
    }
    expect(last(9, 0.5)).toEqual(last(9, 2));
  });
  test("stack: alternating layers share a cache by their layer index", () => {
    scope(() => {
      const parameters = make(undefined, "float64").parameters;
      const stack: DecoderAttention[] = [0, 1, 2].map((layerIndex) =>
        build({ ...BASE, layerIndex }, layerIndex === 1 ? undefined : 3, parameters),
      );
      const pages = createPages(1, { layers: 3, numKvHeads: 2, headDim: 4, dtype: "float64", engine });
      const values = tokens(8);
      let whole = rows(values, 0, 8, "float64");
      for (const layer of stack) whole = layer.forward(whole);
      const found = [
        [0, 5],
        [5, 6],
        [6, 8],
      ].flatMap(([from, to]) => {
        const cache = pages.step([to! - from!]);
        let x = rows(values, from!, to!, "float64");
        for (const layer of stack) x = layer.forward(x, { cache });
        return [...toFloat64(x)];
      });
      assertClose(found, toFloat64(whole), { rel: 1e-11, shape: [8, HIDDEN] });
    });
  });
  test("two passes of two layers before one backward do not disturb one another", () => {
    scope(() => {
      const layers = [make(undefined, "float64"), make(2, "float64")];
      const x = rows(tokens(5), 0, 5, "float64");
      const d = rows(tokens(5, 6), 0, 5, "float64");
      const alone = layers.map((layer) => flat(layer.vjp(x).backward(d)));
      const open = [...layers, ...layers].map((layer) => layer.vjp(x));
      open.forEach((pass, i) => expect(flat(pass.backward(d))).toEqual(alone[i % 2]!));
      expect(alone[0]).not.toEqual(alone[1]!);
    });
  });
  test("are created as GroupedQueryAttention is, outlive the scope that returns them, and leave nothing", () => {
    const before = memoryUsage().storages;
    const on = { engine, seed: 3 };
    {
      const [global, local, plain] = scope(() => [
        GlobalAttention.create({ ...BASE, ...on }),
        LocalAttention.create({ ...BASE, ...on, windowSize: 4, isCausal: false }),
        GroupedQueryAttention.create({ ...BASE, ...on }),
      ]) as [GlobalAttention, LocalAttention, GroupedQueryAttention];
      using x = zeros([1, 3, HIDDEN], { engine });
      for (const layer of [global, local]) {
        expect(layer.isMerged).toBe(true);
        for (const [key, t] of plain.parameters)
          expect(toFloat64(layer.parameters.get(key)!)).toEqual(toFloat64(t));
        const y = layer.forward(x);
        expect(y.shape).toEqual([1, 3, HIDDEN]);
        y[Symbol.dispose]();
        layer[Symbol.dispose]();
        layer[Symbol.dispose]();
        expect(() => layer.forward(x)).toThrow("disposed");
      }
      plain[Symbol.dispose]();
    }
    expect(memoryUsage().storages).toBe(before);
  });
  test("keys and values of a context serve as the past of calls that share it", () => {
    scope(() => {
      const sizes = { ...BASE, contextSize: 5, rope: null } as const;
      const x = upload(createRng(1).normalArray(2 * HIDDEN), [1, 2, HIDDEN], "float64", engine);
      const context = upload(createRng(2).normalArray(4 * 5), [1, 4, 5], "float64", engine);
      const layers = [
        GlobalAttention.create({ ...sizes, engine, dtype: "float64" }),
        LocalAttention.create({ ...sizes, windowSize: 2, engine, dtype: "float64" }),
      ];
      const [whole, windowed] = layers.map((layer) => {
        const past = layer.contextKeysValues(context);
        expect(past.k.shape).toEqual([1, 4, 2, 4]);
        const expected = toFloat64(layer.forward(x, { context }));
        expect(toFloat64(layer.forward(x, { past }))).toEqual(expected);
        return expected;
      });
      expect(whole).not.toEqual(windowed!);
      expect(() => make(2, "float64").contextKeysValues(context)).toThrow("needs a layer with contextSize");
    });
  });
  test("rescale positions, and say so in attributes that build the same function", () => {
    scope(() => {
      for (const windowSize of [undefined, 4]) {
        const layer = make(windowSize, "float64");
        const x = rows(tokens(6), 0, 6, "float64");
        const before = toFloat64(layer.forward(x));
        layer.scaleRope(4);
        const after = toFloat64(layer.forward(x));
        expect(after).not.toEqual(before);
        const { operation, ...attributes } = layer.attributes();
        const again = buildLayer(operation, attributes, layer.parameters) as DecoderAttention;
        expect(toFloat64(again.forward(x))).toEqual(after);
        layer.scaleRope(1);
        expect(toFloat64(layer.forward(x))).toEqual(before);
      }
    });
  });
  test("bad options, parameters and inputs are typed errors, and leave nothing", () => {
    const before = memoryUsage().storages;
    for (const kind of [GlobalAttention, LocalAttention]) {
      const make = (change: object): (() => unknown) => {
        return () => kind.create({ ...BASE, windowSize: 3, engine, ...change });
      };
      expect(make({ numKvHeads: 4 })).toThrow(ShapeError);
      expect(make({ hiddenSize: 0 })).toThrow("hiddenSize");
      expect(make({ seed: -1 })).toThrow(ArgumentError);
      expect(make({ rope: { rotaryDim: 6 } })).toThrow("rope.rotaryDim");
      scope(() => {
        const layer = kind.create({ ...BASE, windowSize: 3, engine });
        const parameters = new Map(layer.parameters);
        parameters.delete("k_proj.weight");
        expect(() => new kind({ ...BASE, windowSize: 3 }, parameters)).toThrow('"k_proj.weight"');
        expect(() => layer.forward(zeros([1, 2, 5], { engine }))).toThrow(ShapeError);
        expect(() => layer.vjp(zeros([1, 2, HIDDEN], { engine, dtype: "float64" }))).toThrow(DTypeError);
      });
    }
    expect(memoryUsage().storages).toBe(before);
  });
});
