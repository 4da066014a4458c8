import { empty } from "@heed/tensor";
import type { Engine, QuantisedGroups, QuantisedPages, QuantisedRows, Tensor } from "@heed/tensor";

/** Pages, key heads, tokens of a page, head size. */
export type PageShape = readonly [P: number, Hkv: number, pageSize: number, D: number];

/** The numbers 0, 1, .. count - 1. */
export function counted(count: number): Int32Array<ArrayBuffer> {
  return Int32Array.from({ length: count }, (_, i) => i);
}
/** The tensors of pages, the residual pages left out. */
export function tensorsOf(pages: readonly QuantisedPages[]): Tensor[] {
  return pages.flatMap((p) => (p.format === "int4" ? [p.codes, p.scales, p.zeros] : [p.codes, p.scales]));
}
/** Empty pages [P, Hkv, pageSize, D] in 8 bits, of keys or of values. */
export function codePages(
  engine: Engine,
  format: "int8" | "float8e4m3",
  [P, Hkv, pageSize, D]: PageShape,
): QuantisedRows {
  const codes = empty([P, Hkv, pageSize, D], { engine, dtype: "uint8" });
  return { format, codes, scales: empty([P, Hkv, pageSize], { engine }) };
}
/** Empty pages [P, Hkv, pageSize, D] in 4 bits, of keys and of values, in front of residual pages. */
export function groupPages(
  engine: Engine,
  [P, Hkv, pageSize, D]: PageShape,
  residual: { readonly k: Tensor; readonly v: Tensor },
): readonly [QuantisedGroups, QuantisedGroups] {
  const pages = (residual: Tensor, groups: readonly number[]): QuantisedGroups => ({
    format: "int4",
    codes: empty([P, Hkv, pageSize, 16 * Math.ceil(D / 32)], { engine, dtype: "uint8" }),
    scales: empty([P, Hkv, ...groups], { engine }),
    zeros: empty([P, Hkv, ...groups], { engine }),
    residual,
  });
  return [pages(residual.k, [Math.ceil(pageSize / 32), D]), pages(residual.v, [Math.ceil(D / 32), pageSize])];
}
