import "@heed/engine-cpu";
import { getEngine, scope, type Tensor, toFloat64 } from "@heed/tensor";
import { assertClose, checkGradient, createRng, dotProduct } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { LayerVjp } from "../src/index.ts";
import { engines } from "./engines.ts";
import {
  checkGradients,
  flatGradients as flat,
  type Named,
  namedValues,
  valuesFrom,
} from "./support/gradients.ts";
import {
  latentCall,
  latentLayer,
  latentOracle,
  type LatentProblem,
  latentProblems,
  latentShapes,
  type LatentValues,
  latentValues,
} from "./support/latent.ts";
import { upload } from "./support/problem.ts";

const full = (
  change: Partial<LatentProblem["options"]>,
  rest: Partial<LatentProblem> = {},
): LatentProblem => ({
  B: 2,
  S: 4,
  positions: 3,
  kvLengths: undefined,
  mask: undefined,
  seed: 7,
  ...rest,
  options: {
    hiddenSize: 6,
    numHeads: 3,
    qLoraRank: 5,
    kvLoraRank: 4,
    qkNopeHeadDim: 3,
    qkRopeHeadDim: 4,
    vHeadDim: 5,
    bias: true,
    rope: { base: 100, pairing: "interleaved" },
    ...change,
  },
});
/** The gradients of sum(dOut * layer(x)) as float64, by name; the input's under "input". */
function gradients(
  problem: LatentProblem,
  values: LatentValues,
  dOut: Float64Array,
  name: string,
): Map<string, Float64Array> {
  return scope(() => {
    const engine = getEngine(name);
    const shape = [problem.B, problem.S, problem.options.hiddenSize];
    const layer = latentLayer(problem, values.parameters, "float64", engine);
    const pass = layer.vjp(upload(values.x, shape, "float64", engine), {
      ...latentCall(problem, values, engine),
      attnMaskGradient: problem.mask === "float",
    });
    return flat(pass.backward(upload(dOut, shape, "float64", engine)));
  });
}
/** Names of everything that a problem has a gradient of. */
function namesOf({ options, past, mask }: LatentProblem): string[] {
  return [
    "input",
    ...latentShapes(options).keys(),
    ...(past ? ["past.latent", "past.rotaryKey"] : []),
    ...(mask === "float" ? ["attnMask"] : []),
  ];
}
/** The oracle's sum(dOut * output) as a function of the values. */
function objective(
  problem: LatentProblem,
  values: LatentValues,
  dOut: Float64Array,
): (moved: Named) => number {
  return (moved) => dotProduct(dOut, latentOracle(problem, valuesFrom(moved, values)));
}
function upstream({ B, S, seed, options }: LatentProblem): Float64Array {
  return createRng(seed + 1).normalArray(B * S * options.hiddenSize);
}

function withTameNorm(problem: LatentProblem): LatentProblem {
  return { ...problem, options: { ...problem.options, normEps: 0.5 } };
}

