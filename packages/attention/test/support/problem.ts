/**
 * Random problems of GroupedQueryAttention: small sizes, every option, shrinking towards one head, one token
 * and no option.
 */
import { type Engine, type FloatDType, type Shape, tensor, type Tensor } from "@heed/tensor";
import { createRng, encodeArray, type Rng } from "@heed/testkit";
import fc, { type Arbitrary } from "fast-check";
import {
  GroupedQueryAttention,
  type GroupedQueryAttentionInputs,
  type GroupedQueryAttentionOptions,
} from "../../src/index.ts";

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
  /** Rows of the past, and how many of them each sequence uses. */
  readonly past?: { readonly P: number; readonly lengths?: readonly number[] | undefined } | undefined;
  /** Rows of the context and the first one's position, for options with a contextSize; none: the past is all. */
  readonly context?: { readonly rows: number; readonly position: number } | undefined;
  /** Documents of x's tokens [B * S], of the past's [B * P] and of the context's [B * rows]. */
  readonly documents?: Readonly<Record<"x" | "past" | "context", readonly number[]>> | undefined;
}
/**
 * Values of a problem: the input [B, S, hidden], parameters by name, a mask [B, 1, S, Sk], the past's keys and
 * values [B, P, Hkv, D], the context [B, rows, contextSize].
 */
export interface Values {
  readonly x: Float64Array;
  readonly parameters: ReadonlyMap<string, Float64Array>;
  readonly mask: Float64Array | undefined;
  readonly past: { readonly k: Float64Array; readonly v: Float64Array } | undefined;
  readonly context: Float64Array | undefined;
}
/** Rows of keys that a call itself adds: x's, or the context's. */
export function freshRows({ S, options, context }: Problem): number {
  return options.contextSize ? (context?.rows ?? 0) : S;
}
/** Rows of keys in all, Sk. */
export function keyRows(problem: Problem): number {
  return (problem.past?.P ?? 0) + freshRows(problem);
}
const maybe = <T>(arbitrary: Arbitrary<T>): Arbitrary<T | undefined> =>
  fc.option(arbitrary, { nil: undefined, freq: 2 });
const upTo = (max: number): Arbitrary<number> => fc.integer({ min: 1, max });
const MAX_B = 2;
const MAX_S = 5;

type Scalar<T> = { readonly [K in keyof T]: Arbitrary<T[K]> };

/** Arbitraries of the options that stand alone. */
function optionArbitraries() {
  const side = fc.integer({ min: 0, max: 3 });
  const biases = fc.record({ q: fc.boolean(), k: fc.boolean(), v: fc.boolean(), o: fc.boolean() });
  const all = fc.boolean().map((b) => ({ q: b, k: b, v: b, o: b }));
  return {
    bias: fc.oneof(all, biases),
    qkNorm: maybe(
      fc.record({
        eps: fc.constantFrom(1e-6, 1e-2),
        unitOffset: fc.boolean(),
        over: fc.constantFrom("head" as const, "projection" as const),
      }),
    ),
    tiedValue: fc.boolean(),
    mergedQkv: fc.boolean(),
    isCausal: fc.boolean(),
    window: maybe(fc.record({ left: side, right: side }, { requiredKeys: [] })),
    softcap: maybe(fc.constantFrom(1, 5)),
    scale: maybe(fc.constantFrom(0.3, 1)),
    sinks: fc.boolean(),
  } satisfies Scalar<object>;
}
function ropeArbitrary() {
  const scaling = fc.constantFrom(
    { type: "none" } as const,
    { type: "linear", factor: 4 } as const,
    { type: "llama3", factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 16 } as const,
    { type: "yarn", factor: 4, originalMaxPositions: 200, truncate: false } as const,
  );
  return fc.record({
    share: upTo(3),
    pairing: fc.constantFrom("half" as const, "interleaved" as const),
    base: fc.constantFrom(10000, 100),
    scaling,
  });
}
const numbers = (arbitrary: Arbitrary<number>, n: number): Arbitrary<number[]> =>
  fc.array(arbitrary, { minLength: n, maxLength: n });

