import type { FloatDType } from "../../core/dtype.ts";
import { DTypeError } from "../../core/errors.ts";
import { show, Tensor } from "../../core/tensor.ts";
import { floatOnly } from "../../ops/check.ts";

/**
 * Pages whose rows are stored in 8 bits, each with a scale of its own, so that no row is ever encoded again: element
 * scales[p, h, t] * value(codes[p, h, t, d]). The scale is the row's largest magnitude / 127 for "int8", where value(c) = c - 128, and
 * / 448 for "float8e4m3", where value(c) is the number of that code in OCP OFP8 E4M3. A row that holds NaN or Infinity has scale NaN.
 */
export interface QuantisedRows {
  readonly format: "int8" | "float8e4m3";
  readonly codes: Tensor<"uint8">; // [P, Hkv, pageSize, width], rows contiguous
  readonly scales: Tensor<"float32">; // [P, Hkv, pageSize]
}
/**
 * Pages in 4 bits as KIVI has them (Liu et al. 2024, arXiv:2402.02750): element zeros + scales * code, code 0 .. 15, where zero and
 * scale belong to {@link GROUP} tokens of one channel for keys (all tokens of a smaller page), and to {@link GROUP} channels of one token
 * for values. A page is encoded once, when it is full (`sealPages`); until then its rows lie in full precision in a residual page, which
 * tables name by P + its number. In each 16 bytes of a row, byte i holds channel i in its low and channel 16 + i in its high half.
 */
export interface QuantisedGroups {
  readonly format: "int4";
  readonly codes: Tensor<"uint8">; // [P, Hkv, pageSize, 16 * ceil(width / 32)], rows contiguous
  readonly scales: Tensor<"float32">; // keys [P, Hkv, ceil(pageSize / 32), D]; values [P, Hkv, ceil(Dv / 32), pageSize]
  readonly zeros: Tensor<"float32">; // as scales
  readonly residual: Tensor; // [R, Hkv, pageSize, width]; float32, float16 or bfloat16
}
/** Pages that kernels read in place without a copy in floats. */
export type QuantisedPages = QuantisedRows | QuantisedGroups;
/** Keys or values of one layer: floats [P, Hkv, pageSize, width], or codes. */
export type Pages = Tensor | QuantisedPages;
/** Which of the two the pages hold: they differ in how "int4" groups its numbers. */
export type PageRole = "keys" | "values";

/** Numbers of "int4" that share a scale and a zero. */
export const GROUP = 32;

/** Lengths of pages; R counts residual pages. */
export interface PageShape {
  readonly P: number;
  readonly R: number;
  readonly Hkv: number;
  readonly pageSize: number;
  readonly width: number;
}
/** The storage of pages in a word: their dtype, or their format. */
export function storageOf(pages: Pages): FloatDType | QuantisedPages["format"] {
  return pages instanceof Tensor ? (pages.dtype as FloatDType) : pages.format;
}
/** Every tensor of the pages. */
export function tensorsOf(pages: Pages): readonly Tensor[] {
  if (pages instanceof Tensor) return [pages];
  if (pages.format === "int4") return [pages.codes, pages.scales, pages.zeros, pages.residual];
  return [pages.codes, pages.scales];
}
/** `float32[2, 1, 16, 8]`, or `int8 (codes uint8[2, 1, 16, 8], scales float32[2, 1, 16])`, for error texts. */
export function showPages(pages: Pages): string {
  if (pages instanceof Tensor) return show(pages);
  const names = ["codes", "scales", "zeros", "residual"];
  return `${pages.format} (${tensorsOf(pages)
    .map((t, i) => `${names[i]} ${show(t)}`)
    .join(", ")})`;
}
/** Groups of {@link GROUP} in n numbers, the last of which may be short. */
export function groupsOf(n: number): number {
  return Math.ceil(n / GROUP);
}
function isShape(t: Tensor, ...shape: readonly number[]): boolean {
  return t.rank === shape.length && shape.every((n, i) => t.shape[i] === n);
}
/** Throws DTypeError unless the tensors of the pages have the dtypes of their format. */
function checkDTypes(what: string, pages: QuantisedPages): void {
  const { format } = pages;
  if (format !== "int8" && format !== "float8e4m3" && format !== "int4")
    throw new DTypeError(
      `[${what}] pages are stored as int8, float8e4m3, int4 or floats; got ${String(format)}`,
      {
        format,
      },
    );
  const [codes, scales, zeros, residual] = tensorsOf(pages);
  const is16Or32 = residual === undefined || (residual.dtype !== "float64" && floatDType(residual));
  if (
    codes!.dtype === "uint8" &&
    scales!.dtype === "float32" &&
    (zeros ?? scales)!.dtype === "float32" &&
    is16Or32
  )
    return;
  throw new DTypeError(
    `[${what}] ${format} pages need uint8 codes, float32 scales and zeros, and a residual of float32, float16 or bfloat16; got ${showPages(pages)}`,
    { dtypes: tensorsOf(pages).map((t) => t.dtype) },
  );
}
function floatDType(t: Tensor): boolean {
  return t.dtype === "float32" || t.dtype === "float16" || t.dtype === "bfloat16";
}
/**
 * Lengths of pages; undefined when the shapes of their tensors do not fit together, a row of codes is not contiguous, or the page size
 * of "int4" is neither below {@link GROUP} nor a multiple of it, or its scales and zeros have other strides. Throws DTypeError.
 */
export function pageShape(what: string, pages: Pages, role: PageRole): PageShape | undefined {
  if (pages instanceof Tensor) {
    floatOnly(what, pages);
    const [P, Hkv, pageSize, width] = pages.shape as unknown as [number, number, number, number];
    return pages.rank === 4 ? { P, R: 0, Hkv, pageSize, width } : undefined;
  }
  checkDTypes(what, pages);
  const { codes, scales } = pages;
  if (codes.rank !== 4 || (codes.strides[3] !== 1 && codes.shape[3]! > 1)) return undefined;
  const [P, Hkv, pageSize, row] = codes.shape as unknown as [number, number, number, number];
  if (pages.format !== "int4")
    return isShape(scales, P, Hkv, pageSize) ? { P, R: 0, Hkv, pageSize, width: row } : undefined;
  const { residual, zeros } = pages;
  const [R, , , width] = residual.shape as unknown as [number, number, number, number];
  const groups = role === "keys" ? [groupsOf(pageSize), width] : [groupsOf(width), pageSize];
  const fits =
    isShape(residual, R, Hkv, pageSize, width) &&
    row === (GROUP / 2) * groupsOf(width) &&
    (pageSize < GROUP || pageSize % GROUP === 0) &&
    scales.strides.join() === zeros.strides.join() &&
    [scales, zeros].every((t) => isShape(t, P, Hkv, ...groups));
  return fits ? { P, R, Hkv, pageSize, width } : undefined;
}
