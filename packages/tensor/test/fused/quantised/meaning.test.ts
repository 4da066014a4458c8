import {
  ArgumentError,
  copyInto,
  DTypeError,
  kvAppend,
  ones,
  pagedAttention,
  pagedAttentionWithLse,
  type QuantisedRows,
  randn,
  recordTape,
  scope,
  sealPages,
  ShapeError,
  type Tensor,
  toFloat64,
  zeros,
} from "@heed/tensor";
import { groupPages, int32s, quantisedFormats, rowPages, storedPages } from "@heed/testkit";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { engines } from "../../engines.ts";
import { refuses } from "../../misuse.ts";

const bytes = (t: Tensor): number[] => Array.from(t.contiguous().data as Uint8Array);

describe.each([...engines])("quantised pages on %s", (engine) => {
  const sizes = { engine, P: 3, Hkv: 2, pageSize: 4, width: 5 };
  for (const format of ["int8", "float8e4m3"] as const) {
    test(`${format}: a token is encoded as it is, whatever is stored with it or after it`, () => {
      const splits = fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 4 });
      const property = fc.property(splits, fc.nat({ max: 999 }), (counts, seed) =>
        scope(() => {
          const T = Math.min(
            12,
            counts.reduce((a, b) => a + b, 0),
          );
          const rows = randn([T, 2, 5], { engine, seed });
          const [whole, parts] = [rowPages(format, sizes), rowPages(format, sizes)];
          const slots = int32s(
            engine,
            Array.from({ length: T }, (_, t) => t),
          );
          kvAppend(rows, rows, whole, rowPages(format, sizes), slots);
          let seen: number[] = [];
          for (let t = 0, i = 0; t < T; i++) {
            const end = Math.min(T, t + counts[i]!);
            const slice = rows.slice(0, t, end);
            kvAppend(slice, slice, parts, rowPages(format, sizes), slots.slice(0, t, end) as Tensor<"int32">);
            const now = bytes(parts.codes);
            const page = (token: number): number => Math.floor(token / 4) * 2 * 4 * 5 + (token % 4) * 5;
            for (let token = 0; token < t; token++)
              expect(now.slice(page(token), page(token) + 5)).toEqual(
                seen.slice(page(token), page(token) + 5),
              );
            seen = now;
            t = end;
          }
          expect(bytes(parts.codes)).toEqual(bytes(whole.codes));
          expect([...toFloat64(parts.scales)]).toEqual([...toFloat64(whole.scales)]);
        }),
      );
      fc.assert(property, { numRuns: 20 });
    });
    test(`${format}: a row with NaN or Infinity is NaN and no other is`, () => {
      scope(() => {
        for (const bad of [NaN, Infinity, -Infinity]) {
          const rows = ones([2, 2, 5], { engine });
          rows.data[3] = bad;
          const [k, v] = [rowPages(format, sizes), rowPages(format, sizes)];
          kvAppend(rows, rows, k, v, int32s(engine, [0, 1]));
          const scales = toFloat64(k.scales);
          expect([scales[0], Number.isFinite(scales[1]!), Number.isFinite(scales[4]!)]).toEqual([
            NaN,
            true,
            true,
          ]);
        }
      });
    });
    test(`${format}: values in keys are no columns of their own, and leave the keys' scales alone`, () => {
      scope(() => {
        const rows = randn([3, 2, 5], { engine, seed: 2 });
        const keys = rowPages(format, sizes);
        const none: QuantisedRows = { ...keys, codes: keys.codes.slice(3, 0, 0) as Tensor<"uint8"> };
        kvAppend(rows, rows.slice(2, 0, 0), keys, none, int32s(engine, [0, 1, 2]));
        expect(
          toFloat64(keys.scales)
            .slice(0, 3)
            .every((x) => x > 0),
        ).toBe(true);
        const view = {
          kPages: keys,
          vPages: { ...keys, codes: keys.codes.slice(3, 0, 2) as Tensor<"uint8"> },
          table: {
            queryIndptr: int32s(engine, [0, 1]),
            indptr: int32s(engine, [0, 1]),
            indices: int32s(engine, [0]),
            lengths: int32s(engine, [1]),
            slots: int32s(engine, [-1]),
            epoch: 0,
          },
        };
        const out = pagedAttention(randn([1, 2, 5], { engine, seed: 3 }), view);
        const first = toFloat64(rows).slice(0, 2);
        expect(Math.abs(toFloat64(out)[0]! - first[0]!)).toBeLessThan(0.2);
      });
    });
  }
  for (const format of quantisedFormats) {
    test(`${format}: a NaN that a row does not see changes no bit of it; a row that sees it is NaN`, () => {
      scope(() => {
        const [L, D] = [140, 40];
        for (const [queries, G] of [
          [3, 2],
          [90, 1],
        ] as const) {
          const q = randn([queries, 2 * G, D], { engine, seed: 1 });
          const [k, v] = [randn([L, 2, D], { engine, seed: 2 }), randn([L, 2, D], { engine, seed: 3 })];
          const clean = pagedAttentionWithLse(q, storedPages(format, k, v, queries, 32));
          for (const spoilt of [k, v]) {
            const before = spoilt.data.slice();
            spoilt.data.fill(NaN, (L - 1) * 2 * D);
            const { output } = pagedAttentionWithLse(q, storedPages(format, k, v, queries, 32));
            const rows = (queries - 1) * 2 * G * D;
            const got = toFloat64(output);
            expect(got.subarray(0, rows)).toEqual(toFloat64(clean.output).subarray(0, rows));
            expect(got.subarray(rows).every(Number.isNaN)).toBe(true);
            spoilt.data.set(before);
          }
        }
      });
    });
    test(`${format}: a tape appends and attends again with other rows`, () => {
      scope(() => {
        const [k, v] = [randn([5, 2, 8], { engine, seed: 2 }), randn([5, 2, 8], { engine, seed: 3 })];
        const q = randn([1, 2, 8], { engine, seed: 1 });
        const view = storedPages(format, k, v, 1, 8); // one page that is not full
        const run = (): Tensor => {
          kvAppend(k, v, view.kPages, view.vPages, view.table.slots);
          return pagedAttention(q, view);
        };
        const { outputs, tape } = recordTape(k.engine, run);
        const first = toFloat64(outputs);
        copyInto(randn([5, 2, 8], { engine, seed: 9 }), v);
        tape.replay();
        const second = toFloat64(outputs);
        expect(second).not.toEqual(first);
        expect(second).toEqual(toFloat64(run()));
      });
    });
  }
  test("int4: a NaN value in a sealed page changes no bit of a row that does not see it", () => {
    scope(() => {
      const [L, D, queries] = [128, 40, 3];
      const q = randn([queries, 4, D], { engine, seed: 1 });
      const [k, v] = [randn([L, 2, D], { engine, seed: 2 }), randn([L, 2, D], { engine, seed: 3 })];
      const clean = toFloat64(pagedAttention(q, storedPages("int4", k, v, queries, 64)));
      v.data.fill(NaN, (L - 1) * 2 * D);
      const spoilt = toFloat64(pagedAttention(q, storedPages("int4", k, v, queries, 64)));
      const rows = (queries - 1) * 4 * D;
      expect(spoilt.subarray(0, rows)).toEqual(clean.subarray(0, rows));
      expect(spoilt.subarray(rows).every(Number.isNaN)).toBe(true);
    });
  });
  test("int4: a sealed page does not depend on what its residual page holds afterwards", () => {
    scope(() => {
      const make = (role: "keys" | "values") => groupPages(role, { ...sizes, pageSize: 32, width: 7 }, 2);
      const [k, v] = [make("keys"), make("values")];
      const rows = randn([32, 2, 7], { engine, seed: 5 });
      const slots = int32s(
        engine,
        Array.from({ length: 32 }, (_, t) => 3 * 32 + t),
      );
      kvAppend(rows, rows, k, v, slots);
      expect(toFloat64(k.residual.select(0, 0))).toEqual(toFloat64(rows.transpose(0, 1)));
      expect(toFloat64(k.residual.select(0, 1)).every(Number.isNaN)).toBe(true);
      sealPages(k, v, int32s(engine, [0]), int32s(engine, [2]));
      const before = [bytes(k.codes), bytes(v.codes)];
      kvAppend(zeros([32, 2, 7], { engine }), rows, k, v, slots);
      sealPages(k, v, int32s(engine, [0]), int32s(engine, [1]));
      const page = 2 * 32 * 16;
      expect([bytes(k.codes), bytes(v.codes)].map((now) => now.slice(2 * page))).toEqual(
        before.map((then) => then.slice(2 * page)),
      );
    });
  });
});

