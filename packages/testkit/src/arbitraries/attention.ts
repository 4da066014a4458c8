/** Random attention problems: small sizes, every option, shrinking towards one head, one query and no option. */
import fc from "fast-check";
import type { Arbitrary } from "fast-check";
import { attentionLengths } from "../oracle/attention-problem.ts";
import type { AttentionDims, AttentionOracleOptions, OracleMask } from "../oracle/attention-problem.ts";
import type { DropoutOracle } from "../oracle/dropout.ts";
import { broadcastMask } from "../oracle/mask.ts";
import { createRng } from "../rng.ts";
import type { Rng } from "../rng.ts";

/** An option that {@link attentionProblem} may be told to leave out. */
export type AttentionFeature =
  | "scale"
  | "softcap"
  | "isCausal"
  | "window"
  | "sinkTokens"
  | "queryOffset"
  | "kvLengths"
  | "mask"
  | "alibi"
  | "sinks"
  | "dropout"
  | "groups"
  | "valueDim";

/** An attention problem as plain data, so that a counterexample prints whole. */
export interface AttentionProblem {
  readonly dims: AttentionDims;
  readonly scale?: number | undefined;
  readonly softcap?: number | undefined;
  readonly isCausal: boolean;
  readonly window?: { readonly left?: number; readonly right?: number } | undefined;
  readonly sinkTokens?: number | undefined;
  readonly queryOffset?: number | readonly number[] | undefined;
  readonly kvLengths?: readonly number[] | undefined;
  /** Kind and shape, rank 2 to 4, broadcasting right-aligned to [B, Hq, S, Sk]. */
  readonly mask?: { readonly kind: OracleMask["kind"]; readonly shape: readonly number[] } | undefined;
  readonly alibi: boolean;
  readonly sinks: boolean;
  readonly dropout?: DropoutOracle | undefined;
  /** Seed of the values. */
  readonly seed: number;
}

/** Largest sizes of {@link attentionProblem}, and options it leaves out. */
export interface AttentionProblemLimits {
  /** Default 2. */
  readonly maxB?: number | undefined;
  /** Default 6. */
  readonly maxS?: number | undefined;
  /** Default 9. */
  readonly maxSk?: number | undefined;
  /** Default 3. */
  readonly maxHkv?: number | undefined;
  /** Default 3. */
  readonly maxG?: number | undefined;
  /** Default 8. */
  readonly maxD?: number | undefined;
  readonly without?: readonly AttentionFeature[] | undefined;
}

const axis = (max: number): Arbitrary<number> => fc.integer({ min: 1, max });

function dimsArbitrary(
  limits: AttentionProblemLimits,
  without: ReadonlySet<string>,
): Arbitrary<AttentionDims> {
  const { maxB = 2, maxS = 6, maxSk = 9, maxHkv = 3, maxG = 3, maxD = 8 } = limits;
  return fc
    .record({
      B: axis(maxB),
      S: axis(maxS),
      Sk: axis(maxSk),
      Hkv: axis(maxHkv),
      G: axis(without.has("groups") ? 1 : maxG),
      D: axis(maxD),
      Dv: without.has("valueDim")
        ? fc.constant(undefined)
        : fc.option(axis(maxD), { nil: undefined, freq: 2 }),
    })
    .map(({ G, Dv, ...dims }) => ({ ...dims, Hq: dims.Hkv * G, Dv: Dv ?? dims.D }));
}

function maskArbitrary(): Arbitrary<{ kind: OracleMask["kind"]; rank: number; full: boolean[] }> {
  return fc.record({
    kind: fc.constantFrom("boolean" as const, "additive" as const),
    rank: fc.integer({ min: 2, max: 4 }),
    full: fc.array(fc.boolean(), { minLength: 4, maxLength: 4 }),
  });
}

/**
 * Attention problems within `limits`. Half of the draws have any given option. Lengths may be 0, offsets negative,
 * windows narrow: rows that see nothing are common.
 */
export function attentionProblem(limits: AttentionProblemLimits = {}): Arbitrary<AttentionProblem> {
  const without = new Set<string>(limits.without);
  const { maxB = 2, maxSk = 9 } = limits;
  const optional = <T>(feature: AttentionFeature, arbitrary: Arbitrary<T>): Arbitrary<T | undefined> =>
    without.has(feature) ? fc.constant(undefined) : fc.option(arbitrary, { nil: undefined, freq: 2 });
  const flag = (feature: AttentionFeature): Arbitrary<boolean> =>
    without.has(feature) ? fc.constant(false) : fc.boolean();
  const perBatch = (arbitrary: Arbitrary<number>): Arbitrary<number[]> =>
    fc.array(arbitrary, { minLength: maxB, maxLength: maxB });
  const side = fc.integer({ min: 0, max: maxSk });
  const offset = fc.integer({ min: -3, max: maxSk });
  return fc
    .record({
      dims: dimsArbitrary(limits, without),
      scale: optional("scale", fc.constantFrom(1, 0.125, 0.7)),
      softcap: optional("softcap", fc.constantFrom(1, 4, 30)),
      isCausal: flag("isCausal"),
      window: optional("window", fc.record({ left: side, right: side }, { requiredKeys: [] })),
      sinkTokens: optional("sinkTokens", fc.integer({ min: 0, max: 4 })),
      queryOffset: optional("queryOffset", fc.oneof(offset, perBatch(offset))),
      kvLengths: optional("kvLengths", perBatch(fc.integer({ min: 0, max: maxSk }))),
      mask: optional("mask", maskArbitrary()),
      alibi: flag("alibi"),
      sinks: flag("sinks"),
      dropout: optional(
        "dropout",
        fc.record({ probability: fc.constantFrom(0.1, 0.5, 0.9), seed: fc.maxSafeNat() }),
      ),
      seed: fc.nat({ max: 0xffff }),
    })
    .map(fitToDims);
}