describe.each(engines)("gradients of MultiHeadLatentAttention on %s", (name) => {
  const engine = getEngine(name);

  test("of the input and every parameter are those of central differences, for any options", () => {
    fc.assert(
      // With an eps that a latent's squares do not vanish beside: near zero the norm bends within a difference's step.
      fc.property(latentProblems().map(withTameNorm), (problem) => {
        const values = latentValues(problem);
        const dOut = upstream(problem);
        const found = gradients(problem, values, dOut, name);
        expect([...found.keys()]).toEqual(namesOf(problem));
        // The norm of a near-zero row bends the function, so the step is small; that costs 2 of 10 digits.
        const step = { h: 2 ** -14, tolerance: 1e-6 };
        checkGradients(objective(problem, values, dOut), namedValues(values), found, "direction", step);
      }),
      { numRuns: 60 },
    );
  });
  for (const [what, problem] of [
    ["low-rank queries, interleaved pairs, biases", full({})],
    ["full queries, half pairs", full({ qLoraRank: null, rope: { base: 100, pairing: "half" } })],
    ["no rotation, no causality, no biases", full({ rope: null, isCausal: false, bias: false })],
    [
      "positions per token, lengths, mask",
      full({ scale: 0.6 }, { positions: [4, 0, 9, 1, 2, 7, 7, 3], kvLengths: [4, 2], mask: "float" }),
    ],
    ["a past", full({}, { past: { P: 3 } })],
    [
      "a past of different lengths, documents, mask",
      full(
        { qLoraRank: null },
        {
          past: { P: 4, lengths: [4, 2] },
          kvLengths: [3, 4],
          documents: { x: [1, 1, 2, 2, 0, 0, 1, 1], past: [0, 1, 1, 1, 0, 0, 1, 1] },
          mask: "float",
        },
      ),
    ],
  ] as const) {
    test(`are right in every coordinate: ${what}`, () => {
      const values = latentValues(problem);
      const dOut = upstream(problem);
      const found = gradients(problem, values, dOut, name);
      checkGradients(objective(problem, values, dOut), namedValues(values), found, "coordinates");
    });
  }
  test("have the names, shapes and dtypes of the parameters", () => {
    for (const dtype of ["float64", "float32", "float16", "bfloat16"] as const) {
      scope(() => {
        const problem = full({});
        const layer = latentLayer(problem, latentValues(problem).parameters, dtype, engine);
        const x = upload(latentValues(problem).x, [2, 4, 6], dtype, engine);
        const { input, parameters } = layer.vjp(x).backward(x);
        const describeAll = (map: ReadonlyMap<string, Tensor>): string[] =>
          [...map].map(([key, t]) => `${key} ${t}`);
        expect(describeAll(parameters)).toEqual(describeAll(layer.parameters));
        expect(String(input)).toBe(String(x));
      });
    }
  });
  test("in float32 are those of float64 to 1e-4", () => {
    const problem = full({});
    const values = latentValues(problem);
    const expected = gradients(problem, values, upstream(problem), name);
    scope(() => {
      const layer = latentLayer(problem, values.parameters, "float32", engine);
      const pass = layer.vjp(upload(values.x, [2, 4, 6], "float32", engine), { positions: 3 });
      const found = flat(pass.backward(upload(upstream(problem), [2, 4, 6], "float32", engine)));
      for (const [key, gradient] of found)
        assertClose(gradient, expected.get(key)!, { rel: 1e-4, name: key });
    });
  });
  test("dropout drops the same weights in the backward pass", () => {
    scope(() => {
      const problem = full({});
      const values = latentValues(problem);
      const layer = latentLayer(problem, values.parameters, "float64", engine);
      const dOut = upstream(problem);
      const run = (x: Float64Array, seed = 1): LayerVjp<"float64"> =>
        layer.vjp(upload(x, [2, 4, 6], "float64", engine), { dropout: { probability: 0.4, seed } });
      const pass = run(values.x);
      expect(toFloat64(run(values.x).output)).toEqual(toFloat64(pass.output));
      expect(toFloat64(run(values.x, 2).output)).not.toEqual(toFloat64(pass.output));
      const gradient = toFloat64(pass.backward(upload(dOut, [2, 4, 6], "float64", engine)).input);
      const f = (x: Float64Array): number => scope(() => dotProduct(dOut, toFloat64(run(x).output)));
      checkGradient(f, values.x, gradient, { h: 2 ** -12, rel: 1e-7, abs: 1e-7, samples: 24 });
    });
  });
  for (const qLoraRank of [5, null]) {
    test(`two forward passes before one backward, and two interleaved, do not disturb one another: q rank ${qLoraRank}`, () => {
      scope(() => {
        const problem = full({ qLoraRank });
        const layer = latentLayer(problem, latentValues(problem).parameters, "float64", engine);
        const x = (seed: number): Tensor<"float64"> =>
          upload(createRng(seed).normalArray(48), [2, 4, 6], "float64", engine);
        const [d1, d2] = [x(3), x(4)];
        const alone = (seed: number, positions: number, d: typeof d1): Map<string, Float64Array> =>
          scope(() => flat(layer.vjp(x(seed), { positions }).backward(d)));
        const [expected1, expected2] = [alone(1, 0, d1), alone(2, 300, d2)];
        const first = layer.vjp(x(1));
        const second = layer.vjp(x(2), { positions: 300 });
        layer.forward(x(5), { positions: 600 }); // the tables of angles grow in between
        expect(flat(first.backward(d1))).toEqual(expected1);
        expect(flat(second.backward(d2))).toEqual(expected2);
        expect(flat(first.backward(d1))).toEqual(expected1); // once more
      });
    });
  }
  test("survive the input's own handle, and end with their vjp or layer", () => {
    for (const qLoraRank of [5, null]) {
      scope(() => {
        const problem = full({ qLoraRank }, { positions: [...Array(8).keys()] });
        const values = latentValues(problem);
        const layer = latentLayer(problem, values.parameters, "float64", engine);
        const x = upload(values.x, [2, 4, 6], "float64", engine);
        const { positions } = latentCall(problem, values, engine);
        const pass = scope(() => layer.vjp(x, { positions }));
        x[Symbol.dispose]();
        if (typeof positions === "object") positions[Symbol.dispose]();
        expect(pass.backward(pass.output).parameters.size).toBe(layer.parameters.size);
        expect(() => pass.backward(upload(new Float64Array(12), [1, 2, 6], "float64", engine))).toThrow(
          "[linear backward]",
        );
        const other = layer.vjp(pass.output);
        layer[Symbol.dispose]();
        expect(() => other.backward(pass.output)).toThrow("disposed");
        pass[Symbol.dispose]();
        pass[Symbol.dispose]();
        expect(pass.output.disposed).toBe(false);
        expect(() => pass.backward(pass.output)).toThrow("disposed");
      });
    }
  });
});
