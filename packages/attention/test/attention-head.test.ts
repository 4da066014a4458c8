import "@heed/engine-cpu";
import {
  ArgumentError,
  DeviceError,
  DTypeError,
  type FloatDType,
  getEngine,
  memoryUsage,
  scope,
  type Shape,
  ShapeError,
  tensor,
  type Tensor,
  toFloat64,
  zeros,
} from "@heed/tensor";
import {
  assertClose,
  attentionOracle,
  checkDirectionalGradient,
  checkGradient,
  createRng,
  dotProduct,
} from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { AttentionHead, type AttentionHeadOptions, scaledDotProductAttention } from "../src/index.ts";
import { engines } from "./engines.ts";
import { linearOracle } from "./support/oracle.ts";
import { upload } from "./support/problem.ts";

interface Problem {
  readonly B: number;
  readonly S: number;
  readonly options: Required<Omit<AttentionHeadOptions, "layerIndex">>;
  readonly kvLengths: readonly number[] | undefined;
  readonly mask: "bool" | "float" | undefined;
  readonly seed: number;
}
type Values = ReadonlyMap<string, Float64Array>;

const upTo = (max: number) => fc.integer({ min: 1, max });
const problems = fc
  .record({
    B: upTo(2),
    S: upTo(6),
    options: fc.record({
      hiddenSize: upTo(5),
      headDim: upTo(5),
      bias: fc.boolean(),
      isCausal: fc.boolean(),
    }),
    kvLengths: fc.option(fc.array(fc.nat({ max: 6 }), { minLength: 2, maxLength: 2 }), { nil: undefined }),
    mask: fc.constantFrom("bool" as const, "float" as const, undefined),
    seed: fc.nat({ max: 0xffff }),
  })
  .map(({ kvLengths, ...p }): Problem => ({
    ...p,
    kvLengths: kvLengths?.slice(0, p.B).map((n) => Math.min(n, p.S)),
  }));
const example: Problem = {
  B: 2,
  S: 5,
  options: { hiddenSize: 6, headDim: 4, bias: true, isCausal: true },
  kvLengths: undefined,
  mask: undefined,
  seed: 3,
};
function shapesOf({ options: { hiddenSize, headDim, bias } }: Problem): Map<string, Shape> {
  const names = ["q", "k", "v"].map((p) => `${p}_proj`);
  return new Map<string, Shape>([
    ...names.map((name) => [`${name}.weight`, [headDim, hiddenSize]] as const),
    ...(bias ? names.map((name) => [`${name}.bias`, [headDim]] as const) : []),
  ]);
}
/** "input" [B, S, hidden], "mask" [B, 1, S, S] and the parameters. */
function valuesOf(p: Problem): Map<string, Float64Array> {
  const rng = createRng(p.seed);
  const normal = (shape: Shape, std = 1): Float64Array =>
    rng.normalArray(
      shape.reduce((n, d) => n * d, 1),
      0,
      std,
    );
  const values = new Map([["input", normal([p.B, p.S, p.options.hiddenSize])]]);
  for (const [name, shape] of shapesOf(p)) values.set(name, normal(shape, 0.5));
  const visible = normal([p.B, p.S, p.S]);
  values.set(
    "mask",
    p.mask === "bool" ? visible.map((x) => Number(x < 1)) : visible.map((x) => (x < 1 ? x : -Infinity)),
  );
  return values;
}
function oracle({ B, S, options, mask, kvLengths }: Problem, values: Values): Float64Array {
  const { hiddenSize, headDim: D, isCausal } = options;
  const [q, k, v] = ["q", "k", "v"].map((p) =>
    linearOracle(
      values.get("input")!,
      values.get(`${p}_proj.weight`)!,
      values.get(`${p}_proj.bias`),
      hiddenSize,
    ),
  );
  return attentionOracle(q!, k!, v!, {
    dims: { B, S, Sk: S, Hq: 1, Hkv: 1, D, Dv: D },
    isCausal,
    queryOffset: 0,
    kvLengths,
    mask: mask && {
      kind: mask === "bool" ? "boolean" : "additive",
      at: (b, _h, i, j) => values.get("mask")![(b * S + i) * S + j]!,
    },
  }).out;
}

