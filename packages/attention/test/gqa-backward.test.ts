import "@heed/engine-cpu";
import { getEngine, scope } from "@heed/tensor";
import { assertClose, createRng, dotProduct } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { GroupedQueryAttention } from "../src/index.ts";
import { engines } from "./engines.ts";
import {
  checkGradients,
  flatGradients as flat,
  type Named,
  namedValues,
  valuesFrom,
} from "./support/gradients.ts";
import { gqaOracle } from "./support/oracle.ts";
import {
  callOptions,
  layerOf,
  type Problem,
  problems,
  shapesOf,
  upload,
  type Values,
  valuesOf,
} from "./support/problem.ts";

const full = (problem: Partial<Problem["options"]>, rest: Partial<Problem> = {}): Problem => ({
  B: 2,
  S: 5,
  positions: 3,
  kvLengths: undefined,
  mask: undefined,
  seed: 11,
  ...rest,
  options: {
    hiddenSize: 6,
    numHeads: 6,
    numKvHeads: 2,
    headDim: 4,
    bias: { q: true, k: true, v: true, o: true },
    rope: { pairing: "half", rotaryDim: 2 },
    qkNorm: { eps: 1e-6, unitOffset: true },
    sinks: true,
    isCausal: true,
    window: { left: 2 },
    softcap: 5,
    ...problem,
  },
});
/** The gradients of sum(dOut * layer(x)) as float64, by name; the input's under "input". */
function gradients(
  problem: Problem,
  values: Values,
  dOut: Float64Array,
  name: string,
): Map<string, Float64Array> {
  return scope(() => {
    const engine = getEngine(name);
    const shape = [problem.B, problem.S, problem.options.hiddenSize];
    const layer = layerOf(problem, values.parameters, "float64", engine);
    const pass = layer.vjp(upload(values.x, shape, "float64", engine), {
      ...callOptions(problem, values, engine),
      attnMaskGradient: problem.mask === "float",
    });
    return flat(pass.backward(upload(dOut, shape, "float64", engine)));
  });
}
/** Names of everything that a problem has a gradient of. */
function namesOf(problem: Problem): string[] {
  const { past, context, mask } = problem;
  return [
    "input",
    ...shapesOf(problem).keys(),
    ...(past ? ["past.k", "past.v"] : []),
    ...(context ? ["context"] : []),
    ...(mask === "float" ? ["attnMask"] : []),
  ];
}
/** The oracle's sum(dOut * output) as a function of the values. */
function objective(problem: Problem, values: Values, dOut: Float64Array): (moved: Named) => number {
  return (moved) => dotProduct(dOut, gqaOracle(problem, valuesFrom(moved, values)));
}
/**
 * The problem with an eps that a head's squares do not vanish beside: near zero the norm bends within a difference's step, and no
 * difference is near its derivative. The kernels' own suites hold every eps against the oracle.
 */
function withTameNorm(problem: Problem): Problem {
  const { options } = problem;
  if (!options.qkNorm) return problem;
  return { ...problem, options: { ...options, qkNorm: { ...options.qkNorm, eps: 0.5 } } };
}
function upstream(problem: Problem): Float64Array {
  return createRng(problem.seed + 1).normalArray(problem.B * problem.S * problem.options.hiddenSize);
}

