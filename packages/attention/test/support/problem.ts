/**
 * Random problems of GroupedQueryAttention: small sizes, every option, shrinking towards one head, one token
 * and no option.
 */
import { type Engine, type FloatDType, type Shape, tensor, type Tensor } from "@heed/tensor";
import { createRng, encodeArray, type Rng } from "@heed/testkit";
import fc, { type Arbitrary } from "fast-check";
import { GroupedQueryAttention, type GroupedQueryAttentionOptions } from "../../src/index.ts";

/** A problem as plain data, so that a counterexample prints whole. */
export interface Problem {
  readonly B: number;
  readonly S: number;
  readonly options: GroupedQueryAttentionOptions & {
    readonly headDim: number;
    readonly bias: { readonly q: boolean; readonly k: boolean; readonly v: boolean; readonly o: boolean };
  };
  /** The first token's position, or one position per token [B * S]. */
  readonly positions: number | readonly number[];
  readonly kvLengths: readonly number[] | undefined;
  readonly mask: "bool" | "float" | undefined;
  readonly seed: number;
}
/** Values of a problem: the input [B, S, hidden], parameters by name, a mask [B, 1, S, S]. */
export interface Values {
  readonly x: Float64Array;
  readonly parameters: ReadonlyMap<string, Float64Array>;
  readonly mask: Float64Array | undefined;
}
const maybe = <T>(arbitrary: Arbitrary<T>): Arbitrary<T | undefined> =>
  fc.option(arbitrary, { nil: undefined, freq: 2 });
const upTo = (max: number): Arbitrary<number> => fc.integer({ min: 1, max });
const MAX_B = 2;
const MAX_S = 5;