describe.each(engines)("AttentionHead on %s", (name) => {
  const engine = getEngine(name);
  const inputOf = <D extends FloatDType>(p: Problem, values: Values, dtype: D): Tensor<D> =>
    upload(values.get("input")!, [p.B, p.S, p.options.hiddenSize], dtype, engine);
  const layerOf = (p: Problem, values: Values, dtype: FloatDType): AttentionHead =>
    new AttentionHead(
      p.options,
      new Map([...shapesOf(p)].map(([key, shape]) => [key, upload(values.get(key)!, shape, dtype, engine)])),
    );
  const callOf = ({ B, S, mask, kvLengths }: Problem, values: Values) => ({
    ...(kvLengths && { kvLengths: tensor(Int32Array.from(kvLengths), [B], { dtype: "int32", engine }) }),
    ...(mask === "bool" && {
      attnMask: tensor(Uint8Array.from(values.get("mask")!), [B, 1, S, S], { dtype: "bool", engine }),
    }),
    ...(mask === "float" && { attnMask: upload(values.get("mask")!, [B, 1, S, S], "float64", engine) }),
  });
  /** The gradients of sum(dOut * layer(x)), the input's under "input". */
  const gradients = (p: Problem, values: Values, dOut: Float64Array): Map<string, Float64Array> =>
    scope(() => {
      const pass = layerOf(p, values, "float64").vjp(inputOf(p, values, "float64"), callOf(p, values));
      const found = pass.backward(upload(dOut, [p.B, p.S, p.options.headDim], "float64", engine));
      return new Map(
        [["input", found.input] as const, ...found.parameters].map(([key, t]) => [key, toFloat64(t)]),
      );
    });
  const upstream = ({ seed, B, S, options }: Problem): Float64Array =>
    createRng(seed + 1).normalArray(B * S * options.headDim);

  test("and its gradients are the oracle's, for any options, masks and lengths", () => {
    fc.assert(
      fc.property(problems, (p) => {
        const values = valuesOf(p);
        scope(() => {
          const y = layerOf(p, values, "float64").forward(inputOf(p, values, "float64"), callOf(p, values));
          expect(y.shape).toEqual([p.B, p.S, p.options.headDim]);
          assertClose(toFloat64(y), oracle(p, values), { rel: 1e-12, abs: 1e-12 });
        });
        const dOut = upstream(p);
        const found = gradients(p, values, dOut);
        expect([...found.keys()]).toEqual(["input", ...shapesOf(p).keys()]);
        for (const [key, gradient] of found) {
          const f = (moved: Float64Array) => dotProduct(dOut, oracle(p, new Map(values).set(key, moved)));
          // Sharp softmaxes bend within a default step; the smaller one costs 2 of 10 digits.
          const check = { name: key, h: 2 ** -12, rel: 1e-7, abs: 1e-7 };
          checkDirectionalGradient(f, values.get(key)!, gradient, check);
        }
      }),
      { numRuns: 60 },
    );
  });
  test.each([true, false])("has right gradients in every coordinate, causal: %p", (isCausal) => {
    const p = { ...example, options: { ...example.options, isCausal } };
    const values = valuesOf(p);
    const dOut = upstream(p);
    for (const [key, gradient] of gradients(p, values, dOut)) {
      const f = (moved: Float64Array) => dotProduct(dOut, oracle(p, new Map(values).set(key, moved)));
      checkGradient(f, values.get(key)!, gradient, { name: key });
    }
  });
  test("gives the known rows through identity projections, causal and bidirectional", () => {
    scope(() => {
      // The columns of x are the q, k and v whose attention is known; each projection picks its four.
      const rows = [
        [1, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4],
        [1, 0, 0, 0, 1, 0, 0, 0, 5, 6, 7, 8],
        [1, 2, 3, 4, 1, 5, 6, 7, 9, 8, 7, 6],
      ];
      const pick = (from: number) =>
        tensor(
          [0, 1, 2, 3].map((i) => Array.from({ length: 12 }, (_, j) => Number(j === from + i))),
          [4, 12],
          { dtype: "float64", engine },
        );
      const parameters = { "q_proj.weight": pick(0), "k_proj.weight": pick(4), "v_proj.weight": pick(8) };
      const x = tensor([rows], [1, 3, 12], { dtype: "float64", engine });
      const out = (isCausal?: boolean) =>
        toFloat64(new AttentionHead({ hiddenSize: 12, headDim: 4, isCausal }, parameters).forward(x));
      assertClose(out(false).slice(0, 8), [5, 16 / 3, 17 / 3, 6, 5, 16 / 3, 17 / 3, 6], { rel: 1e-15 });
      assertClose(out().slice(0, 8), [1, 2, 3, 4, 3, 4, 5, 6], { rel: 1e-15 });
    });
  });
  test("sees later tokens only when bidirectional, and early ones always", () => {
    const values = valuesOf(example);
    const moved = (token: number): Values => {
      const x = Float64Array.from(values.get("input")!);
      x[token * example.options.hiddenSize]! += 1;
      return new Map(values).set("input", x);
    };
    for (const isCausal of [true, false]) {
      const p = { ...example, options: { ...example.options, isCausal } };
      const out = (v: Values) =>
        scope(() => toFloat64(layerOf(p, v, "float64").forward(inputOf(p, v, "float64"))));
      const row = (v: Values, i: number) => out(v).slice(4 * i, 4 * i + 4);
      expect(row(moved(0), 4)).not.toEqual(row(values, 4));
      if (isCausal) expect(row(moved(4), 0)).toEqual(row(values, 0));
      else expect(row(moved(4), 0)).not.toEqual(row(values, 0));
    }
  });
  test("has the dtype of its input, with gradients in it; float32 takes 16-bit weights", () => {
    for (const dtype of ["float32", "float16", "bfloat16"] as const) {
      scope(() => {
        const rounded = new Map(
          [...valuesOf(example)].map(([key, v]) => [key, toFloat64(upload(v, [v.length], dtype, engine))]),
        );
        const expected = oracle(example, rounded);
        const layer = layerOf(example, rounded, dtype);
        const pass = layer.vjp(inputOf(example, rounded, dtype));
        const wide = layer.forward(inputOf(example, rounded, "float32"));
        // Queries, keys, values and output are rounded; scores of up to some 10 multiply that.
        const abs = 32 * { float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 }[dtype];
        assertClose(toFloat64(pass.output), expected, { abs, name: dtype });
        assertClose(toFloat64(wide), expected, { abs: 2 ** -19, name: `float32 beside ${dtype}` });
        expect(wide.dtype).toBe("float32");
        const { input, parameters } = pass.backward(pass.output);
        expect(new Set([pass.output, input, ...parameters.values()].map((t) => t.dtype))).toEqual(
          new Set([dtype]),
        );
      });
    }
  });
  test("with weights that are one in memory equals one with weights apart, gradients included", () => {
    scope(() => {
      const joined = AttentionHead.create({ ...example.options, engine, dtype: "float64", seed: 9 });
      const parts = [...joined.parameters].map(([key, t]) => [
        key,
        upload(toFloat64(t), t.shape, "float64", engine),
      ]);
      const apart = new AttentionHead(joined.attributes(), Object.fromEntries(parts));
      const x = inputOf(example, valuesOf(example), "float64");
      const [a, b] = [joined.vjp(x), apart.vjp(x)];
      assertClose(toFloat64(a.output), toFloat64(b.output), { rel: 1e-14, abs: 1e-16 });
      const [ga, gb] = [a.backward(a.output), b.backward(a.output)];
      assertClose(toFloat64(ga.input), toFloat64(gb.input), { rel: 1e-13, abs: 1e-18 });
      for (const [key, t] of ga.parameters)
        assertClose(toFloat64(t), toFloat64(gb.parameters.get(key)!), { rel: 1e-12, abs: 1e-16, name: key });
    });
  });
  test("passes dropout on", () => {
    scope(() => {
      const values = valuesOf(example);
      const [layer, x] = [layerOf(example, values, "float64"), inputOf(example, values, "float64")];
      const dropout = { probability: 0.5, seed: 7 };
      const dropped = toFloat64(layer.forward(x, { dropout }));
      expect(dropped).not.toEqual(toFloat64(layer.forward(x)));
      expect(toFloat64(layer.vjp(x, { dropout }).output)).toEqual(dropped);
      const [q, k, v] = ["q", "k", "v"].map((p) =>
        upload(
          linearOracle(
            values.get("input")!,
            values.get(`${p}_proj.weight`)!,
            values.get(`${p}_proj.bias`),
            6,
          ),
          [2, 5, 1, 4],
          "float64",
          engine,
        ),
      );
      const expected = toFloat64(scaledDotProductAttention(q!, k!, v!, { isCausal: true, dropout }));
      assertClose(dropped, expected, { rel: 1e-12, abs: 1e-12 });
    });
  });
  test("two passes before one backward do not disturb one another, and outlive their input", () => {
    scope(() => {
      const values = valuesOf(example);
      const layer = layerOf(example, values, "float64");
      const x = (seed: number) => upload(createRng(seed).normalArray(60), [2, 5, 6], "float64", engine);
      const d = upload(upstream(example), [2, 5, 4], "float64", engine);
      const alone = toFloat64(layer.vjp(x(1)).backward(d).input);
      const at = x(1);
      const first = layer.vjp(at);
      at[Symbol.dispose]();
      const second = layer.vjp(x(2));
      expect(toFloat64(second.backward(d).input)).not.toEqual(alone);
      expect(toFloat64(first.backward(d).input)).toEqual(alone);
      expect(toFloat64(first.backward(d).input)).toEqual(alone);
      first[Symbol.dispose]();
      expect(first.output.disposed).toBe(false);
      expect(() => first.backward(d)).toThrow("disposed");
    });
  });
  test("is created from a seed with small weights, and leaves nothing behind", () => {
    const before = memoryUsage().storages;
    {
      using layer = AttentionHead.create({ hiddenSize: 64, headDim: 32, bias: true, engine, seed: 1 });
      const weight = toFloat64(layer.parameters.get("k_proj.weight")!);
      expect(Math.sqrt(dotProduct(weight, weight) / weight.length)).toBeCloseTo(0.02, 3);
      expect([...toFloat64(layer.parameters.get("v_proj.bias")!)]).toEqual(new Array(32).fill(0));
      using same = AttentionHead.create({ ...layer.attributes(), engine, seed: 1 });
      expect(toFloat64(same.parameters.get("k_proj.weight")!)).toEqual(weight);
      using other = AttentionHead.create({ ...layer.attributes(), engine, seed: 2 });
      expect(toFloat64(other.parameters.get("k_proj.weight")!)).not.toEqual(weight);
      using x = zeros([2, 3, 64], { engine });
      using pass = layer.vjp(x);
      using output = pass.output;
      using _gradients = pass.backward(output);
    }
    expect(memoryUsage().storages).toBe(before);
  });
  test("bad options, parameters and calls are typed errors that name them", () => {
    scope(() => {
      const create = (options: object): (() => unknown) => {
        return () => AttentionHead.create({ hiddenSize: 6, headDim: 4, engine, ...options });
      };
      expect(create({ hiddenSize: 0 })).toThrow("[AttentionHead] hiddenSize must be a whole number");
      expect(create({ headDim: 1.5 })).toThrow("[AttentionHead] headDim must be a whole number");
      expect(create({ seed: -1 })).toThrow(ArgumentError);
      const layer = AttentionHead.create({ hiddenSize: 6, headDim: 4, engine });
      const parameters = Object.fromEntries(layer.parameters);
      const build = (change: Record<string, Tensor>): (() => unknown) => {
        return () => new AttentionHead(layer.attributes(), { ...parameters, ...change });
      };
      expect(build({ "v_proj.weight": zeros([6, 4], { engine }) })).toThrow(
        '[AttentionHead] parameter "v_proj.weight" must be [4, 6]; got float32[6, 4]',
      );
      expect(build({ "o_proj.weight": zeros([6, 4], { engine }) })).toThrow('no parameter "o_proj.weight"');
      expect(build({ "q_proj.bias": zeros([4], { engine }) })).toThrow(ArgumentError);
      const x = zeros([2, 3, 6], { engine });
      for (const run of [layer.forward.bind(layer), layer.vjp.bind(layer)] as ((
        x: Tensor,
        options?: object,
      ) => unknown)[]) {
        expect(() => run(zeros([3, 6], { engine }))).toThrow("x must be [B, S, 6]; got float32[3, 6]");
        expect(() => run(zeros([2, 3, 5], { engine }))).toThrow(ShapeError);
        expect(() => run(zeros([2, 3, 6], { engine, dtype: "float16" }))).toThrow(DTypeError);
        expect(() => run(x, { attnMask: zeros([3, 4], { engine }) })).toThrow("attnMask");
        expect(() => run(x, { kvLengths: zeros([3], { engine, dtype: "int32" }) })).toThrow("kvLengths");
        const other = engines.find((e) => e !== name);
        if (other !== undefined) expect(() => run(zeros([2, 3, 6], { engine: other }))).toThrow(DeviceError);
      }
      expect(() => layer.vjp(x).backward(x)).toThrow(
        "[AttentionHead backward] dOutput must be the output's [2, 3, 4]; got float32[2, 3, 6]",
      );
      layer[Symbol.dispose]();
      layer[Symbol.dispose]();
      expect(() => layer.forward(x)).toThrow("disposed");
    });
  });
});