type Drawn = Omit<AttentionProblem, "mask"> & {
  readonly mask?: { kind: OracleMask["kind"]; rank: number; full: boolean[] } | undefined;
};

/** Cuts per-batch lists, lengths and mask axes down to the sizes drawn beside them. */
function fitToDims({ mask, queryOffset, kvLengths, ...rest }: Drawn): AttentionProblem {
  const { B, Sk, Hq, S } = rest.dims;
  const axes = [B, Hq, S, Sk].map((size, i) => (mask?.full[i] ? size : 1));
  return {
    ...rest,
    queryOffset: typeof queryOffset === "object" ? queryOffset.slice(0, B) : queryOffset,
    kvLengths: kvLengths?.slice(0, B).map((length) => Math.min(length, Sk)),
    mask: mask && { kind: mask.kind, shape: axes.slice(4 - mask.rank) },
  };
}

/** The values of an {@link AttentionProblem}. */
export interface AttentionData {
  /** [B, S, Hq, D] */
  readonly q: Float64Array;
  /** [B, Sk, Hkv, D] */
  readonly k: Float64Array;
  /** [B, Sk, Hkv, Dv] */
  readonly v: Float64Array;
  /** A random upstream gradient [B, S, Hq, Dv]. */
  readonly dOut: Float64Array;
  /** The mask's own data, in its broadcastable shape; 0 and 1, or numbers and -inf. */
  readonly mask?: {
    readonly kind: OracleMask["kind"];
    readonly shape: readonly number[];
    readonly data: Float64Array;
  };
  /** [Hq] */
  readonly alibiSlopes?: Float64Array;
  /** [Hq] */
  readonly sinks?: Float64Array;
  /** The same problem in the oracle's terms. */
  readonly options: AttentionOracleOptions;
}

/** A third of a mask hides: enough for rows that see nothing, not so much that most do. */
function maskData(kind: OracleMask["kind"], length: number, rng: Rng): Float64Array {
  const hidden = (): boolean => rng.uniform() < 1 / 3;
  const value = kind === "boolean" ? () => (hidden() ? 0 : 1) : () => (hidden() ? -Infinity : rng.normal());
  return Float64Array.from({ length }, value);
}

/**
 * ALiBi slopes [Hq] as Press et al. 2021 (arXiv:2108.12409) publish them: 2^(-8 (h + 1) / n) for n heads, a power of
 * two. Between powers, the slopes of the power below come first, then every other one of the power above.
 */
export function alibiSlopesFor(Hq: number): Float64Array {
  const below = 2 ** Math.floor(Math.log2(Hq));
  const slope = (h: number): number =>
    h < below ? 2 ** ((-8 * (h + 1)) / below) : 2 ** ((-8 * (2 * (h - below) + 1)) / (2 * below));
  return Float64Array.from({ length: Hq }, (_, h) => slope(h));
}

/** Draws the values of a problem from its seed: the same problem always gives the same values. */
export function attentionData(problem: AttentionProblem): AttentionData {
  const { dims, mask: maskShape, alibi, sinks: hasSinks, seed, ...rest } = problem;
  const rng = createRng(seed);
  const lengths = attentionLengths(dims);
  const q = rng.normalArray(lengths.q);
  const k = rng.normalArray(lengths.k);
  const v = rng.normalArray(lengths.v);
  const dOut = rng.normalArray(lengths.out);
  const size = maskShape ? maskShape.shape.reduce((a, n) => a * n, 1) : 0;
  const mask = maskShape && { ...maskShape, data: maskData(maskShape.kind, size, rng) };
  const alibiSlopes = alibi ? alibiSlopesFor(dims.Hq) : undefined;
  const sinks = hasSinks ? rng.normalArray(dims.Hq) : undefined;
  const options: AttentionOracleOptions = {
    dims,
    ...rest,
    mask: mask && broadcastMask(mask.kind, mask.data, mask.shape, dims),
    alibiSlopes,
    sinks,
  };
  return {
    q,
    k,
    v,
    dOut,
    options,
    ...(mask && { mask }),
    ...(alibiSlopes && { alibiSlopes }),
    ...(sinks && { sinks }),
  };
}
