/** Norm, rotation and append in one: the kernel by the composed form, bit for bit, and that by the oracles of its parts. */
import { normRopeAppend, type NormRopeAppendOptions, type Tensor } from "@heed/tensor";
import fc from "fast-check";
import { viewRecipe, type ViewRecipe } from "../arbitraries/views.ts";
import { assertClose } from "../compare.ts";
import { type FloatDType, floatDTypes, roundArray } from "../dtype.ts";
import { TestkitError } from "../errors.ts";
import { inverseFrequencies, type RopePairing, ropeTableOracle } from "../oracle/rope.ts";
import { rmsNormOracle } from "../oracle/rms-norm.ts";
import { createRng, type Rng } from "../rng.ts";
import { toleranceFor } from "../tolerance.ts";
import {
  bothForms,
  largest,
  place,
  placeInt32,
  placeView,
  results,
  type Subject,
  wideOf,
} from "./subject.ts";

/** Which components of q or k are normalised together. */
type Over = "none" | "head" | "all";
/** Rows q [T, Hq, D], k [T, Hkv, D], v [T, Hkv, Dv] for distinct slots of P pages; -1 skips a row. */
export interface NormRopeAppendProblem {
  readonly Hq: number;
  readonly Hkv: number;
  readonly D: number;
  readonly Dv: number;
  readonly P: number;
  readonly pageSize: number;
  readonly slots: readonly number[]; // [T]
  readonly pageDtype: FloatDType;
  readonly norm: { readonly q: Over; readonly k: Over; readonly dtype: FloatDType };
  readonly unitOffset: boolean;
  readonly eps: number;
  /** rotaryDim / 2; undefined for no rotation. */
  readonly half: number | undefined;
  readonly pairing: RopePairing;
  /** q, k and v as slices of one product [T, Hq * D + Hkv * D + Hkv * Dv], or each in strides of its own. */
  readonly isMerged: boolean;
  readonly views: { readonly q: ViewRecipe; readonly k: ViewRecipe; readonly v: ViewRecipe };
  readonly seed: number;
}
/** Problems with every mix of norms and rotation, one token or several, heads of up to `maxD` components. */
export function normRopeAppendProblem(maxD: number = 24): fc.Arbitrary<NormRopeAppendProblem> {
  const small = fc.integer({ min: 1, max: 4 });
  const over = fc.constantFrom<Over>("none", "head", "all");
  const dtype = fc.constantFrom(...floatDTypes);
  return fc
    .record({
      Hq: small,
      Hkv: small,
      D: fc.integer({ min: 1, max: maxD }),
      Dv: fc.integer({ min: 1, max: maxD }),
      P: small,
      pageSize: small,
      T: fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 16 })),
      skipped: fc.array(fc.nat({ max: 15 }), { maxLength: 3 }),
      seed: fc.nat({ max: 0xffff }),
    })
    .chain(({ T, skipped, ...p }) => {
      const places = createRng(p.seed).permutation(p.P * p.pageSize);
      const slots = Array.from(places)
        .slice(0, T)
        .map((slot, t) => (skipped.includes(t) ? -1 : slot));
      const rows = slots.length;
      const known = { ...p, slots };
      return fc.record({
        ...(Object.fromEntries(Object.entries(known).map(([key, x]) => [key, fc.constant(x)])) as {
          [K in keyof typeof known]: fc.Arbitrary<(typeof known)[K]>;
        }),
        pageDtype: dtype,
        norm: fc.record({ q: over, k: over, dtype }),
        unitOffset: fc.boolean(),
        eps: fc.constantFrom(1e-6, 0.25),
        half: fc.oneof(fc.constantFrom(undefined, Math.floor(p.D / 2)), fc.nat({ max: Math.floor(p.D / 2) })),
        pairing: fc.constantFrom<RopePairing>("half", "interleaved"),
        isMerged: fc.boolean(),
        views: fc.record({
          q: viewRecipe([rows, p.Hq, p.D]),
          k: viewRecipe([rows, p.Hkv, p.D]),
          v: viewRecipe([rows, p.Hkv, p.Dv]),
        }),
      });
    });
}
const ROWS = 40; // of the tables of angles

