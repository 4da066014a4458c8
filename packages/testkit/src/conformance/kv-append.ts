/** Writing rows into pages: kernel and composed form by a plain copy. */
import { kvAppend } from "@heed/tensor";
import fc from "fast-check";
import { type FloatDType, floatDTypes, roundArray } from "../dtype.ts";
import { TestkitError } from "../errors.ts";
import { createRng } from "../rng.ts";
import { elements, place, placeInt32, type Subject } from "./subject.ts";

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
