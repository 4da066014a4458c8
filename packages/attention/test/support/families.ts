/**
 * Every kind of layer behind one face, for tests that split sequences: rows in, rows out, in one pass, through a paged
 * cache, and with contiguous keys and values. Options are random and causal.
 */
import type { KvCacheOptions } from "@heed/kvcache";
import {
  type BlockTableReader,
  type Engine,
  type FloatDType,
  pagedAttention,
  type Shape,
  tensor,
  type Tensor,
  toFloat64,
} from "@heed/tensor";
import { createRng, roundArray } from "@heed/testkit";
import fc, { type Arbitrary } from "fast-check";
import {
  AttentionHead,
  GlobalAttention,
  GroupedQueryAttention,
  LocalAttention,
  MultiHeadLatentAttention,
  type PastKeysValues,
  type PastLatentRows,
  ScaledDotProductAttention,
} from "../../src/index.ts";
import { latentProblems, latentShapes } from "./latent.ts";
import { type Problem, problems, shapesOf, upload } from "./problem.ts";

type Floats = Tensor<FloatDType>;
/** A layer of one family, on an engine and in a dtype. */
export interface Subject {
  /** Numbers in a row of the input and of the output. */
  readonly width: number;
  readonly outWidth: number;
  readonly layout: Pick<KvCacheOptions, "numKvHeads" | "headDim" | "valueHeadDim" | "valuesInKeys">;
  /** x [1, n, width] in one pass: [n * outWidth]. */
  onePass(x: Floats): Float64Array;
  /** The rows x [T, width] of a step: [T * outWidth]. */
  paged(x: Floats, step: BlockTableReader): Float64Array;
  /**
   * Steps over contiguous keys and values: x [B, most, width], of which each sequence uses `counts` rows, after
   * `starts` earlier ones. undefined: the family has none.
   */
  contiguous?(B: number): (x: Floats, counts: readonly number[], starts: readonly number[]) => Float64Array;
}
/** How a family makes a layer of a plain description, which prints whole in a counterexample. */
export interface Family {
  readonly descriptions: Arbitrary<object>;
  /** One that sees every earlier token, and shows it. */
  readonly open: object;
  /** `open` with a window of 4 tokens, the query's own included, where the family has windows. */
  readonly windowed?: object;
  /** Parameters are rounded to `precision` and stored in `dtype`. */
  build(description: object, dtype: FloatDType, engine: Engine, precision?: FloatDType): Subject;
}
const int32 = (values: readonly number[], engine: Engine): Tensor<"int32"> =>
  tensor(Int32Array.from(values), [values.length], { dtype: "int32", engine });

/** Parameters of the given shapes, of unit scale and the same in every dtype but for rounding. */
function parametersOf(
  shapes: ReadonlyMap<string, Shape>,
  seed: number,
  dtype: FloatDType,
  engine: Engine,
  precision: FloatDType = dtype,
): Map<string, Tensor> {
  const rng = createRng(seed);
  return new Map(
    [...shapes].map(([name, shape]) => {
      const size = shape.reduce((n, d) => n * d, 1);
      return [name, upload(roundArray(precision, rng.normalArray(size, 0, 0.5)), shape, dtype, engine)];
    }),
  );
}
interface WithPast {
  forward(x: Floats, o?: { readonly cache?: BlockTableReader }): Floats;
  forwardWithPresent(
    x: Floats,
    o: { readonly past?: PastKeysValues; readonly kvLengths?: Tensor<"int32"> },
  ): { readonly output: Floats; readonly present: PastKeysValues };
}
/** The calls of a layer that takes a past. */
function callsOf(layer: WithPast): Pick<Subject, "onePass" | "paged" | "contiguous"> {
  return {
    onePass: (x) => toFloat64(layer.forward(x)),
    paged: (x, cache) => toFloat64(layer.forward(x, { cache })),
    contiguous: () => {
      let past: PastKeysValues | undefined;
      return (x, counts) => {
        const kvLengths = int32(counts, x.engine);
        const { output, present } = layer.forwardWithPresent(x, { ...(past && { past }), kvLengths });
        past = present;
        return toFloat64(output);
      };
    },
  };
}
interface GroupedDescription {
  readonly problem: Problem;
  readonly windowSize?: number;
}
type Grouped = GroupedDescription["problem"]["options"];
/** Random options of a causal layer that attends over its own tokens. */
const groupedProblems: Arbitrary<GroupedDescription> = fc.record({
  problem: problems().map((p) => ({
    ...p,
    options: { ...p.options, isCausal: true, contextSize: undefined, rotateContext: false },
  })),
  windowSize: fc.integer({ min: 1, max: 5 }),
});
const OPEN: GroupedDescription = {
  windowSize: 100,
  problem: {
    B: 1,
    S: 1,
    positions: 0,
    kvLengths: undefined,
    mask: undefined,
    seed: 5,
    options: {
      hiddenSize: 6,
      numHeads: 4,
      numKvHeads: 2,
      headDim: 4,
      bias: { q: true, k: true, v: true, o: true },
      rope: { base: 100 },
      qkNorm: { unitOffset: true },
      sinks: true,
    },
  },
};
/** A family of GroupedQueryAttention and what is made of it. */
function grouped(
  make: (options: Grouped, windowSize: number, parameters: Map<string, Tensor>) => WithPast,
  windowed?: object,
): Family {
  return {
    descriptions: groupedProblems,
    open: OPEN,
    ...(windowed && { windowed }),
    build: (description, dtype, engine) => {
      const { problem, windowSize = 1 } = description as GroupedDescription;
      const { hiddenSize, numKvHeads, headDim } = problem.options;
      const parameters = parametersOf(shapesOf(problem), problem.seed, dtype, engine);
      return {
        width: hiddenSize,
        outWidth: hiddenSize,
        layout: { numKvHeads, headDim },
        ...callsOf(make(problem.options, windowSize, parameters)),
      };
    },
  };
}
const { window: _none, ...plainOptions } = OPEN.problem.options;
const withoutWindow = ({ window: _own, ...options }: Grouped): Omit<Grouped, "window"> => options;

