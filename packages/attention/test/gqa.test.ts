import { DTypeError, getEngine, memoryUsage, scope, show, tensor, toFloat64, trackLeaks } from "@heed/tensor";
import "@heed/engine-cpu";
import { assertClose } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { GroupedQueryAttention, RotaryEmbedding } from "../src/index.ts";
import { engines } from "./engines.ts";
import { gqaOracle } from "./support/oracle.ts";
import { callOptions, layerOf, type Problem, problems, upload, valuesOf } from "./support/problem.ts";

const SMALL = { hiddenSize: 8, numHeads: 4, numKvHeads: 2, headDim: 4 } as const;

function output(problem: Problem, name: string, dtype: "float64" | "float32"): Float64Array {
  return scope(() => {
    const engine = getEngine(name);
    const values = valuesOf(problem);
    const layer = layerOf(problem, values.parameters, dtype, engine);
    const x = upload(values.x, [problem.B, problem.S, problem.options.hiddenSize], dtype, engine);
    return toFloat64(layer.forward(x, callOptions(problem, values, engine, dtype)));
  });
}
describe.each(engines)("GroupedQueryAttention on %s", (name) => {
  const engine = getEngine(name);

  test("is project, norm, rotate, attend, project out, with every option", () => {
    fc.assert(
      fc.property(problems(), (problem) => {
        const expected = gqaOracle(problem, valuesOf(problem));
        assertClose(output(problem, name, "float64"), expected, { rel: 1e-12, abs: 1e-12, name: "float64" });
        assertClose(output(problem, name, "float32"), expected, { rel: 1e-5, abs: 1e-5, name: "float32" });
      }),
      { numRuns: 60 },
    );
  });
  test("created weights are slices of one tensor, and one product gives what three give", () => {
    scope(() => {
      const merged = GroupedQueryAttention.create({
        ...SMALL,
        bias: true,
        rope: {},
        engine,
        dtype: "float64",
        seed: 3,
      });
      const copies = new Map(
        [...merged.parameters].map(([key, t]) => [
          key,
          tensor(toFloat64(t), t.shape, { engine, dtype: "float64" }),
        ]),
      );
      copies.forEach(
        (t, key) => key.endsWith("bias") && t.data.forEach((_, i, data) => (data[i] = Math.sin(i))),
      );
      // The layer shares this memory.
      merged.parameters.forEach((t, key) => (t.data as Float64Array).set(copies.get(key)!.data));
      const split = new GroupedQueryAttention(merged.attributes(), copies);
      expect([merged.isMerged, split.isMerged]).toEqual([true, false]);
      const x = upload(
        Float64Array.from({ length: 2 * 5 * 8 }, (_, i) => Math.cos(i)),
        [2, 5, 8],
        "float64",
        engine,
      );
      assertClose(toFloat64(merged.forward(x)), toFloat64(split.forward(x)), { rel: 1e-14 });
      const d = upload(
        Float64Array.from({ length: 2 * 5 * 8 }, (_, i) => Math.sin(3 * i)),
        [2, 5, 8],
        "float64",
        engine,
      );
      const [a, b] = [merged.vjp(x).backward(d), split.vjp(x).backward(d)];
      assertClose(toFloat64(a.input), toFloat64(b.input), { rel: 1e-14 });
      for (const [key, t] of a.parameters)
        assertClose(toFloat64(t), toFloat64(b.parameters.get(key)!), { rel: 1e-14, name: key });
    });
  });
  test("one seed gives one layer, another seed another", () => {
    scope(() => {
      const weights = (seed: number, contextSize?: number): number[] => {
        const layer = GroupedQueryAttention.create({ ...SMALL, sinks: true, contextSize, engine, seed });
        return [...layer.parameters.values()].flatMap((t) => [...toFloat64(t)]);
      };
      expect(weights(7)).toEqual(weights(7));
      expect(weights(7)).not.toEqual(weights(8));
      const spread = Math.sqrt(weights(7).reduce((sum, w) => sum + w * w, 0) / weights(7).length);
      expect(Math.abs(spread - 0.02)).toBeLessThan(0.003);
      for (const all of [weights(7), weights(7, 6)]) expect(new Set(all).size).toBe(all.length); // no two parameters share a stream
    });
  });
  test("attributes are JSON, and a layer built from them and the parameters is the same function", () => {
    fc.assert(
      fc.property(problems(), (problem) => {
        scope(() => {
          const values = valuesOf(problem);
          const layer = layerOf(problem, values.parameters, "float64", engine);
          const attributes = layer.attributes();
          const read = JSON.parse(JSON.stringify(attributes)) as typeof attributes;
          expect(read).toEqual(attributes);
          expect(read.operation).toBe("GroupedQueryAttention");
          const again = GroupedQueryAttention.fromParameters(read, layer.parameters);
          expect(again.attributes()).toEqual(attributes);
          const x = upload(values.x, [problem.B, problem.S, problem.options.hiddenSize], "float64", engine);
          const call = callOptions(problem, values, engine);
          expect(toFloat64(again.forward(x, call))).toEqual(toFloat64(layer.forward(x, call)));
        });
      }),
      { numRuns: 30 },
    );
  });
  test("a float32 input takes 16-bit weights, which act as the values they hold", () => {
    for (const dtype of ["bfloat16", "float16"] as const) {
      scope(() => {
        const layer = GroupedQueryAttention.create({
          ...SMALL,
          bias: true,
          qkNorm: {},
          rope: {},
          sinks: true,
          engine,
          dtype,
          seed: 1,
        });
        const wide = new Map(
          [...layer.parameters].map(([key, t]) => [key, upload(toFloat64(t), t.shape, "float32", engine)]),
        );
        const x = upload(
          Float64Array.from({ length: 32 }, (_, i) => Math.cos(i)),
          [1, 4, 8],
          "float32",
          engine,
        );
        const expected = toFloat64(GroupedQueryAttention.fromParameters(layer.attributes(), wide).forward(x));
        assertClose(toFloat64(layer.forward(x)), expected, { rel: 1e-6 });
        expect(() => layer.vjp(x)).toThrow(DTypeError);
      });
    }
  });
  test("a token sees no later token when causal, and sees it when not", () => {
    scope(() => {
      const run = (isCausal: boolean, last: number): Float64Array => {
        const layer = GroupedQueryAttention.create({ ...SMALL, isCausal, engine, dtype: "float64" });
        const values = Float64Array.from({ length: 24 }, (_, i) => (i < 16 ? Math.cos(i) : last));
        return toFloat64(layer.forward(upload(values, [1, 3, 8], "float64", engine))).slice(0, 16);
      };
      expect(run(true, 1)).toEqual(run(true, 2));
      expect(run(false, 1)).not.toEqual(run(false, 2));
    });
  });
  test("its scores are those that attend: probabilities by default, each row summing to 1 without sinks", () => {
    scope(() => {
      const layer = GroupedQueryAttention.create({ ...SMALL, rope: {}, engine, dtype: "float64", seed: 2 });
      const x = upload(
        Float64Array.from({ length: 24 }, (_, i) => 9 * Math.cos(i)),
        [1, 3, 8],
        "float64",
        engine,
      );
      const probabilities = layer.scores(x);
      expect(probabilities.shape).toEqual([1, 4, 3, 3]);
      const p = toFloat64(probabilities);
      for (let row = 0; row < 12; row++) {
        const [first, second, third] = [p[3 * row]!, p[3 * row + 1]!, p[3 * row + 2]!];
        expect(first + second + third).toBeCloseTo(1, 14);
        if (row % 3 < 2) expect(third).toBe(0); // a later token
      }
      const masked = toFloat64(layer.scores(x, { stage: "masked" }));
      expect([...masked].map((s) => s === -Infinity)).toEqual([...p].map((weight) => weight === 0));
    });
  });
  test("an embedding that is passed in is shared and outlives its layers", () => {
    scope(() => {
      const rope = new RotaryEmbedding({ rotaryDim: 4 });
      const x = upload(new Float64Array(16).fill(1), [1, 2, 8], "float64", engine);
      const first = GroupedQueryAttention.create({ ...SMALL, rope, engine, dtype: "float64" });
      const second = GroupedQueryAttention.create({ ...SMALL, rope, engine, dtype: "float64" });
      const expected = toFloat64(first.forward(x));
      first[Symbol.dispose]();
      expect(toFloat64(second.forward(x))).toEqual(expected);
    });
  });
  test("empty batches and sequences give empty outputs and zero gradients", () => {
    for (const shape of [
      [0, 3, 8],
      [2, 0, 8],
    ]) {
      scope(() => {
        const layer = GroupedQueryAttention.create({
          ...SMALL,
          bias: true,
          qkNorm: {},
          rope: {},
          sinks: true,
          engine,
        });
        const x = upload(new Float64Array(0), shape, "float32", engine);
        expect(layer.forward(x).shape).toEqual(shape);
        const gradients = layer.vjp(x).backward(x);
        expect(gradients.input.shape).toEqual(shape);
        for (const [key, t] of gradients.parameters)
          expect([key, Math.max(...toFloat64(t).map(Math.abs))]).toEqual([key, 0]);
      });
    }
  });
  test("nothing is left when outputs, vjps, gradients and the layer are disposed", () => {
    const before = memoryUsage();
    using leaks = trackLeaks();
    {
      using layer = GroupedQueryAttention.create({
        ...SMALL,
        bias: true,
        qkNorm: {},
        rope: {},
        sinks: true,
        engine,
      });
      using x = upload(new Float64Array(2 * 3 * 8).fill(0.5), [2, 3, 8], "float32", engine);
      using _output = layer.forward(x);
      using pass = layer.vjp(x, { positions: 300 });
      using _also = pass.output;
      using _gradients = pass.backward(pass.output);
    }
    expect(leaks.report()).toEqual([]);
    expect(memoryUsage().storages).toBe(before.storages);
    expect(memoryUsage().bytes).toBe(before.bytes);
  });
  test("a failed call leaves nothing behind", () => {
    using layer = GroupedQueryAttention.create({ ...SMALL, rope: { maxPositions: 4 }, engine });
    using x = upload(new Float64Array(3 * 8), [1, 3, 8], "float32", engine);
    const before = memoryUsage().storages;
    expect(() => layer.forward(x, { positions: 2 })).toThrow("maxPositions");
    expect(() => layer.vjp(x, { positions: 2 })).toThrow("maxPositions");
    expect(memoryUsage().storages).toBe(before);
  });
  test("a layer made in a scope is disposed with it unless it is returned", () => {
    using kept = scope(() => GroupedQueryAttention.create({ ...SMALL, rope: {}, engine }));
    let lost: GroupedQueryAttention | undefined;
    scope(() => void (lost = GroupedQueryAttention.create({ ...SMALL, engine })));
    using x = upload(new Float64Array(3 * 8), [1, 3, 8], "float32", engine);
    for (let i = 0; i < 2; i++) {
      using y = scope(() => kept.forward(x)); // the tables of the first call must outlive its scope
      expect(show(y)).toBe("float32[1, 3, 8]");
    }
    expect(() => lost!.forward(x)).toThrow("disposed");
  });
});