describe.each(engines)("gradients of GroupedQueryAttention on %s", (name) => {
  const engine = getEngine(name);

  test("of the input and every parameter are those of central differences, for any options", () => {
    fc.assert(
      fc.property(problems().map(withTameNorm), (problem) => {
        const values = valuesOf(problem);
        const dOut = upstream(problem);
        const found = gradients(problem, values, dOut, name);
        expect([...found.keys()]).toEqual(namesOf(problem));
        checkGradients(objective(problem, values, dOut), namedValues(values), found, "direction");
      }),
      { numRuns: 60 },
    );
  });
  for (const [what, problem] of [
    ["grouped heads, half pairs, window, softcap, sinks, norm", full({})],
    [
      "grouped heads, interleaved pairs, lengths, mask",
      full({ rope: { pairing: "interleaved" }, window: null }, { kvLengths: [5, 2], mask: "float" }),
    ],
    [
      "multi-query heads, no causality, two-sided window",
      full({ numKvHeads: 1, isCausal: false, window: { left: 1, right: 1 } }),
    ],
    [
      "multi-head, positions per token, plain weights",
      full(
        { numKvHeads: 6, qkNorm: null, bias: { q: false, k: false, v: false, o: false } },
        { positions: [4, 0, 9, 1, 2, 7, 7, 3, 5, 0] },
      ),
    ],
    ["biases of some projections only", full({ bias: { q: true, k: false, v: true, o: false } })],
    [
      "merged weight, norm of the projection, past of different lengths, documents",
      full(
        { mergedQkv: true, qkNorm: { over: "projection" }, window: null },
        {
          past: { P: 4, lengths: [4, 2] },
          documents: { x: [1, 1, 2, 2, 2, 0, 0, 0, 1, 1], past: [0, 1, 1, 1, 0, 0, 1, 1], context: [] },
          mask: "float",
        },
      ),
    ],
    [
      "tied value, past",
      full({ tiedValue: true, bias: { q: true, k: true, v: false, o: true } }, { past: { P: 3 } }),
    ],
    [
      "cross attention over a past and a context of different lengths, rotated",
      full(
        { contextSize: 5, rotateContext: true, isCausal: false, window: null },
        { past: { P: 2, lengths: [1, 2] }, context: { rows: 4, position: 7 }, kvLengths: [4, 3] },
      ),
    ],
  ] as const) {
    test(`are right in every coordinate: ${what}`, () => {
      const values = valuesOf(problem);
      const dOut = upstream(problem);
      const found = gradients(problem, values, dOut, name);
      checkGradients(objective(problem, values, dOut), namedValues(values), found, "coordinates");
    });
  }
  test("have the names, shapes and dtypes of the parameters", () => {
    for (const dtype of ["float64", "float32", "float16", "bfloat16"] as const) {
      scope(() => {
        const problem = full({});
        const layer = layerOf(problem, valuesOf(problem).parameters, dtype, engine);
        const x = upload(valuesOf(problem).x, [2, 5, 6], dtype, engine);
        const { input, parameters } = layer.vjp(x).backward(x);
        const describeAll = (map: GroupedQueryAttention["parameters"]): string[] =>
          [...map].map(([key, t]) => `${key} ${t}`);
        expect(describeAll(parameters)).toEqual(describeAll(layer.parameters));
        expect(String(input)).toBe(String(x));
      });
    }
  });
  test("in float32 are those of float64 to 1e-4", () => {
    const problem = full({});
    const values = valuesOf(problem);
    const expected = gradients(problem, values, upstream(problem), name);
    scope(() => {
      const layer = layerOf(problem, values.parameters, "float32", engine);
      const pass = layer.vjp(upload(values.x, [2, 5, 6], "float32", engine), { positions: 3 });
      const found = flat(pass.backward(upload(upstream(problem), [2, 5, 6], "float32", engine)));
      for (const [key, gradient] of found)
        assertClose(gradient, expected.get(key)!, { rel: 1e-4, name: key });
    });
  });
  test("two forward passes before one backward, and two interleaved, do not disturb one another", () => {
    scope(() => {
      const problem = full({});
      const values = valuesOf(problem);
      const layer = layerOf(problem, values.parameters, "float64", engine);
      const x = (seed: number): Float64Array => createRng(seed).normalArray(60);
      const [d1, d2] = [
        upload(x(3), [2, 5, 6], "float64", engine),
        upload(x(4), [2, 5, 6], "float64", engine),
      ];
      const alone = (seed: number, positions: number, d: typeof d1): Map<string, Float64Array> =>
        scope(() =>
          flat(layer.vjp(upload(x(seed), [2, 5, 6], "float64", engine), { positions }).backward(d)),
        );
      const [expected1, expected2] = [alone(1, 0, d1), alone(2, 300, d2)];
      const first = layer.vjp(upload(x(1), [2, 5, 6], "float64", engine));
      const second = layer.vjp(upload(x(2), [2, 5, 6], "float64", engine), { positions: 300 });
      // The tables of angles grow in between.
      layer.forward(upload(x(5), [2, 5, 6], "float64", engine), { positions: 600 });
      expect(flat(first.backward(d1))).toEqual(expected1);
      expect(flat(second.backward(d2))).toEqual(expected2);
      expect(flat(first.backward(d1))).toEqual(expected1); // once more
    });
  });
  test("survive the input's own handle, and end with their vjp or layer", () => {
    scope(() => {
      const problem = full({});
      const layer = layerOf(problem, valuesOf(problem).parameters, "float64", engine);
      const x = upload(valuesOf(problem).x, [2, 5, 6], "float64", engine);
      const positions = callOptions(
        { ...problem, positions: [...Array(10).keys()] },
        valuesOf(problem),
        engine,
      ).positions;
      const pass = layer.vjp(x, { positions });
      x[Symbol.dispose]();
      if (typeof positions === "object") positions[Symbol.dispose]();
      expect(pass.backward(pass.output).parameters.size).toBe(11);
      expect(() => pass.backward(upload(new Float64Array(12), [1, 2, 6], "float64", engine))).toThrow(
        "[linear backward]",
      );
      expect(() =>
        pass.backward(upload(new Float64Array(60), [2, 5, 6], "float32", engine) as never),
      ).toThrow("one dtype");
      const other = layer.vjp(pass.output);
      layer[Symbol.dispose]();
      expect(() => other.backward(pass.output)).toThrow("disposed");
      pass[Symbol.dispose]();
      pass[Symbol.dispose]();
      expect(pass.output.disposed).toBe(false);
      expect(() => pass.backward(pass.output)).toThrow("disposed");
    });
  });
});
