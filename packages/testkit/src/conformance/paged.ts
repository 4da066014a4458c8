/** Attention over pages, and writing rows into them: kernel and composed form by the oracle. */
import { kvAppend, pagedAttentionWithLse, type PagedAttentionOptions, type PagedView } from "@heed/tensor";
import fc from "fast-check";
import { alibiSlopesFor } from "../arbitraries/attention.ts";
import { type PagedProblem, pageTable, type PageTableLimits } from "../arbitraries/pages.ts";
import { type FloatDType, floatDTypes, roundArray } from "../dtype.ts";
import { TestkitError } from "../errors.ts";
import { pagedAttentionOracle } from "../oracle/paged.ts";
import { poison, poisonPages } from "../poison.ts";
import { createRng } from "../rng.ts";
import {
  assertMeaning,
  bothForms,
  elements,
  largest,
  place,
  placeInt32,
  results,
  wideOf,
  type Subject,
} from "./subject.ts";

/** A page table with heads, sizes and score options. */
export interface PagedAttentionProblem {
  readonly table: PagedProblem;
  readonly Hkv: number;
  readonly G: number;
  readonly D: number;
  readonly Dv: number;
  readonly options: Pick<PagedAttentionOptions, "scale" | "softcap" | "isCausal" | "window">;
  readonly alibi: boolean;
  readonly sinks: boolean;
}
/** Paged problems: any mix of prefill and decode, every option. */
export function pagedProblem(
  limits: PageTableLimits & { readonly maxD?: number } = {},
): fc.Arbitrary<PagedAttentionProblem> {
  const small = fc.integer({ min: 1, max: 3 });
  const width = fc.integer({ min: 1, max: limits.maxD ?? 8 });
  const side = fc.nat({ max: 20 });
  return fc.record({
    table: pageTable(limits),
    Hkv: small,
    G: small,
    D: width,
    Dv: width,
    alibi: fc.boolean(),
    sinks: fc.boolean(),
    options: fc.record(
      {
        scale: fc.constantFrom(1, 0.3),
        softcap: fc.constantFrom(2, 30),
        isCausal: fc.boolean(),
        window: fc.record({ left: side, right: side }, { requiredKeys: [] }),
      },
      { requiredKeys: [] },
    ),
  });
}
function pagesOf(p: PagedAttentionProblem, width: number, values: Float64Array): Float64Array {
  poisonPages(values, p.table, { numPages: p.table.numPages, Hkv: p.Hkv, width });
  return values;
}
/**
 * Output and lse over pages of `pageDtype`, NaN in every slot that no sequence holds and an unused last entry far outside. Throws a
 * TestkitError with code "mismatch".
 */
export async function checkPagedAttention(
  subject: Subject,
  p: PagedAttentionProblem,
  pageDtype: FloatDType = subject.dtype,
): Promise<void> {
  const { engine, dtype } = subject;
  const { table, Hkv, D, Dv } = p;
  const { T, numPages: P, pageSize } = table;
  const Hq = Hkv * p.G;
  const rng = createRng(table.seed);
  const q = roundArray(dtype, rng.normalArray(T * Hq * D));
  const kPages = pagesOf(p, D, roundArray(pageDtype, rng.normalArray(P * Hkv * pageSize * D)));
  const vPages = pagesOf(p, Dv, roundArray(pageDtype, rng.normalArray(P * Hkv * pageSize * Dv)));
  const alibiSlopes = p.alibi ? alibiSlopesFor(Hq) : undefined; // rounded below: powers of two are exact, others to float32
  const slopes = alibiSlopes && roundArray(wideOf(dtype), alibiSlopes);
  const sinks = p.sinks ? roundArray(dtype, rng.normalArray(Hq)) : undefined;
  const oracle = pagedAttentionOracle(q, kPages, vPages, {
    Hq,
    Hkv,
    D,
    Dv,
    table,
    isCausal: true,
    ...p.options,
    alibiSlopes: slopes,
    sinks,
  });
  const { fused, composed } = await bothForms(subject, (mode) =>
    results(() => {
      const unused = poison(new Int32Array(table.indices.length + 1));
      unused.set(table.indices);
      const view: PagedView = {
        kPages: place(engine, pageDtype, kPages, [P, Hkv, pageSize, D]),
        vPages: place(engine, pageDtype, vPages, [P, Hkv, pageSize, Dv]),
        table: {
          queryIndptr: placeInt32(engine, table.queryIndptr),
          indptr: placeInt32(engine, table.indptr),
          indices: placeInt32(engine, unused),
          lengths: placeInt32(engine, table.lengths),
          slots: placeInt32(engine, new Int32Array(T).fill(-1)),
          epoch: 0,
        },
      };
      const { output, lse } = pagedAttentionWithLse(place(engine, dtype, q, [T, Hq, D]), view, {
        ...p.options,
        alibiSlopes: slopes && place(engine, wideOf(dtype), slopes, [Hq]),
        sinks: sinks && place(engine, dtype, sinks, [Hq]),
        fused: mode,
      });
      return { output, lse };
    }),
  );
  // The largest score bounds what an error in a score does to a weight.
  const { scale = 1 / Math.sqrt(D) } = p.options;
  const longest = Math.max(0, ...table.lengths);
  const distance = slopes ? largest(slopes) * longest : 0;
  const conditioning = 1 + scale * Math.sqrt(D) * largest(q) * largest(kPages) + distance;
  const of = { shape: [T, Hq], conditioning };
  assertMeaning({
    name: "output",
    fused: fused.output,
    composed: composed.output,
    oracle: oracle.out,
    dtype,
    ...of,
    shape: [T, Hq, Dv],
    termScale: largest(vPages),
  });
  assertMeaning({
    name: "lse",
    fused: fused.lse,
    composed: composed.lse,
    oracle: oracle.lse,
    dtype: wideOf(dtype),
    ...of,
    termScale: conditioning,
  });
}

