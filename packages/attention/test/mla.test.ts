import "@heed/engine-cpu";
import {
  ArgumentError,
  DeviceError,
  DTypeError,
  getEngine,
  type HeedError,
  memoryUsage,
  scope,
  ShapeError,
  tensor,
  type Tensor,
  toFloat64,
  trackLeaks,
  zeros,
} from "@heed/tensor";
import { assertClose, conformanceTolerance } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  MultiHeadLatentAttention,
  type MultiHeadLatentAttentionOptions,
  RotaryEmbedding,
  type YarnScaling,
} from "../src/index.ts";
import { engines } from "./engines.ts";
import {
  latentCall,
  latentLayer,
  latentOracle,
  type LatentProblem,
  latentProblems,
  latentValues,
} from "./support/latent.ts";
import { upload } from "./support/problem.ts";

const SMALL = {
  hiddenSize: 8,
  numHeads: 3,
  qLoraRank: 5,
  kvLoraRank: 6,
  qkNopeHeadDim: 4,
  qkRopeHeadDim: 2,
  vHeadDim: 3,
} as const satisfies MultiHeadLatentAttentionOptions;
const YARN: YarnScaling = { type: "yarn", factor: 8, originalMaxPositions: 64, mscale: 1, mscaleAllDim: 1 };

function output(problem: LatentProblem, name: string, dtype: "float64" | "float32"): Float64Array {
  return scope(() => {
    const engine = getEngine(name);
    const values = latentValues(problem);
    const layer = latentLayer(problem, values.parameters, dtype, engine);
    const x = upload(values.x, [problem.B, problem.S, problem.options.hiddenSize], dtype, engine);
    return toFloat64(layer.forward(x, latentCall(problem, values, engine, dtype)));
  });
}
type ErrorClass = new (message: string) => HeedError;
const BAD: readonly (readonly [ErrorClass, string, Partial<MultiHeadLatentAttentionOptions>])[] = [
  [ArgumentError, "hiddenSize must be a whole number of at least 1; got 0", { hiddenSize: 0 }],
  [ArgumentError, "numHeads must be a whole number of at least 1; got 1.5", { numHeads: 1.5 }],
  [ArgumentError, "qLoraRank must be a whole number of at least 1; got 0", { qLoraRank: 0 }],
  [ArgumentError, "kvLoraRank must be a whole number of at least 1; got NaN", { kvLoraRank: NaN }],
  [ArgumentError, "qkNopeHeadDim must be a whole number of at least 1; got -1", { qkNopeHeadDim: -1 }],
  [ArgumentError, "qkRopeHeadDim must be a whole number of at least 1; got 0", { qkRopeHeadDim: 0 }],
  [ArgumentError, "rotaryDim must be even; got 3", { qkRopeHeadDim: 3 }],
  [ArgumentError, "rope.rotaryDim must be qkRopeHeadDim 2; got 4", { rope: { rotaryDim: 4 } }],
  [ArgumentError, "vHeadDim must be a whole number of at least 1; got 0", { vHeadDim: 0 }],
  [ArgumentError, "normEps must be a finite number of at least 0; got -1", { normEps: -1 }],
  [ArgumentError, "scale must be finite; got Infinity", { scale: Infinity }],
  [ArgumentError, "layerIndex must be a whole number of at least 0; got -1", { layerIndex: -1 }],
];