const engine = "portable";
const sizes = { engine, P: 3, Hkv: 2, pageSize: 4, width: 5 };
const rows = ones([2, 2, 5], { engine });
const int8 = rowPages("int8", sizes);
const [k4, v4] = [groupPages("keys", sizes, 2), groupPages("values", sizes, 2)];
const any = (x: unknown): never => x as never;
const append =
  (k: unknown, v: unknown, ...slots: number[]) =>
  () =>
    kvAppend(rows, rows, any(k), any(v), int32s(engine, slots));
refuses({
  "keys and values in different formats": [
    append(int8, rowPages("float8e4m3", sizes), 0, 1),
    DTypeError,
    "one dtype",
  ],
  "codes beside floats": [append(int8, ones([3, 2, 4, 5], { engine }), 0, 1), DTypeError, "one dtype"],
  "a format that does not exist": [append({ ...int8, format: "int5" }, int8, 0, 1), DTypeError, "int5"],
  "codes that are not uint8": [
    append({ ...int8, codes: zeros([3, 2, 4, 5], { engine, dtype: "int32" }) }, int8, 0, 1),
    DTypeError,
    "uint8 codes",
  ],
  "scales of another shape": [
    append({ ...int8, scales: zeros([3, 2, 5], { engine }) }, int8, 0, 1),
    ShapeError,
    "scales float32[3, 2, 5]",
  ],
  "rows of codes with gaps": [
    append({ ...int8, codes: zeros([3, 2, 5, 4], { engine, dtype: "uint8" }).transpose(2, 3) }, int8, 0, 1),
    ShapeError,
    "pages [P, Hkv, pageSize, D or Dv]",
  ],
  "an int4 slot in a sealed page": [
    append(k4, v4, 11, 12),
    ArgumentError,
    "slot 11 of row 0 is outside 12..19",
  ],
  "an int4 slot past the residual pages": [append(k4, v4, 12, 20), ArgumentError, "slot 20 of row 1"],
  "int4 keys where values belong": [append(v4, v4, 12, 13), ShapeError, "int4"],
  "a page size of int4 that groups do not divide": [
    append(
      groupPages("keys", { ...sizes, pageSize: 40 }, 2),
      groupPages("values", { ...sizes, pageSize: 40 }, 2),
      120,
      121,
    ),
    ShapeError,
    "pages",
  ],
  "a float64 residual": [
    append({ ...k4, residual: zeros([2, 2, 4, 5], { engine, dtype: "float64" }) }, v4, 12, 13),
    DTypeError,
    "residual",
  ],
  "sealing pages that are not int4": [
    () => sealPages(any(int8), any(int8), int32s(engine, [0]), int32s(engine, [0])),
    DTypeError,
    "int4",
  ],
  "sealing a residual page that does not exist": [
    () => sealPages(k4, v4, int32s(engine, [2]), int32s(engine, [0])),
    ArgumentError,
    "page 2 at 0 of from is outside 0..1",
  ],
  "sealing into a page that does not exist": [
    () => sealPages(k4, v4, int32s(engine, [0]), int32s(engine, [3])),
    ArgumentError,
    "page 3 at 0 of to is outside 0..2",
  ],
  "sealing more pages than there are targets": [
    () => sealPages(k4, v4, int32s(engine, [0, 1]), int32s(engine, [0])),
    ShapeError,
    "from",
  ],
});
