/**
 * MultiHeadLatentAttention: random problems, small, shrinking towards one head, one token and no option; and the layer in float64 from
 * the test kit's oracles, in the expanded form.
 */
import { type Engine, type FloatDType, type Shape, tensor, type Tensor } from "@heed/tensor";
import { attentionOracle, createRng, inverseFrequencies, rmsNormOracle, ropeOracle } from "@heed/testkit";
import fc, { type Arbitrary } from "fast-check";
import {
  MultiHeadLatentAttention,
  type MultiHeadLatentAttentionInputs,
  type MultiHeadLatentAttentionOptions,
} from "../../src/index.ts";
import { joinedOracle, linearOracle } from "./oracle.ts";
import { upload } from "./problem.ts";

/** A problem as plain data, so that a counterexample prints whole. */
export interface LatentProblem {
  readonly B: number;
  readonly S: number;
  readonly options: MultiHeadLatentAttentionOptions & {
    readonly vHeadDim: number;
    readonly rope: { readonly base: number; readonly pairing: "half" | "interleaved" } | null;
  };
  /** The first token's position, or one position per token [B * S]. */
  readonly positions: number | readonly number[];
  readonly kvLengths: readonly number[] | undefined;
  readonly mask: "bool" | "float" | undefined;
  readonly seed: number;
  /** Rows of the past, and how many of them each sequence uses. */
  readonly past?: { readonly P: number; readonly lengths?: readonly number[] | undefined } | undefined;
  /** Documents of x's tokens [B * S] and of the past's [B * P]. */
  readonly documents?: Readonly<Record<"x" | "past", readonly number[]>> | undefined;
}
/**
 * Values of a problem: the input [B, S, hidden], parameters by name, a mask [B, 1, S, P + S], the past's latent rows [B, P, R] and
 * rotary keys [B, P, Dr].
 */
export interface LatentValues {
  readonly x: Float64Array;
  readonly parameters: ReadonlyMap<string, Float64Array>;
  readonly mask: Float64Array | undefined;
  readonly past?: { readonly latent: Float64Array; readonly rotaryKey: Float64Array } | undefined;
}
const maybe = <T>(arbitrary: Arbitrary<T>): Arbitrary<T | undefined> =>
  fc.option(arbitrary, { nil: undefined, freq: 2 });
const upTo = (max: number): Arbitrary<number> => fc.integer({ min: 1, max });
const MAX_B = 2;
const MAX_S = 5;

