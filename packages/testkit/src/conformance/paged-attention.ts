/** Attention over pages: kernel and composed form by the oracle. */
import { type PagedAttentionOptions, pagedAttentionWithLse, type PagedView, type Pages } from "@heed/tensor";
import fc from "fast-check";
import { alibiSlopesFor } from "../arbitraries/attention.ts";
import { type PagedProblem, pageTable, type PageTableLimits } from "../arbitraries/pages.ts";
import { type FloatDType, roundArray } from "../dtype.ts";
import { pagedAttentionOracle } from "../oracle/paged.ts";
import { type QuantisedFormat, quantisedFormats } from "../oracle/quantised.ts";
import { poison, poisonPages } from "../poison.ts";
import { createRng } from "../rng.ts";
import { type EncodedPages, quantisedPages, type Sealing, sealing } from "./quantised-pages.ts";
import {
  assertMeaning,
  bothForms,
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
  readonly options: Pick<PagedAttentionOptions, "scale" | "softcap" | "isCausal" | "window" | "sinkTokens">;
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
        sinkTokens: fc.nat({ max: 9 }),
      },
      { requiredKeys: [] },
    ),
  });
}
function pagesOf(p: PagedAttentionProblem, width: number, values: Float64Array): Float64Array {
  poisonPages(values, p.table, { numPages: p.table.numPages, Hkv: p.Hkv, width });
  return values;
}
/** Of the pages that sequences fill, three in four are sealed. */
function sealingOf({ lengths, indptr, indices, pageSize, numPages, seed }: PagedProblem): Sealing {
  const sealed = Array.from({ length: numPages }, () => false);
  lengths.forEach((length, n) => {
    for (let i = 0; i < Math.floor(length / pageSize); i++)
      sealed[indices[indptr[n]! + i]!] = (seed + i) % 4 !== 0;
  });
  return sealing(sealed);
}
/**
 * Output and lse over pages of `storage`, NaN in every slot that no sequence holds and an unused last entry far outside. Throws a
 * TestkitError with code "mismatch".
 */
export async function checkPagedAttention(
  subject: Subject,
  p: PagedAttentionProblem,
  storage: FloatDType | QuantisedFormat = subject.dtype,
): Promise<void> {
  const { engine, dtype } = subject;
  const { table, Hkv, D, Dv } = p;
  const { T, numPages: P, pageSize } = table;
  const Hq = Hkv * p.G;
  const rng = createRng(table.seed);
  const q = roundArray(dtype, rng.normalArray(T * Hq * D));
  const format = quantisedFormats.find((name) => name === storage);
  const floats = format === undefined ? (storage as FloatDType) : "float32";
  const numbers = (width: number): Float64Array =>
    pagesOf(p, width, roundArray(floats, rng.normalArray(P * Hkv * pageSize * width)));
  const seals = sealingOf(table);
  const make = (role: "keys" | "values", width: number): EncodedPages => {
    const values = numbers(width);
    if (format !== undefined) return quantisedPages(format, values, { P, Hkv, pageSize, width, role }, seals);
    return { values, place: (on) => place(on, floats, values, [P, Hkv, pageSize, width]) };
  };
  const [k, v] = [make("keys", D), make("values", Dv)];
  const [kPages, vPages] = [k.values, v.values];
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
      unused.set(format === "int4" ? table.indices.map((page) => seals.numbers[page]!) : table.indices);
      const view: PagedView<Pages> = {
        kPages: k.place(engine),
        vPages: v.place(engine),
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
