import { type Pages, type QuantisedGroups, type QuantisedPages, Tensor } from "@heed/tensor";
import type { Block } from "../block.ts";

/** heed_page_format. */
const FORMAT: Readonly<Record<QuantisedPages["format"], number>> = { float8e4m3: 1, int8: 2, int4: 3 };

/** The heed_page_format of pages. */
export function formatOf(pages: Pages): number {
  return pages instanceof Tensor ? 0 : FORMAT[pages.format];
}
/** The operands that hold pages: floats or codes, and the rest where the format has it. */
export interface PageOperands {
  readonly pages: Tensor;
  readonly scales?: Tensor | undefined;
  readonly zeros?: Tensor | undefined;
  readonly residual?: Tensor | undefined;
}
/** The operands of pages as the kernels take them. */
export function operandsOf(pages: Pages): PageOperands {
  if (pages instanceof Tensor) return { pages };
  const { codes, scales } = pages;
  if (pages.format !== "int4") return { pages: codes, scales };
  return { pages: codes, scales, zeros: pages.zeros, residual: pages.residual };
}
type PageField = `${"k" | "v"}_${"pages" | "scales" | "zeros" | "residual"}`;
/** Writes all operands of keys and values into a block that has a field for each. */
export function writePages(
  block: Block,
  fields: Readonly<Record<PageField, number>>,
  kPages: Pages | QuantisedGroups,
  vPages: Pages | QuantisedGroups,
): void {
  const [k, v] = [operandsOf(kPages), operandsOf(vPages)];
  block.tensor(fields.k_pages, k.pages);
  block.tensor(fields.v_pages, v.pages);
  block.tensor(fields.k_scales, k.scales);
  block.tensor(fields.v_scales, v.scales);
  block.tensor(fields.k_zeros, k.zeros);
  block.tensor(fields.v_zeros, v.zeros);
  block.tensor(fields.k_residual, k.residual);
  block.tensor(fields.v_residual, v.residual);
}