/** Rows of a past, and documents, for the largest B and S. */
function pastArbitraries() {
  const document = fc.integer({ min: 0, max: 1 });
  const many = (arbitrary: Arbitrary<number>, n: number): Arbitrary<number[]> =>
    fc.array(arbitrary, { minLength: n, maxLength: n });
  const lengths = many(fc.nat({ max: MAX_S }), MAX_B);
  return {
    past: maybe(fc.record({ P: upTo(MAX_S), lengths: maybe(lengths) })),
    documents: maybe(fc.record({ x: many(document, MAX_B * MAX_S), past: many(document, MAX_B * MAX_S) })),
  };
}
/** Problems with B <= 2, S <= 5, P <= 5, at most 3 heads, ranks and parts of heads of at most 6. */
export function latentProblems(): Arbitrary<LatentProblem> {
  const position = fc.integer({ min: 0, max: 20 });
  const options = fc.record({
    hiddenSize: upTo(6),
    numHeads: upTo(3),
    // The norm of a single number is its sign, which differences cannot take near 0.
    qLoraRank: fc.option(fc.integer({ min: 2, max: 5 })),
    kvLoraRank: fc.integer({ min: 2, max: 6 }),
    qkNopeHeadDim: upTo(4),
    qkRopeHeadDim: upTo(3).map((n) => 2 * n),
    vHeadDim: upTo(5),
    bias: fc.boolean(),
    rope: fc.option(
      fc.record({
        base: fc.constantFrom(10000, 100),
        pairing: fc.constantFrom("half" as const, "interleaved" as const),
      }),
      { freq: 4 },
    ),
    normEps: fc.constantFrom(1e-6, 1e-2),
    isCausal: fc.boolean(),
    scale: maybe(fc.constantFrom(0.3, 1)),
  });
  return fc
    .record({
      B: upTo(MAX_B),
      S: upTo(MAX_S),
      options,
      positions: fc.oneof(
        position,
        fc.array(position, { minLength: MAX_B * MAX_S, maxLength: MAX_B * MAX_S }),
      ),
      kvLengths: maybe(fc.array(fc.nat({ max: MAX_S }), { minLength: MAX_B, maxLength: MAX_B })),
      mask: maybe(fc.constantFrom("bool" as const, "float" as const)),
      seed: fc.nat({ max: 0xffff }),
      ...pastArbitraries(),
    })
    .map(({ positions, kvLengths, past, documents, ...rest }) => ({
      ...rest,
      positions: typeof positions === "number" ? positions : positions.slice(0, rest.B * rest.S),
      kvLengths: kvLengths?.slice(0, rest.B).map((length) => Math.min(length, rest.S)),
      past: past && {
        P: past.P,
        lengths: past.lengths?.slice(0, rest.B).map((length) => Math.min(length, past.P)),
      },
      documents: documents && {
        x: documents.x.slice(0, rest.B * rest.S),
        past: documents.past.slice(0, rest.B * (past?.P ?? 0)),
      },
    }));
}
/** Names and shapes of a problem's parameters, written apart from the layer's own list. */
export function latentShapes(o: LatentProblem["options"]): Map<string, Shape> {
  const D = o.qkNopeHeadDim + o.qkRopeHeadDim;
  const rank = o.qLoraRank ?? undefined;
  const entries: [string, Shape, unknown][] = [
    ["q_proj.weight", [o.numHeads * D, o.hiddenSize], rank === undefined],
    ["q_a_proj.weight", [rank ?? 0, o.hiddenSize], rank],
    ["q_a_proj.bias", [rank ?? 0], rank && o.bias],
    ["q_a_layernorm.weight", [rank ?? 0], rank],
    ["q_b_proj.weight", [o.numHeads * D, rank ?? 0], rank],
    ["kv_a_proj_with_mqa.weight", [o.kvLoraRank + o.qkRopeHeadDim, o.hiddenSize], true],
    ["kv_a_proj_with_mqa.bias", [o.kvLoraRank + o.qkRopeHeadDim], o.bias],
    ["kv_a_layernorm.weight", [o.kvLoraRank], true],
    ["kv_b_proj.weight", [o.numHeads * (o.qkNopeHeadDim + o.vHeadDim), o.kvLoraRank], true],
    ["o_proj.weight", [o.hiddenSize, o.numHeads * o.vHeadDim], true],
    ["o_proj.bias", [o.hiddenSize], o.bias],
  ];
  return new Map(entries.flatMap(([name, shape, present]) => (present ? [[name, shape] as const] : [])));
}
/** Normal values of unit scale, so that no term of a gradient is too small to be seen. */
export function latentValues(problem: LatentProblem): LatentValues {
  const { B, S, options, mask, seed, past } = problem;
  const P = past?.P ?? 0;
  const rng = createRng(seed);
  const maskValue = (): number => {
    const hidden = rng.uniform() < 0.25;
    if (mask === "bool") return hidden ? 0 : 1;
    return hidden ? -Infinity : rng.normal();
  };
  return {
    x: rng.normalArray(B * S * options.hiddenSize),
    parameters: new Map(
      [...latentShapes(options)].map(([name, shape]) => [
        name,
        rng.normalArray(
          shape.reduce((n, d) => n * d, 1),
          0,
          0.5,
        ),
      ]),
    ),
    mask: mask && Float64Array.from({ length: B * S * (P + S) }, maskValue),
    past: past && {
      latent: rng.normalArray(B * P * options.kvLoraRank),
      rotaryKey: rng.normalArray(B * P * options.qkRopeHeadDim),
    },
  };
}
/** Columns from .. to - 1 of rows of n. */
function columns(x: Float64Array, n: number, from: number, to: number): Float64Array {
  return x.filter((_, i) => i % n >= from && i % n < to);
}
/** Element i of row r is f(r, i). */
function rowsOf(count: number, width: number, f: (r: number, i: number) => number): Float64Array {
  return Float64Array.from({ length: count * width }, (_, n) => f(Math.floor(n / width), n % width));
}
/** The layer's output [B, S, hidden]. */
export function latentOracle(problem: LatentProblem, values: LatentValues): Float64Array {
  const { x, parameters, mask, past } = values;
  const { B, S, options, positions, kvLengths, documents } = problem;
  const P = problem.past?.P ?? 0;
  const Sk = P + S;
  const {
    hiddenSize,
    numHeads: H,
    kvLoraRank: R,
    qkNopeHeadDim: Dn,
    qkRopeHeadDim: Dr,
    vHeadDim: Dv,
  } = options;
  const D = Dn + Dr;
  const of = (name: string): Float64Array => parameters.get(name)!;
  const project = (name: string, rows: Float64Array, into: number): Float64Array =>
    linearOracle(rows, of(`${name}.weight`), of(`${name}.bias`), into);
  const norm = (name: string, rows: Float64Array, n: number): Float64Array =>
    rmsNormOracle(rows, { n, eps: options.normEps ?? 1e-6, weight: of(`${name}.weight`) }).y;
  const turn = (heads: Float64Array, count: number): Float64Array => {
    if (options.rope === null) return heads;
    const at = rowsOf(B * S, 1, (t) => (typeof positions === "number" ? positions + (t % S) : positions[t]!));
    const { pairing, base } = options.rope;
    const invFreq = inverseFrequencies(base, Dr);
    return ropeOracle(heads, { H: count, D: Dr, pairing, rotaryDim: Dr, positions: at, invFreq });
  };
  const rank = options.qLoraRank;
  const queries = rank
    ? project("q_b_proj", norm("q_a_layernorm", project("q_a_proj", x, hiddenSize), rank), rank)
    : project("q_proj", x, hiddenSize);
  const turned = turn(columns(queries, D, Dn, D), H);
  const q = rowsOf(B * S * H, D, (r, i) => (i < Dn ? queries[r * D + i]! : turned[r * Dr + i - Dn]!));

  const compressed = project("kv_a_proj_with_mqa", x, hiddenSize);
  const shared = turn(columns(compressed, R + Dr, R, R + Dr), 1);
  const latent = norm("kv_a_layernorm", columns(compressed, R + Dr, 0, R), R);
  const join = (before: ArrayLike<number> | undefined, fresh: ArrayLike<number>, n: number): Float64Array =>
    joinedOracle({ B, P, F: S, lengths: problem.past?.lengths }, before, fresh, n);
  const rotaryKey = join(past?.rotaryKey, shared, Dr);
  const kv = project("kv_b_proj", join(past?.latent, latent, R), R);
  const k = rowsOf(B * Sk * H, D, (r, i) =>
    i < Dn ? kv[r * (Dn + Dv) + i]! : rotaryKey[Math.floor(r / H) * Dr + i - Dn]!,
  );
  const starts = Array.from({ length: B }, (_, b) => problem.past?.lengths?.[b] ?? P);
  const keyDocuments = documents && join(documents.past, documents.x, 1);
  const isBoolean = problem.mask !== "float";
  const maskAt = (b: number, i: number, j: number): number => {
    if (documents && documents.x[b * S + i] !== keyDocuments![b * Sk + j]) return isBoolean ? 0 : -Infinity;
    return mask ? mask[(b * S + i) * Sk + j]! : 1;
  };
  const { out } = attentionOracle(q, k, columns(kv, Dn + Dv, Dn, Dn + Dv), {
    dims: { B, S, Sk, Hq: H, Hkv: H, D, Dv },
    scale: options.scale ?? undefined,
    isCausal: options.isCausal ?? true,
    queryOffset: starts,
    kvLengths: starts.map((start, b) => start + (kvLengths?.[b] ?? S)),
    mask: (mask ?? documents) && {
      kind: isBoolean ? "boolean" : "additive",
      at: (b, _h, i, j) => maskAt(b, i, j),
    },
  });
  return project("o_proj", out, H * Dv);
}
/** What a layer's forward and vjp take besides x; the past in `dtype`. */
export function latentCall(
  problem: LatentProblem,
  values: LatentValues,
  engine: Engine,
  dtype: FloatDType = "float64",
): MultiHeadLatentAttentionInputs {
  const { B, S, positions, kvLengths, mask, past, documents, options } = problem;
  const int32 = (list: readonly number[], shape: Shape): Tensor<"int32"> =>
    tensor(Int32Array.from(list), shape, { dtype: "int32", engine });
  const P = past?.P ?? 0;
  const shape = [B, 1, S, P + S];
  return {
    positions: typeof positions === "number" ? positions : int32(positions, [B, S]),
    ...(kvLengths && { kvLengths: int32(kvLengths, [B]) }),
    ...(mask === "bool" && {
      attnMask: tensor(Uint8Array.from(values.mask!), shape, { dtype: "bool", engine }),
    }),
    ...(mask === "float" && { attnMask: tensor(values.mask!, shape, { dtype: "float64", engine }) }),
    ...(past && {
      past: {
        latent: upload(values.past!.latent, [B, P, options.kvLoraRank], dtype, engine),
        rotaryKey: upload(values.past!.rotaryKey, [B, P, options.qkRopeHeadDim], dtype, engine),
        ...(past.lengths && { lengths: int32(past.lengths, [B]) }),
        ...(documents && { documents: int32(documents.past, [B, P]) }),
      },
    }),
    ...(documents && { documents: int32(documents.x, [B, S]) }),
  };
}
/** The layer of a problem with the given parameters. */
export function latentLayer(
  { options }: Pick<LatentProblem, "options">,
  parameters: LatentValues["parameters"],
  dtype: FloatDType,
  engine: Engine,
): MultiHeadLatentAttention {
  const shapes = latentShapes(options);
  const tensors = [...parameters].map(
    ([name, values]) => [name, upload(values, shapes.get(name)!, dtype, engine)] as const,
  );
  return MultiHeadLatentAttention.fromParameters(options, new Map<string, Tensor>(tensors));
}