interface HeadDescription {
  readonly hiddenSize: number;
  readonly headDim: number;
  readonly bias: boolean;
  readonly seed: number;
}
const head: Family = {
  descriptions: fc.record({
    hiddenSize: fc.integer({ min: 1, max: 6 }),
    headDim: fc.integer({ min: 1, max: 6 }),
    bias: fc.boolean(),
    seed: fc.nat({ max: 0xffff }),
  }),
  open: { hiddenSize: 6, headDim: 4, bias: true, seed: 5 },
  build: (description, dtype, engine) => {
    const { seed, ...options } = description as HeadDescription;
    const { hiddenSize, headDim, bias } = options;
    const shapes = new Map<string, Shape>();
    for (const p of ["q_proj", "k_proj", "v_proj"]) {
      shapes.set(`${p}.weight`, [headDim, hiddenSize]);
      if (bias) shapes.set(`${p}.bias`, [headDim]);
    }
    const layer = new AttentionHead(options, parametersOf(shapes, seed, dtype, engine));
    return {
      width: hiddenSize,
      outWidth: headDim,
      layout: { numKvHeads: 1, headDim },
      ...callsOf(layer as WithPast),
    };
  },
};
const latentOpen = {
  seed: 5,
  expand: undefined,
  options: {
    hiddenSize: 6,
    numHeads: 2,
    qLoraRank: 4,
    kvLoraRank: 6,
    qkNopeHeadDim: 4,
    qkRopeHeadDim: 2,
    vHeadDim: 5,
    bias: true,
    rope: { base: 100, pairing: "half" },
  },
} as const;
interface LatentDescription {
  readonly seed: number;
  readonly expand: boolean | undefined;
  readonly options: Parameters<typeof latentShapes>[0];
}
const latent: Family = {
  descriptions: fc
    .record({ problem: latentProblems(), expand: fc.constantFrom(false, undefined) })
    .map(({ problem: { seed, options }, expand }): LatentDescription => ({
      seed,
      expand,
      options: { ...options, isCausal: true },
    })),
  open: latentOpen,
  build: (description, dtype, engine, precision) => {
    const { seed, expand, options } = description as LatentDescription;
    const parameters = parametersOf(latentShapes(options), seed, dtype, engine, precision);
    const layer = new MultiHeadLatentAttention(options, parameters);
    return {
      width: options.hiddenSize,
      outWidth: options.hiddenSize,
      layout: layer.cacheLayout,
      onePass: (x) => toFloat64(layer.forward(x)),
      paged: (x, cache) => toFloat64(layer.forward(x, { cache, expand })),
      contiguous: () => {
        let past: PastLatentRows | undefined;
        return (x, counts) => {
          const kvLengths = int32(counts, x.engine);
          const { output, present } = layer.forwardWithPresent(x, { past, kvLengths });
          past = present;
          return toFloat64(output);
        };
      },
    };
  },
};
interface ScaledDescription {
  readonly Hkv: number;
  readonly G: number;
  readonly D: number;
  readonly Dv: number;
  readonly left: number | undefined;
  readonly softcap: number | undefined;
  readonly scale: number | undefined;
  readonly sinks: boolean;
  readonly alibi: boolean;
  readonly seed: number;
}
const maybe = <T>(arbitrary: Arbitrary<T>): Arbitrary<T | undefined> =>
  fc.option(arbitrary, { nil: undefined });
