import { ArgumentError } from "@heed/tensor";
import { notNegative, positive } from "./check.ts";
import type {
  DynamicNtkScaling,
  Llama3Scaling,
  LongRopeScaling,
  RopeScaling,
  YarnScaling,
} from "./rope-scaling.ts";

const WHAT = "RotaryEmbedding";
/** Throws ArgumentError unless a field's value makes sense. */
export type RopeField = (name: string, value: unknown, rotaryDim: number) => void;
/** What the library knows about one kind of scaling. */
export interface RopeRule<T extends RopeScaling> {
  /** Every field besides `type`, in the order in which attributes list them. */
  readonly fields: { readonly [K in Exclude<keyof T, "type">]-?: RopeField };
  /** What no field shows alone. */
  check?(scaling: T, rotaryDim: number, base: number): void;
  /** Radians per position of each pair; `length` is the decisive one. */
  frequencies(scaling: T, rotaryDim: number, base: number, length: number): Float64Array;
  /** The length that stands for all with the same frequencies. Absent: none decides. */
  decisiveLength?(scaling: T, length: number): number;
  /** Absent: 1. */
  attentionFactor?(scaling: T): number;
}
type Kind<T extends RopeScaling["type"]> = Extract<RopeScaling, { readonly type: T }>;

const number: RopeField = (name, value) => void positive(WHAT, name, value as number);
const optional =
  (field: RopeField): RopeField =>
  (name, value, rotaryDim) => {
    if (value !== undefined) field(name, value, rotaryDim);
  };
const orZero: RopeField = (name, value) => void notNegative(WHAT, name, value as number);
const flag: RopeField = (name, value) => {
  if (typeof value !== "boolean")
    throw new ArgumentError(`[${WHAT}] ${name} must be true or false; got ${String(value)}`, { value });
};
const perPair: RopeField = (name, value, rotaryDim) => {
  const length = Array.isArray(value) ? value.length : undefined;
  if (length !== rotaryDim / 2) {
    throw new ArgumentError(
      `[${WHAT}] ${name} must list rotaryDim / 2 = ${rotaryDim / 2} numbers; got ${length ?? String(value)}`,
      { value },
    );
  }
  (value as number[]).forEach((factor, j) => positive(WHAT, `${name}[${j}]`, factor));
};

