import "@heed/engine-cpu";
import {
  ArgumentError,
  DTypeError,
  type FloatDType,
  getEngine,
  type HeedError,
  scope,
  ShapeError,
  type Tensor,
  toFloat64,
  zeros,
} from "@heed/tensor";
import { createRng } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc, { type Arbitrary } from "fast-check";
import {
  AttentionHead,
  buildLayer,
  type BuiltLayers,
  GlobalAttention,
  GroupedQueryAttention,
  type Layer,
  type LayerBuilder,
  layerBuilders,
  Linear,
  LocalAttention,
  type Module,
  MultiHeadLatentAttention,
  type MultiHeadLatentAttentionOptions,
  RMSNorm,
  RotaryEmbedding,
  ScaledDotProductAttention,
} from "../src/index.ts";
import { engines } from "./engines.ts";
import { callOptions, layerOf, type Problem, problems, upload, valuesOf } from "./support/problem.ts";
import { scalings } from "./support/rope-problem.ts";

const upTo = (max: number): Arbitrary<number> => fc.integer({ min: 1, max });
const maybe = <T>(arbitrary: Arbitrary<T>): Arbitrary<T | undefined> =>
  fc.option(arbitrary, { nil: undefined });
const latentOptions: Arbitrary<MultiHeadLatentAttentionOptions> = fc.record({
  hiddenSize: upTo(6),
  numHeads: upTo(3),
  qLoraRank: fc.option(upTo(4)),
  kvLoraRank: upTo(4),
  qkNopeHeadDim: upTo(4),
  qkRopeHeadDim: upTo(2).map((n) => 2 * n),
  vHeadDim: maybe(upTo(4)),
  bias: maybe(fc.boolean()),
  rope: fc.constantFrom(
    null,
    undefined,
    { pairing: "half" as const, base: 100 },
    {
      scaling: {
        type: "yarn",
        factor: 4,
        originalMaxPositions: 16,
        mscale: 0.7,
        mscaleAllDim: 0.7,
      } as const,
    },
  ),
  normEps: maybe(fc.constantFrom(1e-5, 0.1)),
  isCausal: maybe(fc.boolean()),
  scale: fc.option(fc.constantFrom(0.3)),
  layerIndex: maybe(fc.nat(3)),
});
/** What a checkpoint would keep: JSON text of the attributes, and the parameters. */
function rebuilt<K extends keyof BuiltLayers>(layer: Module, operation: K): BuiltLayers[K] {
  const attributes = JSON.parse(JSON.stringify(layer.attributes())) as { operation: string };
  expect(attributes.operation).toBe(operation);
  const again = buildLayer(operation, attributes, layer.parameters);
  expect(again.attributes()).toEqual(layer.attributes() as ReturnType<BuiltLayers[K]["attributes"]>);
  expect([...again.parameters.keys()]).toEqual([...layer.parameters.keys()]);
  return again;
}

