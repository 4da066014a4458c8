/** Quantised pages on an engine, made by the oracle, and the numbers that they stand for. */
import { type Engine, type Pages, type QuantisedGroups, type QuantisedRows, tensor } from "@heed/tensor";
import { roundArray } from "../dtype.ts";
import {
  decodeGroupOracle,
  decodeRowOracle,
  encodeGroupOracle,
  encodeRowOracle,
  GROUP,
  type QuantisedFormat,
  type RowFormat,
} from "../oracle/quantised.ts";
import { place } from "./subject.ts";

/** Shape of pages of keys or of values, [P, Hkv, pageSize, width]. */
export interface QuantisedShape {
  readonly P: number;
  readonly Hkv: number;
  readonly pageSize: number;
  readonly width: number;
  readonly role: "keys" | "values";
}
/** What {@link quantisedPages} returns. */
export interface EncodedPages {
  /** The pages on an engine. */
  place(engine: Engine): Pages;
  /** The numbers that the pages stand for, [P, Hkv, pageSize, width]; page p is page p of the given values. */
  readonly values: Float64Array;
}
/** Which pages are sealed, and the number that a table names each page by. */
export interface Sealing {
  readonly sealed: readonly boolean[];
  /** Page p of the given values is page numbers[p] on the engine. */
  readonly numbers: Int32Array;
}
/** Pages that `sealed` does not name are residual pages, numbered from P on. */
export function sealing(sealed: readonly boolean[]): Sealing {
  let residual = 0;
  return { sealed, numbers: Int32Array.from(sealed, (is, p) => (is ? p : sealed.length + residual++)) };
}
/**
 * values [P, Hkv, pageSize, width] (float32 numbers) as quantised pages. A row that holds NaN has scale NaN. For "int4" `of` says which
 * pages are sealed; what a residual page of float32 holds is not rounded.
 */
export function quantisedPages(
  format: QuantisedFormat,
  values: Float64Array,
  shape: QuantisedShape,
  of: Sealing,
): EncodedPages {
  return format === "int4" ? groupPages(values, shape, of) : rowPages(format, values, shape);
}
/** Memory filled with 0xff: NaN codes of E4M3. */
const poisoned = (length: number): Uint8Array<ArrayBuffer> => new Uint8Array(length).fill(0xff);

function rowPages(
  format: RowFormat,
  values: Float64Array,
  { P, Hkv, pageSize, width }: QuantisedShape,
): EncodedPages {
  const codes = poisoned(values.length);
  const scales = new Float32Array(P * Hkv * pageSize);
  const decoded = new Float64Array(values.length);
  for (let r = 0; r < scales.length; r++) {
    const row = encodeRowOracle(format, values.subarray(r * width, (r + 1) * width));
    scales[r] = row.scale;
    if (Number.isFinite(row.scale)) codes.set(row.codes, r * width);
    decoded.set(decodeRowOracle(format, row), r * width);
  }
  const place = (engine: Engine): QuantisedRows => ({
    format,
    codes: tensor(codes, [P, Hkv, pageSize, width], { engine, dtype: "uint8" }),
    scales: tensor(scales, [P, Hkv, pageSize], { engine }),
  });
  return { place, values: decoded };
}
/** Where number d of token t of a page lies among its groups [groups, others], and the group's members. */
interface Layout {
  readonly groups: number;
  readonly others: number;
  members(group: number, other: number): (readonly [t: number, d: number])[];
}
/** Keys: groups of tokens by channel. Values: groups of channels by token. */
export function layoutOf({ pageSize, width, role }: Omit<QuantisedShape, "P" | "Hkv">): Layout {
  const along = role === "keys" ? pageSize : width;
  const range = (group: number): number[] =>
    Array.from({ length: Math.min(GROUP, along - group * GROUP) }, (_, i) => group * GROUP + i);
  return {
    groups: Math.ceil(along / GROUP),
    others: role === "keys" ? width : pageSize,
    members: (group, other) =>
      range(group).map((i) => (role === "keys" ? ([i, other] as const) : ([other, i] as const))),
  };
}
/** Puts code 0 .. 15 of channel d into a row of bytes. */
export function putNibble(row: Uint8Array, d: number, code: number): void {
  const byte = Math.floor(d / GROUP) * (GROUP / 2) + (d % (GROUP / 2));
  const isHigh = d % GROUP >= GROUP / 2;
  row[byte] = isHigh ? (row[byte]! & 15) | (code << 4) : (row[byte]! & 0xf0) | code;
}
function groupPages(values: Float64Array, shape: QuantisedShape, { sealed, numbers }: Sealing): EncodedPages {
  const { P, Hkv, pageSize, width } = shape;
  const layout = layoutOf(shape);
  const bytes = (GROUP / 2) * Math.ceil(width / GROUP);
  const perPage = Hkv * layout.groups * layout.others;
  const codes = poisoned(P * Hkv * pageSize * bytes);
  const scales = new Float32Array(P * perPage).fill(NaN);
  const zeros = scales.slice();
  const R = sealed.filter((is) => !is).length;
  const size = Hkv * pageSize * width;
  const residual = new Float64Array(R * size);
  const decoded = new Float64Array(values.length);
  for (let p = 0; p < P; p++) {
    if (!sealed[p]) {
      const page = roundArray("float32", values.subarray(p * size, (p + 1) * size));
      residual.set(page, (numbers[p]! - P) * size);
      decoded.set(page, p * size);
      continue;
    }
    for (let h = 0; h < Hkv; h++)
      for (let group = 0; group < layout.groups; group++)
        for (let other = 0; other < layout.others; other++) {
          const members = layout.members(group, other);
          const at = ([t, d]: readonly [number, number]): number =>
            ((p * Hkv + h) * pageSize + t) * width + d;
          const encoded = encodeGroupOracle(members.map((m) => values[at(m)]!));
          const index = ((p * Hkv + h) * layout.groups + group) * layout.others + other;
          scales[index] = encoded.scale;
          zeros[index] = encoded.zero;
          const back = decodeGroupOracle(encoded);
          members.forEach((m, i) => {
            const row = ((p * Hkv + h) * pageSize + m[0]) * bytes;
            putNibble(codes.subarray(row, row + bytes), m[1], encoded.codes[i]!);
            decoded[at(m)] = back[i]!;
          });
        }
  }
  const groups = [P, Hkv, layout.groups, layout.others];
  const placed = (engine: Engine): QuantisedGroups => ({
    format: "int4",
    codes: tensor(codes, [P, Hkv, pageSize, bytes], { engine, dtype: "uint8" }),
    scales: tensor(scales, groups, { engine }),
    zeros: tensor(zeros, groups, { engine }),
    residual: place(engine, "float32", residual, [R, Hkv, pageSize, width]),
  });
  return { place: placed, values: decoded };
}