describe.each(engines)("MultiHeadLatentAttention on %s", (name) => {
  const engine = getEngine(name);

  test("is the expanded formula, with every option", () => {
    fc.assert(
      fc.property(latentProblems(), (problem) => {
        const expected = latentOracle(problem, latentValues(problem));
        assertClose(output(problem, name, "float64"), expected, { rel: 1e-12, abs: 1e-12, name: "float64" });
        assertClose(output(problem, name, "float32"), expected, { rel: 1e-5, abs: 1e-5, name: "float32" });
      }),
      { numRuns: 60 },
    );
  });
  test("is causal: a later token changes no earlier output", () => {
    scope(() => {
      const layer = MultiHeadLatentAttention.create({ ...SMALL, engine, dtype: "float64" });
      const values = Float64Array.from({ length: 40 }, (_, i) => Math.sin(i));
      const run = (): Float64Array => toFloat64(layer.forward(upload(values, [1, 5, 8], "float64", engine)));
      const before = run();
      values.fill(3, 32); // the last token
      const after = run();
      expect(after.slice(0, 32)).toEqual(before.slice(0, 32));
      expect(after.slice(32)).not.toEqual(before.slice(32));
    });
  });
  test("attributes are plain JSON and, with the parameters, build the same function again", () => {
    fc.assert(
      fc.property(latentProblems(), (problem) =>
        scope(() => {
          const values = latentValues(problem);
          const layer = latentLayer(problem, values.parameters, "float64", engine);
          const attributes = layer.attributes();
          const read = JSON.parse(JSON.stringify(attributes)) as typeof attributes;
          expect(read).toEqual(attributes);
          const again = MultiHeadLatentAttention.fromParameters(read, layer.parameters);
          expect(again.attributes()).toEqual(attributes);
          const x = upload(values.x, [problem.B, problem.S, problem.options.hiddenSize], "float64", engine);
          expect(toFloat64(again.forward(x))).toEqual(toFloat64(layer.forward(x)));
        }),
      ),
      { numRuns: 20 },
    );
  });
  test("defaults: full queries, interleaved pairs at base 10000, values as wide as keys, causal", () => {
    scope(() => {
      const { qLoraRank: _, vHeadDim: __, ...least } = SMALL;
      const layer = MultiHeadLatentAttention.create({ ...least, engine });
      expect(layer.attributes()).toMatchObject({
        operation: "MultiHeadLatentAttention",
        qLoraRank: null,
        vHeadDim: 4,
        bias: false,
        rope: { rotaryDim: 2, base: 10000, pairing: "interleaved" },
        normEps: 1e-6,
        isCausal: true,
        scale: 1 / Math.sqrt(6),
        layerIndex: 0,
      });
      expect(layer.cacheLayout).toEqual({ numKvHeads: 1, headDim: 8, valueHeadDim: 6, valuesInKeys: true });
    });
  });
  test("the default scale takes up YaRN's temperature, a given one is taken as it is", () => {
    scope(() => {
      const scaleOf = (options: Partial<MultiHeadLatentAttentionOptions>): number =>
        MultiHeadLatentAttention.create({ ...SMALL, ...options, engine }).config.scale;
      const expected = (0.1 * Math.log(8) + 1) ** 2 / Math.sqrt(6);
      expect(scaleOf({ rope: { scaling: YARN } })).toBeCloseTo(expected, 14);
      expect(scaleOf({ rope: new RotaryEmbedding({ rotaryDim: 2, scaling: YARN }) })).toBeCloseTo(
        expected,
        14,
      );
      expect(scaleOf({ rope: { scaling: YARN }, scale: 0.5 })).toBe(0.5);
      expect(scaleOf({ rope: null })).toBe(1 / Math.sqrt(6));
    });
  });
  test("created parameters have Hugging Face's names, unit norms and zero biases; the same seed gives the same", () => {
    scope(() => {
      const make = (
        options: Partial<MultiHeadLatentAttentionOptions> & { seed?: number },
      ): Map<string, Tensor> =>
        new Map(MultiHeadLatentAttention.create({ ...SMALL, engine, ...options }).parameters);
      const low = make({ bias: true });
      expect([...low].map(([key, t]) => `${key} ${t}`)).toEqual([
        "q_a_proj.weight float32[5, 8]",
        "q_a_proj.bias float32[5]",
        "q_a_layernorm.weight float32[5]",
        "q_b_proj.weight float32[18, 5]",
        "kv_a_proj_with_mqa.weight float32[8, 8]",
        "kv_a_proj_with_mqa.bias float32[8]",
        "kv_a_layernorm.weight float32[6]",
        "kv_b_proj.weight float32[21, 6]",
        "o_proj.weight float32[8, 9]",
        "o_proj.bias float32[8]",
      ]);
      for (const [key, t] of low) {
        const values = toFloat64(t);
        if (key.endsWith("layernorm.weight")) expect(new Set(values)).toEqual(new Set([1]));
        else if (key.endsWith("bias")) expect(new Set(values)).toEqual(new Set([0]));
        else expect(new Set(values).size).toBe(t.size);
      }
      expect([...make({ qLoraRank: null, bias: true }).keys()]).toEqual([
        "q_proj.weight",
        "kv_a_proj_with_mqa.weight",
        "kv_a_proj_with_mqa.bias",
        "kv_a_layernorm.weight",
        "kv_b_proj.weight",
        "o_proj.weight",
        "o_proj.bias",
      ]);
      const firsts = [...low].flatMap(([key, t]) => (t.rank === 2 ? [[key, toFloat64(t)[0]] as const] : []));
      expect(new Set(firsts.map(([, value]) => value)).size).toBe(firsts.length); // each has numbers of its own
      const weight = (seed: number): Float64Array => toFloat64(make({ seed }).get("kv_b_proj.weight")!);
      expect(weight(4)).toEqual(weight(4));
      expect(weight(4)).not.toEqual(weight(5));
    });
  });
  test("a float32 input takes 16-bit weights as they are", () => {
    scope(() => {
      const wide = MultiHeadLatentAttention.create({ ...SMALL, engine, dtype: "bfloat16", seed: 3 });
      const same = [...wide.parameters].map(
        ([key, t]) => [key, upload(toFloat64(t), t.shape, "float32", engine)] as const,
      );
      const layer = MultiHeadLatentAttention.fromParameters(SMALL, new Map<string, Tensor>(same));
      const x = upload(
        Float64Array.from({ length: 48 }, (_, i) => Math.cos(i)),
        [2, 3, 8],
        "float32",
        engine,
      );
      assertClose(toFloat64(wide.forward(x)), toFloat64(layer.forward(x)), {
        rel: conformanceTolerance("float32", "forward"),
      });
    });
  });
  test("nothing is left behind by forward, vjp and backward", () => {
    scope(() => {
      const layer = MultiHeadLatentAttention.create({ ...SMALL, engine });
      const x = zeros([2, 3, 8], { engine });
      layer.forward(x); // the rotation's tables
      using leaks = trackLeaks();
      const before = memoryUsage().storages;
      layer.forward(x)[Symbol.dispose]();
      const pass = layer.vjp(x);
      pass.backward(x)[Symbol.dispose]();
      pass.output[Symbol.dispose]();
      pass[Symbol.dispose]();
      expect(memoryUsage().storages).toBe(before);
      leaks.check();
    });
  });
  test.each(BAD)("%p: %s", (kind, message, options) => {
    const before = memoryUsage().storages;
    const make = (): unknown => MultiHeadLatentAttention.create({ ...SMALL, ...options, engine });
    expect(make).toThrow(kind);
    expect(make).toThrow(message);
    expect(memoryUsage().storages).toBe(before);
  });
  test("a parameter that is missing, unknown or misshapen is named", () => {
    scope(() => {
      const good = new Map<string, Tensor>(MultiHeadLatentAttention.create({ ...SMALL, engine }).parameters);
      const build = (change: Record<string, Tensor | undefined>): (() => unknown) => {
        const given = new Map(good);
        for (const [key, t] of Object.entries(change))
          if (t === undefined) given.delete(key);
          else given.set(key, t);
        return () => MultiHeadLatentAttention.fromParameters(SMALL, given);
      };
      expect(build({ "q_b_proj.weight": undefined })).toThrow(
        'parameter "q_b_proj.weight" of shape [18, 5] is missing',
      );
      expect(build({ "q_proj.weight": zeros([18, 8], { engine }) })).toThrow('no parameter "q_proj.weight"');
      expect(build({ "kv_a_proj_with_mqa.bias": zeros([8], { engine }) })).toThrow(ArgumentError);
      expect(build({ "kv_b_proj.weight": zeros([6, 21], { engine }) })).toThrow(
        '"kv_b_proj.weight" must be [21, 6]; got float32[6, 21]',
      );
      expect(build({ "kv_a_layernorm.weight": zeros([6], { engine, dtype: "int32" }) })).toThrow(DTypeError);
      expect(() => MultiHeadLatentAttention.create({ ...SMALL, engine, seed: -1 })).toThrow("seed");
    });
  });
  test("a wrong rank, size, dtype or place of the input, and options that do not fit it, are typed errors", () => {
    scope(() => {
      const layer = MultiHeadLatentAttention.create({ ...SMALL, engine });
      const x = zeros([2, 3, 8], { engine });
      const int32 = (values: number[]): Tensor<"int32"> =>
        tensor(Int32Array.from(values), [values.length], { dtype: "int32", engine });
      for (const run of [layer.forward.bind(layer), layer.vjp.bind(layer)] as ((
        x: Tensor<"float32">,
        options?: object,
      ) => unknown)[]) {
        expect(() => run(zeros([3, 8], { engine }))).toThrow("x must be [B, S, 8]; got float32[3, 8]");
        expect(() => run(zeros([2, 3, 7], { engine }))).toThrow(ShapeError);
        expect(() => run(zeros([2, 3, 8], { engine, dtype: "float16" }) as never)).toThrow(DTypeError);
        expect(() => run(zeros([2, 3, 8], { engine, dtype: "int32" }) as never)).toThrow(DTypeError);
        expect(() => run(x, { positions: int32([0, 1]) })).toThrow(ShapeError);
        expect(() => run(x, { positions: int32([0, 1, -1]) })).toThrow(ArgumentError);
        expect(() => run(x, { attnMask: zeros([3, 4], { engine }) })).toThrow("attnMask");
        expect(() => run(x, { kvLengths: int32([1, 4]) })).toThrow("kvLengths[1] must be from 0 to 3; got 4");
        const other = engines.find((e) => e !== name);
        if (other !== undefined) expect(() => run(zeros([2, 3, 8], { engine: other }))).toThrow(DeviceError);
      }
      const half = MultiHeadLatentAttention.create({ ...SMALL, engine, dtype: "bfloat16" });
      expect(() => half.vjp(x)).toThrow('"q_a_proj.weight" bfloat16[5, 8]; convert with cast()');
      layer[Symbol.dispose]();
      layer[Symbol.dispose]();
      expect(() => layer.forward(x)).toThrow("disposed");
    });
  });
  test("scaleRope divides positions, is part of the attributes, and does not add up", () => {
    scope(() => {
      const make = (rope: MultiHeadLatentAttentionOptions["rope"]): MultiHeadLatentAttention =>
        MultiHeadLatentAttention.create({ ...SMALL, rope, engine, dtype: "float64", seed: 1 });
      const values = Float64Array.from({ length: 40 }, (_, i) => 30 * Math.cos(i));
      const run = (layer: MultiHeadLatentAttention): Float64Array =>
        toFloat64(layer.forward(upload(values, [1, 5, 8], "float64", engine), { positions: 9 }));
      const layer = make({});
      const plain = run(layer);
      layer.scaleRope(4);
      layer.scaleRope(4);
      assertClose(run(layer), run(make({ scaling: { type: "linear", factor: 4 } })), { rel: 1e-12 });
      expect(run(layer)).not.toEqual(plain);
      const again = MultiHeadLatentAttention.fromParameters(layer.attributes(), layer.parameters);
      expect(run(again)).toEqual(run(layer));
      layer.scaleRope(1);
      expect(run(layer)).toEqual(plain);
      expect(() => layer.scaleRope(0)).toThrow(ArgumentError);
      expect(() => make(null).scaleRope(2)).toThrow("scaleRope needs a layer with rope");
    });
  });
  test("a rotation that is passed in is shared and outlives the layer", () => {
    scope(() => {
      const rope = new RotaryEmbedding({ rotaryDim: 2, pairing: "half" });
      const layer = MultiHeadLatentAttention.create({ ...SMALL, rope, engine });
      expect(layer.attributes().rope).toEqual(rope.options);
      layer[Symbol.dispose]();
      expect(rope.apply(zeros([1, 1, 1, 2], { engine })).shape).toEqual([1, 1, 1, 2]);
      expect(() => MultiHeadLatentAttention.create({ ...SMALL, qkRopeHeadDim: 4, rope, engine })).toThrow(
        ArgumentError,
      );
    });
  });
});