/** Problems with B <= 2, S <= 5, Hkv <= 3, Hq / Hkv <= 3, D in 2, 4, 6. */
export function problems(): Arbitrary<Problem> {
  const sizes = fc.record({
    B: upTo(MAX_B),
    S: upTo(MAX_S),
    hidden: upTo(6),
    Hkv: upTo(3),
    G: upTo(3),
    half: upTo(3),
  });
  const scaling = fc.constantFrom(
    { type: "none" } as const,
    { type: "linear", factor: 4 } as const,
    { type: "llama3", factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 16 } as const,
  );
  const rope = fc.record({
    share: upTo(3),
    pairing: fc.constantFrom("half" as const, "interleaved" as const),
    base: fc.constantFrom(10000, 100),
    scaling,
  });
  const side = fc.integer({ min: 0, max: 3 });
  const biases = fc.record({ q: fc.boolean(), k: fc.boolean(), v: fc.boolean(), o: fc.boolean() });
  const all = fc.boolean().map((b) => ({ q: b, k: b, v: b, o: b }));
  const position = fc.integer({ min: 0, max: 20 });
  return fc
    .record({
      sizes,
      bias: fc.oneof(all, biases),
      rope: maybe(rope),
      qkNorm: maybe(fc.record({ eps: fc.constantFrom(1e-6, 1e-2), unitOffset: fc.boolean() })),
      isCausal: fc.boolean(),
      window: maybe(fc.record({ left: side, right: side }, { requiredKeys: [] })),
      softcap: maybe(fc.constantFrom(1, 5)),
      scale: maybe(fc.constantFrom(0.3, 1)),
      sinks: fc.boolean(),
      positions: fc.oneof(
        position,
        fc.array(position, { minLength: MAX_B * MAX_S, maxLength: MAX_B * MAX_S }),
      ),
      kvLengths: maybe(fc.array(fc.integer({ min: 0, max: MAX_S }), { minLength: MAX_B, maxLength: MAX_B })),
      mask: maybe(fc.constantFrom("bool" as const, "float" as const)),
      seed: fc.nat({ max: 0xffff }),
    })
    .map(({ sizes: n, positions, kvLengths, mask, seed, rope: turn, ...rest }) => ({
      B: n.B,
      S: n.S,
      options: {
        ...rest,
        hiddenSize: n.hidden,
        numHeads: n.Hkv * n.G,
        numKvHeads: n.Hkv,
        headDim: 2 * n.half,
        rope: turn && {
          pairing: turn.pairing,
          base: turn.base,
          scaling: turn.scaling,
          rotaryDim: 2 * Math.min(turn.share, n.half),
        },
      },
      positions: typeof positions === "number" ? positions : positions.slice(0, n.B * n.S),
      kvLengths: kvLengths?.slice(0, n.B).map((length) => Math.min(length, n.S)),
      mask,
      seed,
    }));
}
/** Names and shapes of a problem's parameters, written apart from the layer's own list. */
export function shapesOf({ options }: Problem): Map<string, Shape> {
  const { hiddenSize, numHeads, numKvHeads, headDim, bias, qkNorm, sinks } = options;
  const [wide, narrow] = [numHeads * headDim, numKvHeads * headDim];
  const entries: [string, Shape, unknown][] = [
    ["q_proj.weight", [wide, hiddenSize], true],
    ["q_proj.bias", [wide], bias.q],
    ["k_proj.weight", [narrow, hiddenSize], true],
    ["k_proj.bias", [narrow], bias.k],
    ["v_proj.weight", [narrow, hiddenSize], true],
    ["v_proj.bias", [narrow], bias.v],
    ["o_proj.weight", [hiddenSize, wide], true],
    ["o_proj.bias", [hiddenSize], bias.o],
    ["q_norm.weight", [headDim], qkNorm],
    ["k_norm.weight", [headDim], qkNorm],
    ["sinks", [numHeads], sinks],
  ];
  return new Map(entries.flatMap(([name, shape, present]) => (present ? [[name, shape] as const] : [])));
}
function maskValues(rng: Rng, kind: Problem["mask"], n: number): Float64Array | undefined {
  if (kind === "bool") return Float64Array.from({ length: n }, () => (rng.uniform() < 0.7 ? 1 : 0));
  if (kind === "float")
    return Float64Array.from({ length: n }, () => (rng.uniform() < 0.8 ? rng.normal() : -Infinity));
  return undefined;
}
/** Normal values of unit scale, so that no term of a gradient is too small to be seen. */
export function valuesOf(problem: Problem): Values {
  const { B, S, options, mask, seed } = problem;
  const rng = createRng(seed);
  const size = (shape: Shape): number => shape.reduce((n, d) => n * d, 1);
  return {
    x: rng.normalArray(B * S * options.hiddenSize),
    parameters: new Map(
      [...shapesOf(problem)].map(([name, shape]) => [name, rng.normalArray(size(shape), 0, 0.5)]),
    ),
    mask: maskValues(rng, mask, B * S * S),
  };
}
/** float64 values as a tensor of a dtype. */
export function upload<D extends FloatDType>(
  values: Float64Array,
  shape: Shape,
  dtype: D,
  engine: Engine,
): Tensor<D> {
  return tensor(encodeArray(dtype, values) as Float64Array<ArrayBuffer>, shape, {
    dtype: dtype as FloatDType,
    engine,
  }) as Tensor as Tensor<D>;
}
/** What a layer's forward and vjp take besides x. */
export function callOptions(
  problem: Problem,
  values: Values,
  engine: Engine,
): { positions: number | Tensor<"int32">; attnMask?: Tensor; kvLengths?: Tensor<"int32"> } {
  const { B, S, positions, kvLengths, mask } = problem;
  const int32 = (list: readonly number[], shape: Shape): Tensor<"int32"> =>
    tensor(Int32Array.from(list), shape, { dtype: "int32", engine });
  const shape = [B, 1, S, S];
  return {
    positions: typeof positions === "number" ? positions : int32(positions, [B, S]),
    ...(kvLengths && { kvLengths: int32(kvLengths, [B]) }),
    ...(mask === "bool" && {
      attnMask: tensor(Uint8Array.from(values.mask!), shape, { dtype: "bool", engine }),
    }),
    ...(mask === "float" && { attnMask: tensor(values.mask!, shape, { dtype: "float64", engine }) }),
  };
}
/** The layer of a problem with the given parameters. */
export function layerOf(
  problem: Problem,
  parameters: Values["parameters"],
  dtype: FloatDType,
  engine: Engine,
): GroupedQueryAttention {
  const shapes = shapesOf(problem);
  const tensors = [...parameters].map(
    ([name, values]) => [name, upload(values, shapes.get(name)!, dtype, engine)] as const,
  );
  return GroupedQueryAttention.fromParameters(problem.options, new Map(tensors));
}
