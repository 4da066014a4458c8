/** Writing rows into pages: kernel and composed form by a plain copy. */
import { kvAppend, type QuantisedRows, scope, tensor } from "@heed/tensor";
import fc from "fast-check";
import { type FloatDType, floatDTypes, roundArray } from "../dtype.ts";
import { TestkitError } from "../errors.ts";
import { encodeRowOracle, type RowFormat } from "../oracle/quantised.ts";
import { createRng } from "../rng.ts";
import { elements, place, placeInt32, readAll, type Subject } from "./subject.ts";

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
/** New numbers of a row: normal, or of a size that tries the ends of a format. */
function wild(seed: number, length: number): Float64Array {
  const rng = createRng(seed);
  const sizes = [1, 1, 0, 1e-3, 2 ** -126, 2 ** -149, 1e30, NaN, Infinity];
  return rng
    .normalArray(length)
    .map((x) => (rng.int(0, 11) === 0 ? x * sizes[rng.int(0, sizes.length - 1)]! : x));
}
/**
 * Throws a TestkitError with code "mismatch" unless exactly the named rows hold the oracle's codes and scales of the new values, which
 * include zeros, the smallest numbers, NaN and infinities.
 */
export async function checkQuantisedAppend(
  subject: Subject,
  p: AppendProblem,
  format: RowFormat,
): Promise<void> {
  const { engine, dtype } = subject;
  const { P, Hkv, pageSize, slots } = p;
  for (const mode of ["off", subject.fused ?? "auto"] as const) {
    const made = [p.D, p.Dv].map((width, part) => {
      const given = roundArray(dtype, wild(p.seed + part, slots.length * Hkv * width));
      const codes = new Uint8Array(P * Hkv * pageSize * width).fill(0x5a);
      const scales = new Float32Array(P * Hkv * pageSize).fill(-1);
      const expected = { codes: codes.slice(), scales: scales.slice() };
      slots.forEach((slot, t) => {
        if (slot < 0) return;
        for (let h = 0; h < Hkv; h++) {
          const from = (t * Hkv + h) * width;
          const row = encodeRowOracle(format, given.subarray(from, from + width));
          const to = (Math.floor(slot / pageSize) * Hkv + h) * pageSize + (slot % pageSize);
          expected.codes.set(row.codes, to * width);
          expected.scales[to] = row.scale;
        }
      });
      return { width, given, codes, scales, expected };
    });
    const written = scope(() => {
      const pages = made.map(({ width, codes, scales }): QuantisedRows => ({
        format,
        codes: tensor(codes, [P, Hkv, pageSize, width], { engine, dtype: "uint8" }),
        scales: tensor(scales, [P, Hkv, pageSize], { engine }),
      }));
      const [k, v] = made.map(({ width, given }) => place(engine, dtype, given, [slots.length, Hkv, width]));
      kvAppend(k!, v!, pages[0]!, pages[1]!, placeInt32(engine, slots), { fused: mode });
      return pages.map(({ codes, scales }) => ({ codes, scales }));
    });
    const after = await Promise.all(written.map(readAll));
    made.forEach(({ expected }, part) => {
      for (const name of ["codes", "scales"] as const)
        after[part]![name].forEach((got, i) => {
          if (Object.is(got, expected[name][i])) return;
          throw new TestkitError(
            "mismatch",
            `kvAppend (${mode}) into ${format}: ${name}[${i}] is ${got}, expected ${expected[name][i]}`,
            { at: i },
          );
        });
    });
  }
}
