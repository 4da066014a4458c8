import "@heed/engine-cpu";
import {
  ArgumentError,
  concat,
  DTypeError,
  type FloatDType,
  getEngine,
  memoryUsage,
  scope,
  ShapeError,
  sum,
  tensor,
  type Tensor,
  toFloat64,
  trackLeaks,
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
import {
  GroupedQueryAttention,
  type GroupedQueryAttentionGradients,
  type GroupedQueryAttentionInputs,
  type GroupedQueryAttentionVjpOptions,
} from "../src/index.ts";
import { engines } from "./engines.ts";
import { upload } from "./support/problem.ts";

const SMALL = { hiddenSize: 8, numHeads: 4, numKvHeads: 2, headDim: 4 } as const;
const CROSS = { ...SMALL, contextSize: 6 } as const;

describe.each(engines)("GroupedQueryAttention and its past on %s", (name) => {
  const engine = getEngine(name);
  const on = { engine, dtype: "float64" } as const;
  const random = (seed: number, ...shape: number[]): Tensor<"float64"> =>
    upload(createRng(seed).normalArray(shape.reduce((a, b) => a * b, 1)), shape, "float64", engine);
  const int32 = (values: readonly number[], ...shape: number[]): Tensor<"int32"> =>
    tensor(Int32Array.from(values), shape, { dtype: "int32", engine });
  const flat = (g: GroupedQueryAttentionGradients): Map<string, Float64Array> =>
    new Map([["input", g.input] as const, ...g.parameters].map(([key, t]) => [key, toFloat64(t)]));

  test("what stands in rows of the past that are not in use changes no bit", () => {
    scope(() => {
      const layer = GroupedQueryAttention.create({ ...SMALL, ...on, rope: {}, qkNorm: {} });
      const x = random(1, 2, 3, 8);
      const run = (junk: number): Float64Array[] => {
        const [k, v] = [random(2, 2, 4, 2, 4), random(3, 2, 4, 2, 4)];
        for (const t of [k, v]) t.data.fill(junk, 2 * 8, 4 * 8); // rows 2 and 3 of sequence 0
        const past = { k, v, lengths: int32([2, 4], 2) };
        const pass = layer.vjp(x, { past });
        const gradients = pass.backward(x);
        expect([...toFloat64(gradients.past!.k).subarray(2 * 8, 4 * 8)]).toEqual(new Array(16).fill(0));
        return [toFloat64(pass.output), ...flat(gradients).values(), toFloat64(gradients.past!.v)];
      };
      expect(run(NaN)).toEqual(run(1));
    });
  });
  test("gradients of past and context have their shapes and dtypes, and in 16 bits are those of float64", () => {
    const run = (dtype: FloatDType): Float64Array[] =>
      scope(() => {
        const layer = GroupedQueryAttention.create({ ...CROSS, engine, seed: 3 });
        // Values that 16 bits hold exactly.
        const own = (t: Tensor, factor: number): Tensor<FloatDType> =>
          upload(
            toFloat64(t).map((x) => Math.round(16 * factor * x) / 16),
            t.shape,
            dtype,
            engine,
          );
        const parameters = new Map([...layer.parameters].map(([key, t]) => [key, own(t, 30)]));
        const x = own(random(1, 2, 3, 8), 1);
        const context = own(random(2, 2, 4, 6), 1);
        const past = {
          k: own(random(3, 2, 3, 2, 4), 1),
          v: own(random(4, 2, 3, 2, 4), 1),
          lengths: int32([3, 1], 2),
        };
        const pass = GroupedQueryAttention.fromParameters(CROSS, parameters).vjp(x, { past, context });
        const found = pass.backward(x);
        const gradients = [found.context!, found.past!.k, found.past!.v];
        expect(gradients.map(String)).toEqual([context, past.k, past.v].map(String));
        return gradients.map(toFloat64);
      });
    const expected = run("float64");
    for (const dtype of ["float32", "float16", "bfloat16"] as const)
      run(dtype).forEach((g, i) =>
        assertClose(g, expected[i]!, {
          rel: conformanceTolerance(dtype, "gradient"),
          name: `${dtype} ${i}`,
        }),
      );
  });
  test("the one-step approximation stops at the past and changes nothing else", () => {
    scope(() => {
      const layer = GroupedQueryAttention.create({ ...SMALL, ...on, rope: {}, sinks: true });
      const { present: past } = layer.forwardWithPresent(random(1, 2, 3, 8));
      const x = random(2, 2, 2, 8);
      const run = (backpropagation: "full" | "oneStep"): GroupedQueryAttentionGradients =>
        layer.vjp(x, { past, backpropagation }).backward(x);
      const [full, oneStep] = [run("full"), run("oneStep")];
      expect(flat(oneStep)).toEqual(flat(full));
      expect([full.past?.k.shape, full.past?.v.shape, oneStep.past]).toEqual([
        [2, 3, 2, 4],
        [2, 3, 2, 4],
        undefined,
      ]);
      expect(Math.max(...toFloat64(full.past!.k).map(Math.abs))).toBeGreaterThan(0);
    });
  });
  test("the gradient of a mask has its shape, beside documents as well", () => {
    scope(() => {
      const layer = GroupedQueryAttention.create({ ...SMALL, ...on, seed: 1 });
      const x = random(1, 2, 3, 8);
      const documents = int32([0, 0, 1, 0, 1, 1], 2, 3);
      const gradient = (attnMask: Tensor): Tensor =>
        layer.vjp(x, { attnMask, documents, attnMaskGradient: true }).backward(x).attnMask!;
      const full = random(2, 1, 1, 3, 3).broadcastTo([2, 4, 3, 3]).contiguous();
      const all = gradient(full) as Tensor<"float64">;
      for (const axes of [[0], [1], [0, 1], [0, 1, 2]]) {
        const shape = [2, 4, 3, 3].map((n, axis) => (axes.includes(axis) ? 1 : n));
        const narrow = axes.includes(2)
          ? zeros(shape, on)
          : full.slice(0, 0, shape[0]!).slice(1, 0, shape[1]!);
        const expected = axes.includes(2) ? gradient(zeros([2, 4, 3, 3], on)) : all;
        const found = gradient(narrow);
        expect(found.shape).toEqual(shape);
        const total = sum(expected as Tensor<"float64">, { axes, keepDims: true });
        assertClose(toFloat64(found), toFloat64(total), { rel: 1e-12, name: axes.join() });
      }
      expect(gradient(zeros([3, 3], on)).shape).toEqual([3, 3]);
    });
  });
  test("a pass survives the handles of all that it was given", () => {
    scope(() => {
      const layer = GroupedQueryAttention.create({
        ...CROSS,
        ...on,
        rope: {},
        rotateContext: true,
        qkNorm: {},
      });
      const x = random(1, 2, 3, 8);
      const given = () => ({
        context: random(2, 2, 2, 6),
        contextPositions: int32([0, 1, 4, 5], 2, 2),
        contextDocuments: int32([0, 0, 0, 1], 2, 2),
        documents: int32([0, 0, 0, 0, 1, 1], 2, 3),
        positions: int32([0, 1, 2, 3, 4, 5], 2, 3),
        attnMask: random(5, 3, 4),
        kvLengths: int32([2, 1], 2),
      });
      const past = () => ({
        k: random(3, 2, 2, 2, 4),
        v: random(4, 2, 2, 2, 4),
        lengths: int32([2, 1], 2),
        documents: int32([0, 0, 1, 1], 2, 2),
      });
      const expected = flat(layer.vjp(x, { ...given(), past: past() }).backward(x));
      const [inputs, before] = [given(), past()];
      const pass = layer.vjp(x, { ...inputs, past: before, attnMaskGradient: true });
      for (const t of [...Object.values(inputs), ...Object.values(before)]) t[Symbol.dispose]();
      expect(flat(pass.backward(x))).toEqual(expected);
    });
  });
  test("two sequences, two passes each before any goes backward, do not disturb one another", () => {
    scope(() => {
      const layer = GroupedQueryAttention.create({ ...SMALL, ...on, rope: {}, qkNorm: {}, bias: true });
      const passes = (seed: number) => {
        const [a, b] = [random(seed, 1, 3, 8), random(seed + 1, 1, 2, 8)];
        const first = layer.vjp(a);
        const second = layer.vjp(b, { past: first.present });
        return { first, second, a, b };
      };
      const finish = ({ first, second, a, b }: ReturnType<typeof passes>): Map<string, Float64Array>[] => {
        const later = second.backward(b);
        return [flat(later), flat(first.backward(a, later.past))];
      };
      const alone = [10, 20].map((seed) => finish(passes(seed)));
      const [one, two] = [passes(10), passes(20)];
      expect([finish(two), finish(one)]).toEqual([alone[1]!, alone[0]!]);
    });
  });
  test("keys and values of a context serve as the past of many calls, and as the context does", () => {
    for (const rotateContext of [false, true]) {
      scope(() => {
        const layer = GroupedQueryAttention.create({ ...CROSS, ...on, rope: {}, rotateContext, qkNorm: {} });
        const context = random(1, 2, 5, 6);
        const x = random(2, 2, 3, 8);
        const at = rotateContext ? { contextPositions: 4 } : {};
        const expected = toFloat64(layer.forward(x, { context, positions: 2, ...at }));
        const past = layer.contextKeysValues(context, { positions: rotateContext ? 4 : 0 });
        expect(toFloat64(layer.forward(x, { past, positions: 2 }))).toEqual(expected);
        const fromStart = toFloat64(layer.forward(x, { context, ...at }));
        expect(toFloat64(layer.forward(x, { past }))).toEqual(fromStart); // x does not follow a context
        // A token at a time sees the same context.
        const last = x.slice(1, 2, 3) as Tensor<"float64">;
        const one = toFloat64(layer.forward(last, { past, positions: 4 }));
        const rows = upload(expected, [2, 3, 8], "float64", engine);
        assertClose(one, toFloat64(rows.slice(1, 2)), { rel: 1e-13, abs: 1e-15 });
      });
    }
  });
  test("cross attention sees all of its context unless it is causal", () => {
    scope(() => {
      const last = (isCausal: boolean | undefined, end: number): Float64Array => {
        const layer = GroupedQueryAttention.create({ ...CROSS, ...on, isCausal });
        const context = random(1, 1, 4, 6);
        context.data[18] = end;
        return toFloat64(layer.forward(random(2, 1, 3, 8), { context }));
      };
      expect(last(undefined, 1)).not.toEqual(last(undefined, 2));
      expect(last(true, 1)).toEqual(last(true, 2));
    });
  });
  test("rotation of cross attention turns queries alone unless the context is to turn as well", () => {
    scope(() => {
      const shift = (rotateContext: boolean): boolean => {
        const layer = GroupedQueryAttention.create({ ...CROSS, ...on, rope: {}, rotateContext });
        const [x, context] = [random(1, 1, 2, 8), random(2, 1, 3, 6)];
        const run = (by: number): number[] => {
          const at = rotateContext ? { contextPositions: by } : {};
          return [...toFloat64(layer.forward(x, { context, positions: by, ...at }))];
        };
        const [a, b] = [run(0), run(5)];
        return a.every((y, i) => Math.abs(y - b[i]!) < 1e-12);
      };
      expect([shift(true), shift(false)]).toEqual([true, false]); // scores depend on distances alone, or not
    });
  });
  test("a merged weight has the values, output and gradients of the three that it stands for", () => {
    for (const tiedValue of [false, true]) {
      scope(() => {
        const options = { ...SMALL, ...on, rope: {}, bias: true, tiedValue, qkNorm: {}, seed: 9 } as const;
        const separate = GroupedQueryAttention.create(options);
        const merged = GroupedQueryAttention.create({ ...options, mergedQkv: true });
        const names = ["q_proj", "k_proj", ...(tiedValue ? [] : ["v_proj"])];
        const stack = (all: ReadonlyMap<string, Tensor>, part: string): Float64Array =>
          toFloat64(concat(names.map((key) => all.get(`${key}.${part}`)!)));
        for (const part of ["weight", "bias"])
          expect(toFloat64(merged.parameters.get(`qkv_proj.${part}`)!)).toEqual(
            stack(separate.parameters, part),
          );
        const x = random(1, 2, 3, 8);
        expect(toFloat64(merged.forward(x))).toEqual(toFloat64(separate.forward(x)));
        const apart = GroupedQueryAttention.fromParameters(
          separate.attributes(),
          new Map([...separate.parameters].map(([key, t]) => [key, tensor(toFloat64(t), t.shape, on)])),
        );
        expect([merged.isMerged, separate.isMerged, apart.isMerged]).toEqual([true, true, false]);
        const found = merged.vjp(x).backward(x);
        const expected = apart.vjp(x).backward(x);
        assertClose(toFloat64(found.input), toFloat64(expected.input), { rel: 1e-13 });
        for (const part of ["weight", "bias"]) {
          const name = `qkv_proj.${part}`;
          assertClose(toFloat64(found.parameters.get(name)!), stack(expected.parameters, part), {
            rel: 1e-13,
            name,
          });
        }
        for (const name of ["o_proj.weight", "o_proj.bias", "q_norm.weight", "k_norm.weight"])
          assertClose(toFloat64(found.parameters.get(name)!), toFloat64(expected.parameters.get(name)!), {
            rel: 1e-12,
            name,
          });
      });
    }
  });
  test("scaleRope divides positions, is part of the attributes, and does not add up", () => {
    scope(() => {
      const layer = GroupedQueryAttention.create({ ...SMALL, ...on, rope: {} });
      const x = random(1, 1, 3, 8);
      const far = toFloat64(layer.forward(x, { positions: int32([0, 2, 4], 1, 3) }));
      const plain = toFloat64(layer.forward(x));
      layer.scaleRope(0.5);
      layer.scaleRope(0.5);
      expect(toFloat64(layer.forward(x))).toEqual(far);
      const again = GroupedQueryAttention.fromParameters(layer.attributes(), layer.parameters);
      expect(toFloat64(again.forward(x))).toEqual(far);
      layer.scaleRope(1);
      expect(toFloat64(layer.forward(x))).toEqual(plain);
      expect(() => layer.scaleRope(0)).toThrow(ArgumentError);
      expect(() => GroupedQueryAttention.create({ ...SMALL, ...on }).scaleRope(2)).toThrow(
        "needs a layer with rope",
      );
    });
  });
  test("scores are those over the past and x, in the order of the sequence", () => {
    scope(() => {
      const layer = GroupedQueryAttention.create({ ...SMALL, ...on, rope: {} });
      const x = random(1, 1, 5, 8);
      const all = layer.scores(x); // [1, 4, 5, 5]
      const { present: past } = layer.forwardWithPresent(x.slice(1, 0, 3) as Tensor<"float64">);
      const tail = layer.scores(x.slice(1, 3) as Tensor<"float64">, { past });
      expect(tail.shape).toEqual([1, 4, 2, 5]);
      assertClose(toFloat64(tail), toFloat64(all.slice(2, 3)), { rel: 1e-12 });
    });
  });
  test("nothing is left when passes, presents and gradients are disposed, and the past stays the caller's", () => {
    const before = memoryUsage();
    using leaks = trackLeaks();
    for (const options of [{ ...SMALL, rope: {}, qkNorm: {} }, CROSS] as const) {
      using layer = GroupedQueryAttention.create({ ...options, engine });
      using x = upload(new Float64Array(2 * 3 * 8).fill(0.5), [2, 3, 8], "float32", engine);
      using context = upload(new Float64Array(2 * 4 * 6).fill(0.5), [2, 4, 6], "float32", engine);
      using k = zeros([2, 4, 2, 4], { engine });
      using v = zeros([2, 4, 2, 4], { engine });
      using lengths = int32([4, 1], 2);
      using documents = int32([0, 0, 0, 0, 1, 1], 2, 3);
      using others = int32([0, 0, 0, 0, 1, 1, 1, 1], 2, 4);
      const past = { k, v, lengths, documents: others };
      const call =
        "contextSize" in options
          ? { past, context, documents, contextDocuments: others }
          : { past, documents };
      using pass = layer.vjp(x, call);
      using _output = pass.output;
      using _gradients = pass.backward(pass.output);
      const { output, present } = layer.forwardWithPresent(x, call);
      for (const t of [output, ...Object.values(present)]) t[Symbol.dispose]();
      expect(past.k.disposed).toBe(false);
    }
    expect(leaks.report()).toEqual([]);
    expect(memoryUsage().storages).toBe(before.storages);
    expect(memoryUsage().bytes).toBe(before.bytes);
  });
  test("a present that is the caller's past has handles of its own", () => {
    scope(() => {
      const layer = GroupedQueryAttention.create({ ...CROSS, ...on });
      const past = layer.contextKeysValues(random(1, 1, 4, 6));
      const { present } = layer.forwardWithPresent(random(2, 1, 3, 8), { past });
      present.k[Symbol.dispose]();
      expect(past.k.disposed).toBe(false);
    });
  });
  test("a past, context or documents that do not fit are typed errors that name them", () => {
    scope(() => {
      const self = GroupedQueryAttention.create({ ...SMALL, engine, rope: {} });
      const cross = GroupedQueryAttention.create({ ...CROSS, engine });
      const x = zeros([2, 3, 8], { engine });
      const kv = (...shape: number[]): Tensor<"float32"> => zeros(shape, { engine });
      const past = { k: kv(2, 4, 2, 4), v: kv(2, 4, 2, 4) };
      const context = kv(2, 5, 6);
      type Case = [GroupedQueryAttention, GroupedQueryAttentionVjpOptions, string, typeof ArgumentError];
      const cases: Case[] = [
        [self, { past: { ...past, k: kv(2, 4, 4, 4) } }, "past.k must be [B, P, Hkv, D]", ShapeError],
        [
          self,
          { past: { ...past, v: kv(2, 3, 2, 4) } },
          "past.v must be [B, P, Hkv, D] = [2, 4, 2, 4]",
          ShapeError,
        ],
        [self, { past: { ...past, k: kv(4) } }, "past.k", ShapeError],
        [self, { past: { ...past, v: zeros([2, 4, 2, 4], on) } }, "past.v must have x's dtype", DTypeError],
        [
          self,
          { past: { ...past, lengths: int32([1, 5], 2) } },
          "past.lengths[1] must be from 0 to 4; got 5",
          ArgumentError,
        ],
        [self, { past: { ...past, lengths: int32([1], 1) } }, "past.lengths", ShapeError],
        [
          self,
          { past, kvLengths: int32([1, 4], 2) },
          "kvLengths[1] must be from 0 to 3; got 4",
          ArgumentError,
        ],
        [self, { past, attnMask: zeros([3, 3], { engine }) }, "attnMask", ShapeError],
        [self, { past, documents: int32([0, 0, 0, 0, 0, 0], 2, 3) }, "need past.documents", ArgumentError],
        [self, { documents: int32([0, 0, 0], 3) }, "documents must be [B, S] = [2, 3]", ShapeError],
        [self, { documents: zeros([2, 3], { engine }) as never }, "documents must be int32", DTypeError],
        [
          self,
          { past: { ...past, documents: int32([0, 0, 0, 0, 0, 0, 0, 0], 2, 4) } },
          "past.documents needs documents",
          ArgumentError,
        ],
        [self, { context }, "context needs a layer with contextSize", ArgumentError],
        [self, { contextPositions: 0 }, "contextPositions needs a layer with contextSize", ArgumentError],
        [cross, {}, "needs context, or past", ArgumentError],
        [cross, { context: kv(2, 5, 8) }, "context must be [B, Sk, contextSize] = [2, 5, 6]", ShapeError],
        [cross, { context: kv(1, 5, 6) }, "context", ShapeError],
        [cross, { context, contextPositions: 3 }, "needs a layer with rotateContext", ArgumentError],
        [
          cross,
          { past, kvLengths: int32([1, 1], 2) },
          "kvLengths counts the context's tokens",
          ArgumentError,
        ],
        [cross, { context, kvLengths: int32([1, 6], 2) }, "kvLengths[1] must be from 0 to 5", ArgumentError],
        [
          cross,
          { context, documents: int32([0, 0, 0, 0, 0, 0], 2, 3) },
          "need contextDocuments",
          ArgumentError,
        ],
      ];
      const calls = [
        (layer: GroupedQueryAttention, o: GroupedQueryAttentionInputs) => layer.forward(x, o),
        (layer: GroupedQueryAttention, o: GroupedQueryAttentionInputs) => layer.forwardWithPresent(x, o),
        (layer: GroupedQueryAttention, o: GroupedQueryAttentionInputs) => layer.vjp(x, o),
        (layer: GroupedQueryAttention, o: GroupedQueryAttentionInputs) => layer.scores(x, o),
      ];
      for (const [layer, options, message, kind] of cases) {
        for (const call of calls) {
          expect(() => call(layer, options)).toThrow(message);
          expect(() => call(layer, options)).toThrow(kind);
        }
      }
      expect(() => self.vjp(x, { backpropagation: "half" as never })).toThrow(
        'must be "full" or "oneStep"; got half',
      );
      expect(() => self.vjp(x, { attnMaskGradient: true }).backward(x)).toThrow("needs a float attnMask");
      expect(() => self.contextKeysValues(x)).toThrow("needs a layer with contextSize");
      const pass = self.vjp(x, { past });
      expect(() => pass.backward(x, past)).toThrow("dPresent.k must be float32[2, 7, 2, 4], as present");
    });
  });
  test("dropout of attention weights is one of its seed, and its backward pass drops the same ones", () => {
    scope(() => {
      const layer = GroupedQueryAttention.create({ ...SMALL, ...on, seed: 5 });
      const x = random(1, 1, 6, 8);
      const run = (probability: number, seed: number): Map<string, Float64Array> => {
        const pass = layer.vjp(x, { dropout: { probability, seed } });
        return new Map([["output", toFloat64(pass.output)] as const, ...flat(pass.backward(x))]);
      };
      expect(run(0.5, 1)).toEqual(run(0.5, 1));
      expect(run(0.5, 1)).not.toEqual(run(0.5, 2));
      expect(run(0, 1).get("output")).toEqual(toFloat64(layer.forward(x)));
      const dropout = { probability: 0.5, seed: 3 };
      const wide = GroupedQueryAttention.fromParameters(
        layer.attributes(),
        // Weights of unit scale, so that attention is far from uniform.
        new Map(
          [...layer.parameters].map(([key, t]) => [
            key,
            tensor(
              toFloat64(t).map((w) => 30 * w),
              t.shape,
              on,
            ),
          ]),
        ),
      );
      const objective = (values: Float64Array): number =>
        scope(() => {
          const { output } = wide.vjp(upload(values, [1, 6, 8], "float64", engine), { dropout });
          return dotProduct(toFloat64(output), toFloat64(x));
        });
      const { input } = wide.vjp(x, { dropout }).backward(x);
      checkDirectionalGradient(objective, toFloat64(x), toFloat64(input), {
        h: 2 ** -12,
        rel: 1e-7,
        abs: 1e-7,
      });
      expect(() => run(1, 1)).toThrow(ArgumentError);
    });
  });
});