const upTo = (max: number): Arbitrary<number> => fc.integer({ min: 1, max });
const scaledOpen = { Hkv: 2, G: 2, D: 4, Dv: 3, sinks: true, alibi: false, seed: 5 };
const MAX_KEYS = 40;
/** Attention itself: a row of the input is a token's q, k and v. */
const scaled: Family = {
  descriptions: fc.record({
    Hkv: upTo(3),
    G: upTo(3),
    D: upTo(6),
    Dv: upTo(6),
    left: maybe(fc.nat({ max: 4 })),
    softcap: maybe(fc.constantFrom(1, 5)),
    scale: maybe(fc.constantFrom(0.3, 1)),
    sinks: fc.boolean(),
    alibi: fc.boolean(),
    seed: fc.nat({ max: 0xffff }),
  }),
  open: scaledOpen,
  windowed: { ...scaledOpen, left: 3 },
  build: (description, dtype, engine) => {
    const { Hkv, G, D, Dv, left, softcap, scale, sinks, alibi, seed } = description as ScaledDescription;
    const Hq = Hkv * G;
    const window = left === undefined ? undefined : { left };
    const layer = new ScaledDotProductAttention({ isCausal: true, window, softcap, scale });
    const accumulator = dtype === "float64" ? "float64" : "float32";
    const perHead = (n: number): Tensor =>
      upload(createRng(seed + n).uniformArray(Hq, 0.05, 1), [Hq], accumulator, engine);
    const call = { ...(sinks && { sinks: perHead(1) }), ...(alibi && { alibiSlopes: perHead(2) }) };
    const split = (x: Floats): [Floats, Floats, Floats] => {
      const axis = x.rank - 1;
      const part = (from: number, H: number, d: number): Floats =>
        x
          .slice(axis, from, from + H * d)
          .contiguous()
          .reshape([...x.shape.slice(0, -1), H, d]) as Floats;
      return [part(0, Hq, D), part(Hq * D, Hkv, D), part((Hq + Hkv) * D, Hkv, Dv)];
    };
    return {
      width: (Hq + Hkv) * D + Hkv * Dv,
      outWidth: Hq * Dv,
      layout: { numKvHeads: Hkv, headDim: D, valueHeadDim: Dv },
      onePass: (x) => toFloat64(layer.forward(...split(x), call)),
      paged: (x, step) => {
        const [q, k, v] = split(x);
        step.write(0, k, v);
        const { operation: _operation, layout: _layout, ...rules } = layer.attributes();
        return toFloat64(pagedAttention(q, step.view(0), { ...rules, ...call }));
      },
      contiguous: (B) => {
        // Room for all tokens, NaN where none is: a static cache.
        const room = (d: number): Float64Array => new Float64Array(B * MAX_KEYS * Hkv * d).fill(NaN);
        const [keys, values] = [room(D), room(Dv)];
        const put = (to: Float64Array, from: Floats, d: number, b: number, n: number, at: number): void => {
          const rows = toFloat64(from.slice(0, b, b + 1)).subarray(0, n * Hkv * d);
          to.set(rows, (b * MAX_KEYS + at) * Hkv * d);
        };
        return (x, counts, starts) => {
          const [q, k, v] = split(x);
          counts.forEach((n, b) => {
            put(keys, k, D, b, n, starts[b]!);
            put(values, v, Dv, b, n, starts[b]!);
          });
          const on = (all: Float64Array, d: number): Floats =>
            upload(all, [B, MAX_KEYS, Hkv, d], dtype, engine);
          const lengths = counts.map((n, b) => starts[b]! + n);
          return toFloat64(
            layer.forward(q, on(keys, D), on(values, Dv), {
              ...call,
              kvLengths: int32(lengths, engine),
              queryOffset: int32(starts, engine),
            }),
          );
        };
      },
    };
  },
};
/** By the name of the operation. */
export const FAMILIES: Readonly<Record<string, Family>> = {
  ScaledDotProductAttention: scaled,
  AttentionHead: head,
  GroupedQueryAttention: grouped((options, _, p) => new GroupedQueryAttention(options, p) as WithPast, {
    problem: { ...OPEN.problem, options: { ...plainOptions, window: { left: 3 } } },
  }),
  GlobalAttention: grouped((options, _, p) => new GlobalAttention(withoutWindow(options), p) as WithPast),
  LocalAttention: grouped(
    (options, windowSize, p) => new LocalAttention({ ...withoutWindow(options), windowSize }, p) as WithPast,
    { ...OPEN, windowSize: 4 },
  ),
  MultiHeadLatentAttention: latent,
};