/** New rows k [T, Hkv, D] and v [T, Hkv, Dv] for distinct slots of P pages; -1 skips a row. */
export interface AppendProblem {
  readonly P: number;
  readonly pageSize: number;
  readonly Hkv: number;
  readonly D: number;
  readonly Dv: number;
  readonly slots: readonly number[];
  readonly pageDtype: FloatDType;
  readonly seed: number;
}
/** Appends of runs and of single rows, in any order. */
export function appendProblem(): fc.Arbitrary<AppendProblem> {
  const small = fc.integer({ min: 1, max: 5 });
  return fc
    .record({
      P: small,
      pageSize: small,
      Hkv: small,
      D: small,
      Dv: small,
      pageDtype: fc.constantFrom(...floatDTypes),
      seed: fc.nat({ max: 0xffff }),
      skipped: fc.array(fc.nat({ max: 24 }), { maxLength: 4 }),
      length: fc.nat({ max: 25 }),
      isRun: fc.boolean(),
    })
    .map(({ skipped, length, isRun, ...p }) => {
      const all = p.P * p.pageSize;
      const order = isRun ? Array.from({ length: all }, (_, i) => i) : createRng(p.seed).permutation(all);
      const slots = order.slice(0, length).map((slot, t) => (skipped.includes(t) ? -1 : slot));
      return { ...p, slots };
    });
}
/** Throws a TestkitError with code "mismatch" unless exactly the named rows hold the new values, converted to the pages' dtype. */
export async function checkKvAppend(subject: Subject, p: AppendProblem): Promise<void> {
  const { engine, dtype } = subject;
  const { P, Hkv, pageSize, slots, pageDtype } = p;
  const T = slots.length;
  const rng = createRng(p.seed);
  for (const [name, mode] of [
    ["composed", "off"],
    ["fused", subject.fused ?? "auto"],
  ] as const) {
    const made = [p.D, p.Dv].map((width) => {
      const rows = roundArray(dtype, rng.normalArray(T * Hkv * width));
      const old = roundArray(pageDtype, rng.normalArray(P * Hkv * pageSize * width));
      const expected = old.slice();
      slots.forEach((slot, t) => {
        if (slot < 0) return;
        for (let h = 0; h < Hkv; h++)
          for (let d = 0; d < width; d++) {
            const page = Math.floor(slot / pageSize);
            expected[((page * Hkv + h) * pageSize + (slot % pageSize)) * width + d] = roundArray(pageDtype, [
              rows[(t * Hkv + h) * width + d]!,
            ])[0]!;
          }
      });
      const pages = place(engine, pageDtype, old, [P, Hkv, pageSize, width]);
      return { rows: place(engine, dtype, rows, [T, Hkv, width]), pages, expected };
    });
    const [k, v] = made as [(typeof made)[0], (typeof made)[0]];
    using table = placeInt32(engine, slots);
    kvAppend(k.rows, v.rows, k.pages, v.pages, table, { fused: mode });
    for (const { pages, rows, expected } of made) {
      const got = await elements(pages);
      const at = got.findIndex((x, i) => !Object.is(x, expected[i]));
      pages[Symbol.dispose]();
      rows[Symbol.dispose]();
      if (at >= 0) {
        throw new TestkitError(
          "mismatch",
          `kvAppend (${name}): element ${at} is ${got[at]}, expected ${expected[at]}`,
          { at },
        );
      }
    }
  }
}
