/** What storing in fewer bits costs: docs/kernels/paged-quantised.md states these bounds. */
import { pagedAttention, scope, tensor, toFloat64 } from "@heed/tensor";
import {
  createRng,
  quantisedFormats,
  type QuantisedFormat,
  type RowFormat,
  storedPages,
} from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { decodeGroups, encodeGroups } from "../../../src/fused/quantised/groups.ts";
import { E4M3, decodeRows, encodeRows } from "../../../src/fused/quantised/rows.ts";
import { engines } from "../../engines.ts";

/** Rounding of the scale and of the quotient to float32. */
const SLACK = 1 + 2 ** -20;
/** Half a step of "int8" and of E4M3 about x, in units of the scale. */
const halfStep = (format: RowFormat, x: number, scale: number): number =>
  format === "int8" ? scale / 2 : Math.max(Math.abs(x) * 2 ** -4, scale * 2 ** -10);
const numbers = fc.array(
  fc.oneof(fc.float({ noNaN: true, noDefaultInfinity: true }), fc.float({ min: -2, max: 2, noNaN: true })),
  { minLength: 1, maxLength: 40 },
);

test("E4M3 codes are those of the OCP specification", () => {
  expect([0, 1, 7, 8, 0x38, 0x39, 0x7e, 0xb8, 0xfe].map((code) => E4M3[code])).toEqual([
    0,
    2 ** -9,
    7 * 2 ** -9,
    2 ** -6,
    1,
    1.125,
    448,
    -1,
    -448,
  ]);
  expect([E4M3[0x7f], E4M3[0xff]]).toEqual([NaN, NaN]);
});
describe.each([...engines])("on %s", (engine) => {
  for (const format of ["int8", "float8e4m3"] as const) {
    test(`${format}: a number moves by half a step of its row at most, and codes keep their numbers when encoded again`, () => {
      const property = fc.property(numbers, (row) =>
        scope(() => {
          const x = tensor(Float32Array.from(row), [row.length], { engine });
          const { codes, scales } = encodeRows(x, format);
          const back = toFloat64(decodeRows(codes, scales, format, "float64"));
          const scale = scales.data[0]!;
          const most = Math.max(...x.data.map(Math.abs));
          expect(scale).toBeLessThanOrEqual(
            Math.max(most / (format === "int8" ? 127 : 448), 2 ** -126) * SLACK,
          );
          back.forEach((y, i) => {
            expect(Math.abs(y - x.data[i]!)).toBeLessThanOrEqual(halfStep(format, x.data[i]!, scale) * SLACK);
          });
        }),
      );
      fc.assert(property, { numRuns: 150 });
    });
  }
  for (const role of ["keys", "values"] as const) {
    test(`int4 ${role}: a number moves by half a step of its group at most`, () => {
      const sizes = fc.record({
        pageSize: fc.constantFrom(1, 8, 32, 64),
        width: fc.integer({ min: 1, max: 70 }),
        seed: fc.nat({ max: 9999 }),
      });
      const property = fc.property(sizes, ({ pageSize, width, seed }) =>
        scope(() => {
          const values = Float32Array.from(createRng(seed).normalArray(2 * pageSize * width));
          const x = tensor(values, [1, 2, pageSize, width], { engine });
          const encoded = encodeGroups(x, role);
          const back = toFloat64(decodeGroups(encoded, role, width, "float64"));
          const [scales, groups, others] = [encoded.scales.data, ...encoded.scales.shape.slice(2)] as const;
          values.forEach((value, i) => {
            const [h, t, d] = [
              Math.floor(i / (pageSize * width)),
              Math.floor(i / width) % pageSize,
              i % width,
            ];
            const [along, across] = role === "keys" ? [t, d] : [d, t];
            const scale = scales[(h * groups! + Math.floor(along / 32)) * others! + across]!;
            expect(Math.abs(back[i]! - value)).toBeLessThanOrEqual(
              (scale / 2) * SLACK + 2 ** -24 * Math.abs(value),
            );
          });
        }),
      );
      fc.assert(property, { numRuns: 40 });
    });
  }
  for (const format of quantisedFormats) {
    test(`attention over ${format} pages stays within the documented bound of attention over the numbers themselves`, () => {
      for (const queries of [1, 70]) scope(() => attentionBound(engine, format, queries));
    });
  }
});
/** The largest error of a stored number, by format, for rows of which the largest magnitude and span are known. */
function largestError(format: QuantisedFormat, x: Float64Array): number {
  const most = x.reduce((m, value) => Math.max(m, Math.abs(value)), 0);
  if (format === "int4") return most / 15; // half of a fifteenth of a span of 2 most
  return format === "int8" ? most / 254 : most / 16;
}
function attentionBound(engine: string, format: QuantisedFormat, queries: number): void {
  const [L, Hkv, G, D, pageSize] = [300, 2, 2, 48, 64];
  const rng = createRng(11);
  const values = { q: queries * Hkv * G * D, k: L * Hkv * D, v: L * Hkv * D };
  const [q, k, v] = Object.values(values).map((size) => rng.normalArray(size)) as [
    Float64Array,
    Float64Array,
    Float64Array,
  ];
  const place = (x: Float64Array, heads: number) =>
    tensor(
      x,
      [-1, heads, D].map((n) => (n < 0 ? x.length / (heads * D) : n)),
      { engine, dtype: "float64" },
    );
  const [qs, ks, vs] = [place(q, Hkv * G), place(k, Hkv), place(v, Hkv)];
  const view = storedPages(format, ks, vs, queries, pageSize);
  const paged = (x: typeof ks) => {
    const P = Math.ceil(L / pageSize);
    const pages = tensor(new Float64Array(P * Hkv * pageSize * D), [P, Hkv, pageSize, D], {
      engine,
      dtype: "float64",
    });
    for (let t = 0; t < L; t++)
      for (let h = 0; h < Hkv; h++)
        for (let d = 0; d < D; d++)
          pages.data[((Math.floor(t / pageSize) * Hkv + h) * pageSize + (t % pageSize)) * D + d] =
            x.data[(t * Hkv + h) * D + d]!;
    return pages;
  };
  const plain = { kPages: paged(ks), vPages: paged(vs), table: { ...view.table, indices: int32(view) } };
  const got = toFloat64(pagedAttention(qs, view));
  const want = toFloat64(pagedAttention(qs, plain));
  let longest = 0; // sum of |q| over a row
  for (let r = 0; r < q.length; r += D)
    longest = Math.max(
      longest,
      q.subarray(r, r + D).reduce((a, x) => a + Math.abs(x), 0),
    );
  const score = (longest / Math.sqrt(D)) * largestError(format, k);
  const most = v.reduce((m, x) => Math.max(m, Math.abs(x)), 0);
  const bound = Math.expm1(2 * score) * most + largestError(format, v);
  let worst = 0;
  got.forEach((x, i) => (worst = Math.max(worst, Math.abs(x - want[i]!))));
  expect(worst).toBeLessThanOrEqual(bound);
  expect(worst).toBeLessThanOrEqual(0.25); // and far below it, as errors of both signs cancel
  expect(worst).toBeGreaterThan(0);

  function int32({ table }: typeof view) {
    const P = Math.ceil(L / pageSize);
    return tensor(
      Int32Array.from(table.indices.data, (page) => page % P),
      [P],
      { engine, dtype: "int32" },
    );
  }
}
