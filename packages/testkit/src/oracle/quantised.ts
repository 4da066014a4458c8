/**
 * Quantised rows and groups in float64, by the definitions alone: every code's value is known, and the code of a number is the one
 * whose value is nearest. Scales and zeros are float32 numbers, as they are stored.
 */

/** Formats with a scale for each row. */
export type RowFormat = "int8" | "float8e4m3";
/** All formats of quantised pages. */
export type QuantisedFormat = RowFormat | "int4";
/** Every {@link QuantisedFormat}. */
export const quantisedFormats: readonly QuantisedFormat[] = ["int8", "float8e4m3", "int4"];
/** Numbers of "int4" that share a scale. */
export const GROUP = 32;

/** A scale is not smaller than the smallest normal float32. */
const SMALLEST_SCALE = 2 ** -126;
const LARGEST: Readonly<Record<RowFormat, number>> = { int8: 127, float8e4m3: 448 };

/** What a code stands for before its scale: code - 128, or OCP OFP8 E4M3 (sign, exponent with bias 7, 3 bits of fraction). */
export function codeValue(format: RowFormat, code: number): number {
  if (format === "int8") return code - 128;
  const [sign, exponent, fraction] = [code >> 7, (code >> 3) & 15, code & 7];
  if (exponent === 15 && fraction === 7) return NaN;
  const size = exponent === 0 ? (fraction / 8) * 2 ** -6 : (1 + fraction / 8) * 2 ** (exponent - 7);
  return sign === 1 ? -size : size;
}
const E4M3 = Float64Array.from({ length: 127 }, (_, code) => codeValue("float8e4m3", code));
/** The code nearest to y; of two equally near the even one. Where 0 has two codes, the positive one unless y < 0. */
function nearestCode(format: RowFormat, y: number): number {
  const [sign, size] = format === "int8" ? [0, y + 128] : [y < 0 ? 128 : 0, Math.abs(y)];
  // The last code that is not above, and the one after it.
  let below = Math.floor(size);
  if (format === "float8e4m3") for (below = 126; E4M3[below]! > size;) below--;
  const [low, high] = format === "int8" ? [below, below + 1] : [E4M3[below]!, E4M3[below + 1] ?? Infinity];
  const up = high - size < size - low || (high - size === size - low && below % 2 === 1);
  return sign + below + (up ? 1 : 0);
}
/** A row's codes and scale. */
export interface EncodedRow {
  readonly codes: Uint8Array;
  readonly scale: number;
}
/**
 * A row of float32 numbers: scale = largest magnitude / 127 (448), rounded to float32; codes are nearest to the float32 quotient. A row that
 * is not finite has scale NaN and codes 0.
 */
export function encodeRowOracle(format: RowFormat, row: ArrayLike<number>): EncodedRow {
  const x = Float32Array.from(row);
  if (!x.every(Number.isFinite)) return { codes: new Uint8Array(x.length), scale: NaN };
  const most = x.reduce((m, value) => Math.max(m, Math.abs(value)), 0);
  const scale = Math.max(Math.fround(most / LARGEST[format]), SMALLEST_SCALE);
  return { codes: Uint8Array.from(x, (value) => nearestCode(format, Math.fround(value / scale))), scale };
}
/** The numbers that a row's codes stand for. */
export function decodeRowOracle(format: RowFormat, { codes, scale }: EncodedRow): Float64Array {
  return Float64Array.from(codes, (code) => codeValue(format, code) * scale);
}
/** Codes 0 .. 15 of a group, with its scale and zero. */
export interface EncodedGroup {
  readonly codes: Uint8Array;
  readonly scale: number;
  readonly zero: number;
}
/** A group of float32 numbers in 16 steps from its smallest to its largest (KIVI, arXiv:2402.02750); not finite: scale and zero NaN. */
export function encodeGroupOracle(group: ArrayLike<number>): EncodedGroup {
  const x = Float32Array.from(group);
  const zero = Math.min(...x);
  const span = Math.fround(Math.max(...x) - zero);
  if (!Number.isFinite(span)) return { codes: new Uint8Array(x.length), scale: NaN, zero: NaN };
  const scale = Math.max(Math.fround(span / 15), SMALLEST_SCALE);
  const step = (value: number): number => {
    const y = Math.fround(Math.fround(value - zero) / scale);
    const below = Math.floor(y);
    const up = y - below > 0.5 || (y - below === 0.5 && below % 2 === 1);
    return Math.min(15, below + (up ? 1 : 0));
  };
  return { codes: Uint8Array.from(x, step), scale, zero };
}
/** The numbers that a group's codes stand for. */
export function decodeGroupOracle({ codes, scale, zero }: EncodedGroup): Float64Array {
  return Float64Array.from(codes, (code) => zero + scale * code);
}