/** The numbers of a problem, and what they should become before the roundings of the storage dtype. */
function draw(p: NormRopeAppendProblem, dtype: FloatDType) {
  const rng = createRng(p.seed);
  const T = p.slots.length;
  const heads = { q: p.Hq, k: p.Hkv, v: p.Hkv };
  const widths = { q: p.D, k: p.D, v: p.Dv };
  const rows = (name: "q" | "k" | "v"): Float64Array =>
    roundArray(dtype, rng.normalArray(T * heads[name] * widths[name]));
  const given = { q: rows("q"), k: rows("k"), v: rows("v") };
  const weights = { q: weight(rng, p, dtype, "q"), k: weight(rng, p, dtype, "k") };
  const tables = tablesOf(p, dtype);
  const positions = Array.from({ length: T }, () => rng.int(0, ROWS - 1));
  const expected = (name: "q" | "k"): Float64Array => {
    const factors = weights[name];
    const { eps, unitOffset, D, pairing } = p;
    const y =
      factors === undefined
        ? given[name]
        : rmsNormOracle(given[name], { n: factors.length, eps, weight: factors, unitOffset }).y;
    if (tables === undefined) return y;
    const at = (t: Float64Array): Float64Array =>
      Float64Array.from(
        { length: T * tables.half },
        (_, i) => t[positions[Math.floor(i / tables.half)]! * tables.half + (i % tables.half)]!,
      );
    const options = { H: heads[name], D, pairing, rotaryDim: 2 * tables.half };
    return ropeTableOracle(y, at(tables.cos), at(tables.sin), options);
  };
  return { given, weights, tables, positions, expected, rng };
}
function weight(
  rng: Rng,
  p: NormRopeAppendProblem,
  dtype: FloatDType,
  name: "q" | "k",
): Float64Array | undefined {
  const over = p.norm[name];
  if (over === "none") return undefined;
  const values = rng.normalArray(over === "head" ? p.D : p.D * (name === "q" ? p.Hq : p.Hkv));
  return roundArray(p.norm.dtype, roundArray(wideOf(dtype), values)); // read in the accumulator's dtype
}
function tablesOf({ half }: NormRopeAppendProblem, dtype: FloatDType) {
  if (half === undefined) return undefined;
  const frequencies = inverseFrequencies(10000, 2 * half);
  const table = (f: (angle: number) => number): Float64Array =>
    roundArray(
      wideOf(dtype),
      Float64Array.from({ length: ROWS * half }, (_, i) => f(Math.floor(i / half) * frequencies[i % half]!)),
    );
  return { half, cos: table(Math.cos), sin: table(Math.sin) };
}
type Drawn = ReturnType<typeof draw>;

