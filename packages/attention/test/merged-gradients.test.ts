/** One weight for queries, keys and values, and one for each. */
import "@heed/engine-cpu";
import { concat, getEngine, scope, type Tensor, toFloat64 } from "@heed/tensor";
import { assertClose, createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { engines } from "./engines.ts";
import { callOptions, layerOf, type Problem, problems, upload, valuesOf } from "./support/problem.ts";

/** Problems over x's own tokens, whose biases are all there or all not, so that they can be merged. */
const separate = problems().map((problem): Problem => {
  const { bias, tiedValue } = problem.options;
  return {
    ...problem,
    context: undefined,
    kvLengths: problem.kvLengths?.map((n) => Math.min(n, problem.S)),
    options: {
      ...problem.options,
      contextSize: undefined,
      rotateContext: false,
      mergedQkv: false,
      bias: { q: bias.q, k: bias.q, v: bias.q && tiedValue !== true, o: bias.o },
    },
  };
});

describe.each(engines)("merged and separate weights on %s", (name) => {
  const engine = getEngine(name);

  test("give the same outputs and gradients, for any options, past included", () => {
    fc.assert(
      fc.property(separate, (problem) =>
        scope(() => {
          const values = valuesOf(problem);
          const { hiddenSize, tiedValue } = problem.options;
          const names = ["q_proj", "k_proj", ...(tiedValue ? [] : ["v_proj"])];
          const parts = ["weight", "bias"].filter((part) => values.parameters.has(`q_proj.${part}`));
          const stack = (of: (key: string) => Float64Array, part: string): Float64Array =>
            Float64Array.from(names.flatMap((key) => [...of(`${key}.${part}`)]));
          const others = [...values.parameters].filter(
            ([key]) => !names.some((start) => key.startsWith(start)),
          );
          const merged = new Map([
            ...parts.map(
              (part) => [`qkv_proj.${part}`, stack((key) => values.parameters.get(key)!, part)] as const,
            ),
            ...others,
          ]);
          const one: Problem = { ...problem, options: { ...problem.options, mergedQkv: true } };
          const shape = [problem.B, problem.S, hiddenSize];
          const dOut = upload(
            createRng(problem.seed + 1).normalArray(values.x.length),
            shape,
            "float64",
            engine,
          );
          const call = callOptions(problem, values, engine);
          const run = (of: Problem, parameters: ReadonlyMap<string, Float64Array>) => {
            const layer = layerOf(of, parameters, "float64", engine);
            const pass = layer.vjp(upload(values.x, shape, "float64", engine), call);
            return { pass, found: pass.backward(dOut) };
          };
          const [a, b] = [run(problem, values.parameters), run(one, merged)];
          const same = (x: Tensor, y: Tensor, what: string): unknown =>
            assertClose(toFloat64(y), toFloat64(x), { rel: 1e-12, abs: 1e-12, name: what });
          same(a.pass.output, b.pass.output, "output");
          same(a.found.input, b.found.input, "input");
          expect(b.found.past === undefined).toBe(problem.past === undefined);
          if (a.found.past !== undefined)
            for (const which of ["k", "v"] as const) same(a.found.past[which], b.found.past![which], which);
          for (const part of parts) {
            const expected = concat(names.map((key) => a.found.parameters.get(`${key}.${part}`)!));
            same(expected, b.found.parameters.get(`qkv_proj.${part}`)!, part);
          }
          for (const [key] of others) same(a.found.parameters.get(key)!, b.found.parameters.get(key)!, key);
          expect([...b.found.parameters.keys()].toSorted()).toEqual([...merged.keys()].toSorted());
        }),
      ),
      { numRuns: 40 },
    );
  });
});