/** What a call is given besides x, for the largest B and S. */
function callArbitraries() {
  const position = fc.integer({ min: 0, max: 20 });
  const document = fc.integer({ min: 0, max: 1 });
  const lengths = numbers(fc.integer({ min: 0, max: MAX_S }), MAX_B);
  return {
    positions: fc.oneof(position, numbers(position, MAX_B * MAX_S)),
    kvLengths: maybe(lengths),
    mask: maybe(fc.constantFrom("bool" as const, "float" as const)),
    seed: fc.nat({ max: 0xffff }),
    past: maybe(fc.record({ P: upTo(MAX_S), lengths: maybe(lengths) })),
    documents: maybe(
      fc.record({
        x: numbers(document, MAX_B * MAX_S),
        past: numbers(document, MAX_B * MAX_S),
        context: numbers(document, MAX_B * MAX_S),
      }),
    ),
    cross: maybe(fc.record({ size: upTo(5), rows: fc.nat({ max: MAX_S }), position, rotate: fc.boolean() })),
  } satisfies Scalar<object>;
}
/** Problems with B <= 2, S <= 5, P <= 5, Hkv <= 3, Hq / Hkv <= 3, D in 2, 4, 6. */
export function problems(): Arbitrary<Problem> {
  const sizes = fc.record({
    B: upTo(MAX_B),
    S: upTo(MAX_S),
    hidden: upTo(6),
    Hkv: upTo(3),
    G: upTo(3),
    half: upTo(3),
  });
  const options = fc.record(optionArbitraries());
  return fc
    .record({ sizes, options, rope: maybe(ropeArbitrary()), call: fc.record(callArbitraries()) })
    .map(({ sizes: n, options: o, rope: turn, call }) => {
      const { cross, past, documents, positions, kvLengths, mask, seed } = call;
      const bias = o.tiedValue ? { ...o.bias, v: false } : o.bias;
      const oneBias = bias.q === bias.k && (o.tiedValue || bias.k === bias.v);
      const rows = cross === undefined ? n.S : cross.rows;
      const noContext = cross !== undefined && rows === 0 && past !== undefined;
      const cut = (list: readonly number[], length: number): number[] => list.slice(0, n.B * length);
      const atMost = (list: readonly number[] | undefined, max: number): number[] | undefined =>
        list?.slice(0, n.B).map((length) => Math.min(length, max));
      return {
        B: n.B,
        S: n.S,
        options: {
          ...o,
          bias,
          hiddenSize: n.hidden,
          numHeads: n.Hkv * n.G,
          numKvHeads: n.Hkv,
          headDim: 2 * n.half,
          mergedQkv: o.mergedQkv && oneBias && cross === undefined,
          contextSize: cross?.size,
          rotateContext: turn !== undefined && cross !== undefined && cross.rotate,
          rope: turn && {
            pairing: turn.pairing,
            base: turn.base,
            scaling: turn.scaling,
            rotaryDim: 2 * Math.min(turn.share, n.half),
          },
        },
        positions: typeof positions === "number" ? positions : cut(positions, n.S),
        kvLengths: noContext ? undefined : atMost(kvLengths, rows),
        mask,
        seed,
        past: past && { P: past.P, lengths: atMost(past.lengths, past.P) },
        context: cross === undefined || noContext ? undefined : { rows, position: cross.position },
        documents: documents && {
          x: cut(documents.x, n.S),
          past: cut(documents.past, past?.P ?? 0),
          context: cut(documents.context, cross?.rows ?? 0),
        },
      };
    });
}
/** Names and shapes of a problem's parameters, written apart from the layer's own list. */
export function shapesOf({ options }: Problem): Map<string, Shape> {
  const { hiddenSize, numHeads, numKvHeads, headDim, bias, qkNorm, sinks } = options;
  const [wide, narrow] = [numHeads * headDim, numKvHeads * headDim];
  const merged = options.mergedQkv === true;
  const hasV = options.tiedValue !== true;
  const source = options.contextSize ?? hiddenSize;
  const perHead = qkNorm?.over !== "projection";
  const entries: [string, Shape, unknown][] = [
    ["qkv_proj.weight", [wide + (hasV ? 2 : 1) * narrow, hiddenSize], merged],
    ["qkv_proj.bias", [wide + (hasV ? 2 : 1) * narrow], merged && bias.q],
    ["q_proj.weight", [wide, hiddenSize], !merged],
    ["q_proj.bias", [wide], !merged && bias.q],
    ["k_proj.weight", [narrow, source], !merged],
    ["k_proj.bias", [narrow], !merged && bias.k],
    ["v_proj.weight", [narrow, source], !merged && hasV],
    ["v_proj.bias", [narrow], !merged && hasV && bias.v],
    ["o_proj.weight", [hiddenSize, wide], true],
    ["o_proj.bias", [hiddenSize], bias.o],
    ["q_norm.weight", [perHead ? headDim : wide], qkNorm],
    ["k_norm.weight", [perHead ? headDim : narrow], qkNorm],
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
  const { B, S, options, mask, seed, past, context } = problem;
  const rng = createRng(seed);
  const size = (shape: Shape): number => shape.reduce((n, d) => n * d, 1);
  const pastSize = B * (past?.P ?? 0) * options.numKvHeads * options.headDim;
  return {
    x: rng.normalArray(B * S * options.hiddenSize),
    parameters: new Map(
      [...shapesOf(problem)].map(([name, shape]) => [name, rng.normalArray(size(shape), 0, 0.5)]),
    ),
    mask: maskValues(rng, mask, B * S * keyRows(problem)),
    past: past && { k: rng.normalArray(pastSize), v: rng.normalArray(pastSize) },
    context: context && rng.normalArray(B * context.rows * options.contextSize!),
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
/** What a layer's forward and vjp take besides x; the past and the context in `dtype`. */
export function callOptions(
  problem: Problem,
  values: Values,
  engine: Engine,
  dtype: FloatDType = "float64",
): GroupedQueryAttentionInputs {
  const { B, S, positions, kvLengths, mask, past, context, documents, options } = problem;
  const int32 = (list: readonly number[], shape: Shape): Tensor<"int32"> =>
    tensor(Int32Array.from(list), shape, { dtype: "int32", engine });
  const shape = [B, 1, S, keyRows(problem)];
  const pastShape = [B, past?.P ?? 0, options.numKvHeads, options.headDim];
  return {
    positions: typeof positions === "number" ? positions : int32(positions, [B, S]),
    ...(kvLengths && { kvLengths: int32(kvLengths, [B]) }),
    ...(mask === "bool" && {
      attnMask: tensor(Uint8Array.from(values.mask!), shape, { dtype: "bool", engine }),
    }),
    ...(mask === "float" && { attnMask: tensor(values.mask!, shape, { dtype: "float64", engine }) }),
    ...(past && {
      past: {
        k: upload(values.past!.k, pastShape, dtype, engine),
        v: upload(values.past!.v, pastShape, dtype, engine),
        ...(past.lengths && { lengths: int32(past.lengths, [B]) }),
        ...(documents && { documents: int32(documents.past, [B, past.P]) }),
      },
    }),
    ...(context && {
      context: upload(values.context!, [B, context.rows, options.contextSize!], dtype, engine),
      ...(options.rotateContext && { contextPositions: context.position }),
      ...(documents && { contextDocuments: int32(documents.context, [B, context.rows]) }),
    }),
    ...(documents && { documents: int32(documents.x, [B, S]) }),
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