function plain(rotaryDim: number, base: number): Float64Array {
  return Float64Array.from({ length: rotaryDim / 2 }, (_, j) => base ** ((-2 * j) / rotaryDim));
}
/** Frequencies of a base that grows by `stretch`, as the lowest of them demands. */
function ntk(rotaryDim: number, base: number, stretch: number): Float64Array {
  return plain(rotaryDim, base * stretch ** (rotaryDim / (rotaryDim - 2)));
}
function twoPairs(_: RopeScaling, rotaryDim: number): void {
  if (rotaryDim < 4)
    throw new ArgumentError(`[${WHAT}] NTK scaling needs a rotaryDim of at least 4; got ${rotaryDim}`, {
      rotaryDim,
    });
}
function dynamic(s: DynamicNtkScaling, rotaryDim: number, base: number, length: number): Float64Array {
  const { factor, originalMaxPositions: n } = s;
  return ntk(rotaryDim, base, (factor * length) / n - (factor - 1));
}
/** Share of the divided frequency in each pair's: 0 up to the pair `low`, 1 from `high` on. */
function yarnRamp(s: YarnScaling, rotaryDim: number, base: number): (pair: number) => number {
  const { originalMaxPositions: n, betaFast = 32, betaSlow = 1, truncate = true } = s;
  const pairOf = (turns: number): number =>
    (rotaryDim * Math.log(n / (turns * 2 * Math.PI))) / (2 * Math.log(base));
  const [first, last] = [pairOf(betaFast), pairOf(betaSlow)];
  const low = Math.max(truncate ? Math.floor(first) : first, 0);
  const high = Math.min(truncate ? Math.ceil(last) : last, rotaryDim - 1); // not rotaryDim / 2 - 1: as published
  if (low >= high) return (pair) => (pair > high ? 1 : 0);
  return (pair) => Math.min(Math.max((pair - low) / (high - low), 0), 1);
}
function yarn(s: YarnScaling, rotaryDim: number, base: number): Float64Array {
  const ramp = yarnRamp(s, rotaryDim, base);
  return plain(rotaryDim, base).map((f, pair) => (f / s.factor) * ramp(pair) + f * (1 - ramp(pair)));
}
function checkYarn({ betaFast = 32, betaSlow = 1 }: YarnScaling, _: number, base: number): void {
  if (betaFast < betaSlow) {
    throw new ArgumentError(
      `[${WHAT}] scaling.betaFast must be at least betaSlow; got ${betaFast} and ${betaSlow}`,
      { betaFast, betaSlow },
    );
  }
  if (base <= 1) throw new ArgumentError(`[${WHAT}] YaRN needs a base above 1; got ${base}`, { base });
}
function yarnAttentionFactor(s: YarnScaling): number {
  const of = (mscale: number): number => (s.factor <= 1 ? 1 : 0.1 * mscale * Math.log(s.factor) + 1);
  return s.attentionFactor ?? (s.mscale && s.mscaleAllDim ? of(s.mscale) / of(s.mscaleAllDim) : of(1));
}
function llama3(s: Llama3Scaling, rotaryDim: number, base: number): Float64Array {
  return plain(rotaryDim, base).map((f) => {
    const turns = (s.originalMaxPositions * f) / (2 * Math.PI); // turns within the original context
    if (turns > s.highFreqFactor) return f;
    if (turns < s.lowFreqFactor) return f / s.factor;
    const share = (turns - s.lowFreqFactor) / (s.highFreqFactor - s.lowFreqFactor);
    return (1 - share) * (f / s.factor) + share * f;
  });
}
function checkLlama3({ highFreqFactor, lowFreqFactor }: Llama3Scaling): void {
  if (highFreqFactor <= lowFreqFactor) {
    throw new ArgumentError(
      `[${WHAT}] scaling.highFreqFactor must exceed lowFreqFactor; got ${highFreqFactor} and ${lowFreqFactor}`,
      { highFreqFactor, lowFreqFactor },
    );
  }
}
function longRope(s: LongRopeScaling, rotaryDim: number, base: number, length: number): Float64Array {
  const factors = length > s.originalMaxPositions ? s.longFactor : s.shortFactor;
  return plain(rotaryDim, base).map((f, pair) => f / factors[pair]!);
}
function checkLongRope({ originalMaxPositions }: LongRopeScaling): void {
  if (originalMaxPositions <= 1) {
    throw new ArgumentError(
      `[${WHAT}] scaling.originalMaxPositions must exceed 1; got ${originalMaxPositions}`,
      { originalMaxPositions },
    );
  }
}
function longRopeAttentionFactor(s: LongRopeScaling): number {
  const { factor, originalMaxPositions: n } = s;
  return s.attentionFactor ?? (factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(n)));
}
/** A rule for every kind of scaling. */
export const ROPE_RULES: { readonly [T in RopeScaling["type"]]: RopeRule<Kind<T>> } = {
  none: { fields: {}, frequencies: (_, rotaryDim, base) => plain(rotaryDim, base) },
  linear: {
    fields: { factor: number },
    frequencies: ({ factor }, rotaryDim, base) => plain(rotaryDim, base).map((f) => f / factor),
  },
  ntk: {
    fields: { factor: number },
    check: twoPairs,
    frequencies: ({ factor }, rotaryDim, base) => ntk(rotaryDim, base, factor),
  },
  dynamic: {
    fields: { factor: number, originalMaxPositions: number, length: optional(number) },
    check: twoPairs,
    frequencies: dynamic,
    decisiveLength: (s, length) => Math.max(length, s.originalMaxPositions),
  },
  yarn: {
    fields: {
      factor: number,
      originalMaxPositions: number,
      betaFast: optional(number),
      betaSlow: optional(number),
      truncate: optional(flag),
      mscale: optional(orZero),
      mscaleAllDim: optional(orZero),
      attentionFactor: optional(number),
    },
    check: checkYarn,
    frequencies: yarn,
    attentionFactor: yarnAttentionFactor,
  },
  llama3: {
    fields: { factor: number, lowFreqFactor: number, highFreqFactor: number, originalMaxPositions: number },
    check: checkLlama3,
    frequencies: llama3,
  },
  longrope: {
    fields: {
      shortFactor: perPair,
      longFactor: perPair,
      originalMaxPositions: number,
      factor: number,
      attentionFactor: optional(number),
      length: optional(number),
    },
    check: checkLongRope,
    frequencies: longRope,
    decisiveLength: (s, length) => (length > s.originalMaxPositions ? s.originalMaxPositions + 1 : 0),
    attentionFactor: longRopeAttentionFactor,
  },
};