describe.each(engines)("buildLayer on %s", (name) => {
  const engine = getEngine(name);
  const normal = (shape: readonly number[], seed: number, dtype: FloatDType = "float64") =>
    upload(createRng(seed).normalArray(shape.reduce((a, b) => a * b, 1)), shape, dtype, engine);
  function expectSame<O>(a: Layer<O>, b: Layer<O>, x: Tensor<FloatDType>, options?: O): void {
    expect(toFloat64(b.forward(x, options))).toEqual(toFloat64(a.forward(x, options)));
  }

  test("makes GroupedQueryAttention again from attributes() and parameters, for any options", () => {
    fc.assert(
      fc.property(problems(), (problem: Problem) =>
        scope(() => {
          const values = valuesOf(problem);
          const layer = layerOf(problem, values.parameters, "float64", engine);
          const x = upload(values.x, [problem.B, problem.S, problem.options.hiddenSize], "float64", engine);
          const call = callOptions(problem, values, engine);
          expectSame(layer, rebuilt(layer, "GroupedQueryAttention"), x, call);
        }),
      ),
      { numRuns: 60 },
    );
  });
  test("makes GlobalAttention and LocalAttention again, for any options and windows", () => {
    fc.assert(
      fc.property(problems(), maybe(upTo(4)), (problem, windowSize) =>
        scope(() => {
          const values = valuesOf(problem);
          const { window: _own, ...options } = problem.options;
          const { parameters } = layerOf(problem, values.parameters, "float64", engine);
          const x = upload(values.x, [problem.B, problem.S, options.hiddenSize], "float64", engine);
          const call = callOptions(problem, values, engine);
          if (windowSize === undefined) {
            const layer = new GlobalAttention(options, parameters);
            expectSame(layer, rebuilt(layer, "GlobalAttention"), x, call);
          } else {
            const layer = new LocalAttention({ ...options, windowSize }, parameters);
            expectSame(layer, rebuilt(layer, "LocalAttention"), x, call);
          }
        }),
      ),
      { numRuns: 40 },
    );
  });
  test("keeps every kind of rotary scaling, and sections", () => {
    const ropes = upTo(3).chain((half) =>
      fc.record({
        half: fc.constant(half),
        scaling: scalings(half),
        positionFactor: maybe(fc.constant(2)),
        sections: fc.constantFrom(null, undefined, { pairs: [half, 0, 0] as const }),
      }),
    );
    fc.assert(
      fc.property(ropes, ({ half, ...rope }) =>
        scope(() => {
          const options = { hiddenSize: 4, numHeads: 1, numKvHeads: 1, headDim: 2 * half, rope };
          const layer = GroupedQueryAttention.create({ ...options, engine, dtype: "float64" });
          const again = rebuilt(layer, "GroupedQueryAttention");
          if (!rope.sections) expectSame(layer, again, normal([1, 5, 4], 1), { positions: 17 });
          expect(again.config.rope!.scaling.type).toBe(rope.scaling.type);
        }),
      ),
      { numRuns: 60 },
    );
  });
  test("makes MultiHeadLatentAttention again, for any options, no rotation among them", () => {
    fc.assert(
      fc.property(latentOptions, fc.nat({ max: 0xffff }), (options, seed) =>
        scope(() => {
          const layer = MultiHeadLatentAttention.create({ ...options, engine, dtype: "float64", seed });
          const x = normal([2, 3, options.hiddenSize], seed);
          expectSame(layer, rebuilt(layer, "MultiHeadLatentAttention"), x);
        }),
      ),
      { numRuns: 40 },
    );
  });
  test("makes AttentionHead, Linear, RMSNorm and ScaledDotProductAttention again, for any options", () => {
    const options = fc.record({
      size: upTo(5),
      out: upTo(5),
      bias: fc.boolean(),
      isCausal: fc.boolean(),
      eps: fc.constantFrom(1e-6, 0.1),
      window: maybe(fc.record({ left: fc.nat(3), right: fc.nat(3) }, { requiredKeys: [] })),
      scale: maybe(fc.constantFrom(0.3)),
      softcap: maybe(fc.constantFrom(2)),
      layout: fc.constantFrom("bshd" as const, "bhsd" as const),
    });
    fc.assert(
      fc.property(options, ({ size, out, bias, isCausal, eps, window, scale, softcap, layout }) =>
        scope(() => {
          const on = { engine, dtype: "float64", seed: 3 } as const;
          const x = normal([2, 3, size], 1);
          const head = AttentionHead.create({
            hiddenSize: size,
            headDim: out,
            bias,
            isCausal,
            layerIndex: out,
            ...on,
          });
          expectSame(head, rebuilt(head, "AttentionHead"), x);
          const linear = Linear.create({ inFeatures: size, outFeatures: out, bias, ...on });
          expectSame(linear, rebuilt(linear, "Linear"), x);
          const norm = new RMSNorm(
            { shape: [3, size], eps, unitOffset: bias },
            { weight: normal([3, size], 2) },
          );
          expectSame(norm, rebuilt(norm, "RMSNorm"), x);
          const plain = new ScaledDotProductAttention({ isCausal, window, scale, softcap, layout });
          const q = normal([2, 3, 3, 4], 4);
          const again = rebuilt(plain, "ScaledDotProductAttention");
          expect(toFloat64(again.forward(q, q, q))).toEqual(toFloat64(plain.forward(q, q, q)));
        }),
      ),
      { numRuns: 30 },
    );
  });
  test("uses the given weights and shares their memory", () => {
    scope(() => {
      const weight = normal([2, 3], 1);
      const layer = buildLayer("Linear", { inFeatures: 3, outFeatures: 2 }, { weight });
      expect(layer.parameters.get("weight")!.storage).toBe(weight.storage);
      const x = normal([1, 3], 2);
      const before = toFloat64(layer.forward(x));
      (weight as Tensor<"float64">).data[0] = 100;
      expect(toFloat64(layer.forward(x))).not.toEqual(before);
    });
  });
  test("takes the parameters under a prefix, and a rotation that is shared", () => {
    scope(() => {
      const options = { hiddenSize: 8, numHeads: 2, numKvHeads: 1 };
      const layer = GroupedQueryAttention.create({ ...options, engine, rope: {} });
      const prefix = "model.layers.1.self_attn";
      const checkpoint = new Map<string, Tensor>([["model.norm.weight", zeros([8], { engine })]]);
      for (const [key, t] of layer.parameters) checkpoint.set(`${prefix}.${key}`, t);
      const rope = new RotaryEmbedding({ rotaryDim: 4 });
      const again = buildLayer("GroupedQueryAttention", { ...options, rope }, checkpoint, { prefix });
      expect(again.config).toEqual(layer.config);
      expectSame(layer, again, normal([1, 3, 8], 1, "float32"));
      again[Symbol.dispose]();
      expect(() => rope.apply(zeros([1, 1, 1, 4], { engine }))).not.toThrow();
      expect(() =>
        buildLayer("GroupedQueryAttention", options, checkpoint, { prefix: "model.layers.2" }),
      ).toThrow('[GroupedQueryAttention] no parameter lies under "model.layers.2"; given: model.norm.weight');
    });
  });
  test("builds layers of one's own beside the known ones", () => {
    scope(() => {
      const twice: LayerBuilder = ({ size }, parameters) =>
        new Linear({ inFeatures: size as number, outFeatures: size as number }, parameters);
      const builders = new Map([...layerBuilders, ["Twice", twice]]);
      const weight = normal([2, 2], 1);
      const layer = buildLayer("Twice", { size: 2, operation: "Twice" }, { weight }, { builders });
      expect(layer).toBeInstanceOf(Linear);
      expect(buildLayer("Linear", layer.attributes(), layer.parameters, { builders })).toBeInstanceOf(Linear);
    });
  });

  const GQA = { hiddenSize: 4, numHeads: 2, numKvHeads: 1 };
  const LATENT = { hiddenSize: 4, numHeads: 1, kvLoraRank: 2, qkNopeHeadDim: 2, qkRopeHeadDim: 2 };
  type ErrorClass = new (message: string) => HeedError;
  const WRONG: readonly (readonly [string, string, ErrorClass, unknown])[] = [
    ["Attention", '[buildLayer] there is no operation "Attention"; known: AttentionHead,', ArgumentError, {}],
    ["toString", 'no operation "toString"', ArgumentError, {}],
    ["Linear", 'attribute "operation" must be "Linear" or absent', ArgumentError, { operation: "RMSNorm" }],
    ["Linear", "[Linear] attributes must be an object; got null", ArgumentError, null],
    ["Linear", "[Linear] attributes must be an object", ArgumentError, [1]],
    ["Linear", '[Linear] attribute "outFeatures" is missing', ArgumentError, { inFeatures: 4 }],
    ["Linear", 'attribute "inFeatures" must be a number; got "4"', ArgumentError, { inFeatures: "4" }],
    [
      "Linear",
      'no attribute "out"; known: inFeatures, outFeatures',
      ArgumentError,
      { inFeatures: 4, out: 4 },
    ],
    ["Linear", "inFeatures must be a whole number", ArgumentError, { inFeatures: 0, outFeatures: 1 }],
    ["RMSNorm", '"shape" must be a list of numbers; got 4', ArgumentError, { shape: 4 }],
    ["RMSNorm", '"shape" must be a list of numbers; got a list', ArgumentError, { shape: [4, "4"] }],
    ["RMSNorm", 'attribute "eps" must be a number; got null', ArgumentError, { shape: [4], eps: null }],
    ["RMSNorm", "eps must be a finite number of at least 0; got -1", ArgumentError, { shape: [4], eps: -1 }],
    ["AttentionHead", '"headDim" is missing', ArgumentError, { hiddenSize: 4 }],
    ["AttentionHead", '"bias" must be true or false', ArgumentError, { hiddenSize: 4, headDim: 2, bias: 1 }],
    ["GroupedQueryAttention", '"numKvHeads" is missing', ArgumentError, { hiddenSize: 4, numHeads: 2 }],
    ["GroupedQueryAttention", "must be a multiple of numKvHeads", ShapeError, { ...GQA, numKvHeads: 3 }],
    ["GroupedQueryAttention", 'no attribute "windowSize"', ArgumentError, { ...GQA, windowSize: 3 }],
    ["GroupedQueryAttention", '"window" must be an object; got 3', ArgumentError, { ...GQA, window: 3 }],
    ["GroupedQueryAttention", 'no attribute "window.l"', ArgumentError, { ...GQA, window: { l: 3 } }],
    ["GroupedQueryAttention", "window.left", ArgumentError, { ...GQA, window: { left: -1 } }],
    ["GroupedQueryAttention", '"bias.k" is missing', ArgumentError, { ...GQA, bias: { q: true } }],
    ["GroupedQueryAttention", 'no attribute "rope.theta"', ArgumentError, { ...GQA, rope: { theta: 1 } }],
    [
      "GroupedQueryAttention",
      '"rope.scaling" must be an',
      ArgumentError,
      { ...GQA, rope: { scaling: "yarn" } },
    ],
    [
      "GroupedQueryAttention",
      '"rope.scaling" must be an',
      ArgumentError,
      { ...GQA, rope: { scaling: null } },
    ],
    ["GroupedQueryAttention", "scaling.type", ArgumentError, { ...GQA, rope: { scaling: {} } }],
    ["GroupedQueryAttention", "pairing", ArgumentError, { ...GQA, rope: { pairing: "x" } }],
    ["GroupedQueryAttention", "qkNorm.over", ArgumentError, { ...GQA, qkNorm: { over: "x" } }],
    ["GlobalAttention", 'no attribute "window"', ArgumentError, { ...GQA, window: null }],
    ["LocalAttention", '[LocalAttention] attribute "windowSize" is missing', ArgumentError, GQA],
    ["LocalAttention", "windowSize must be a whole number", ArgumentError, { ...GQA, windowSize: 0 }],
    [
      "MultiHeadLatentAttention",
      '"kvLoraRank" must be a num',
      ArgumentError,
      { ...LATENT, kvLoraRank: null },
    ],
    ["MultiHeadLatentAttention", "kvLoraRank", ArgumentError, { ...LATENT, kvLoraRank: 0 }],
    [
      "ScaledDotProductAttention",
      '"layout" must be "bshd" or "bhsd"; got "x"',
      ArgumentError,
      { layout: "x" },
    ],
    ["ScaledDotProductAttention", '"scale" must be a number; got "1"', ArgumentError, { scale: "1" }],
  ];
  test.each(WRONG)("wrong attributes of %s are errors: %s", (operation, message, kind, attributes) => {
    const build = (): unknown => scope(() => buildLayer(operation as string, attributes as object));
    expect(build).toThrow(kind);
    expect(build).toThrow(message);
  });
  test("a parameter that is missing, unknown, misshapen or no tensor is a typed error that names it", () => {
    scope(() => {
      const attributes = { inFeatures: 3, outFeatures: 2 };
      const build = (parameters: unknown): (() => unknown) => {
        return () => buildLayer("Linear", attributes, parameters as Record<string, Tensor>);
      };
      const weight = zeros([2, 3], { engine });
      expect(build({})).toThrow('[Linear] parameter "weight" of shape [2, 3] is missing');
      expect(build({ weight, bias: zeros([2], { engine }) })).toThrow(
        '[Linear] there is no parameter "bias"',
      );
      expect(build({ weight: zeros([3, 2], { engine }) })).toThrow(ShapeError);
      expect(build({ weight: zeros([2, 3], { engine, dtype: "int32" }) })).toThrow(DTypeError);
      expect(build({ weight: [1, 2] })).toThrow('[Linear] parameter "weight" must be a tensor; got object');
      expect(build(null)).toThrow(new ArgumentError("[Linear] parameters must be tensors by name; got null"));
      expect(() => buildLayer("ScaledDotProductAttention", {}, { weight })).toThrow(
        new ArgumentError('[ScaledDotProductAttention] takes no parameters; got "weight"'),
      );
    });
  });
});