/** q, k and v on the engine. */
function placeRows({ engine, dtype }: Subject, p: NormRopeAppendProblem, { given }: Drawn): Tensor[] {
  const names = ["q", "k", "v"] as const;
  if (!p.isMerged) return names.map((name) => placeView(engine, dtype, given[name], p.views[name]));
  const T = p.slots.length;
  const widths = names.map((name) => given[name].length / T);
  const product = Array.from({ length: T }, (_, t) =>
    names.map((name, i) => [...given[name].subarray(t * widths[i]!, (t + 1) * widths[i]!)]),
  ).flat(2);
  const all = place(engine, dtype, product, [T, widths.reduce((a, b) => a + b, 0)]);
  let at = 0;
  return names.map((_, i) =>
    all
      .slice(1, at, (at += widths[i]!))
      .reshape([T, i === 0 ? p.Hq : p.Hkv, widths[i]! / (i === 0 ? p.Hq : p.Hkv)]),
  );
}
function options({ engine, dtype }: Subject, p: NormRopeAppendProblem, d: Drawn): NormRopeAppendOptions {
  const { weights, tables, positions } = d;
  const factors = (name: "q" | "k"): Tensor | undefined => {
    const w = weights[name];
    const shape = p.norm[name] === "head" ? [p.D] : [name === "q" ? p.Hq : p.Hkv, p.D];
    return w && place(engine, p.norm.dtype, w, shape);
  };
  return {
    norm: { q: factors("q"), k: factors("k"), eps: p.eps, unitOffset: p.unitOffset },
    rope: tables && {
      cos: place(engine, wideOf(dtype), tables.cos, [ROWS, tables.half]),
      sin: place(engine, wideOf(dtype), tables.sin, [ROWS, tables.half]),
      positions: placeInt32(engine, positions),
      pairing: p.pairing,
    },
  };
}
/** What pages [P, H, pageSize, width] hold after rows [T, H, width] went to their slots. */
function appended(
  old: Float64Array,
  rows: Float64Array,
  p: NormRopeAppendProblem,
  width: number,
): Float64Array {
  const pages = old.slice();
  p.slots.forEach((slot, t) => {
    if (slot < 0) return;
    for (let h = 0; h < p.Hkv; h++) {
      const to = ((Math.floor(slot / p.pageSize) * p.Hkv + h) * p.pageSize + (slot % p.pageSize)) * width;
      pages.set(rows.subarray((t * p.Hkv + h) * width, (t * p.Hkv + h + 1) * width), to);
    }
  });
  return pages;
}
/**
 * Throws a TestkitError with code "mismatch" unless queries and pages of the kernel are those of the composed form bit for bit, and these
 * within the roundings of their stages of the oracle; slots that are not named must keep what they held.
 */
export async function checkNormRopeAppend(subject: Subject, p: NormRopeAppendProblem): Promise<void> {
  const { engine, dtype } = subject;
  const d = draw(p, dtype);
  const blank = (width: number): Float64Array =>
    roundArray(p.pageDtype, d.rng.normalArray(p.P * p.Hkv * p.pageSize * width));
  const old = { k: blank(p.D), v: blank(p.Dv) };
  const { fused, composed } = await bothForms(subject, (mode) =>
    results(() => {
      const [q, k, v] = placeRows(subject, p, d) as [Tensor<"float32">, Tensor<"float32">, Tensor<"float32">];
      const pages = (name: "k" | "v", width: number): Tensor =>
        place(engine, p.pageDtype, old[name], [p.P, p.Hkv, p.pageSize, width]);
      const target = {
        kPages: pages("k", p.D),
        vPages: pages("v", p.Dv),
        slots: placeInt32(engine, p.slots),
      };
      const out = normRopeAppend(q, k, v, target, { ...options(subject, p, d), fused: mode });
      return { q: out, k: target.kPages, v: target.vPages };
    }),
  );
  for (const name of ["q", "k", "v"] as const) sameBits(name, fused[name], composed[name]);
  const [q, k] = [d.expected("q"), d.expected("k")];
  // A rounding after the norm, one after the rotation, and 32 in accumulation, of numbers as large as any of the row.
  const { storage, accumulation } = toleranceFor(dtype);
  const rel = 2 * storage + 32 * accumulation;
  assertClose(composed.q, q, { rel, abs: rel * Math.SQRT2 * largest(q), name: "q" });
  const page = toleranceFor(p.pageDtype).storage;
  assertClose(composed.k, appended(old.k, k, p, p.D), {
    rel: rel + page,
    abs: (rel + page) * Math.SQRT2 * largest(k) + 2 ** -24, // the last for the smallest numbers of float16
    name: "kPages",
  });
  const kept = appended(
    old.k,
    k.map(() => NaN),
    p,
    p.D,
  );
  const elsewhere = composed.k.map((x, i) => (Number.isNaN(kept[i]!) ? NaN : x));
  sameBits("kPages elsewhere", elsewhere, kept);
  sameBits("vPages", composed.v, appended(old.v, roundArray(p.pageDtype, d.given.v), p, p.Dv));
}

function sameBits(name: string, got: Float64Array, expected: Float64Array): void {
  const at = got.findIndex((x, i) => !Object.is(x, expected[i]));
  if (at < 0 && got.length === expected.length) return;
  throw new TestkitError(
    "mismatch",
    `normRopeAppend: element ${at} of ${name} is ${got[at]}, expected ${expected[at]} exactly`,
    { at },
  );
}
