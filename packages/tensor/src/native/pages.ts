import { Tensor } from "../core/tensor.ts";
import type { KvAppendPlan } from "../fused/kv-append/plan.ts";
import type { Pages, QuantisedGroups, QuantisedPages } from "../fused/quantised/pages.ts";
import type { SealPagesPlan } from "../fused/seal-pages/plan.ts";
import type { Block } from "./block.ts";
import { KV_APPEND, SEAL_PAGES } from "./structs.ts";

/** heed_page_format. */
const FORMAT: Readonly<Record<QuantisedPages["format"], number>> = { float8e4m3: 1, int8: 2, int4: 3 };

/** The heed_page_format of pages. */
export function formatOf(pages: Pages): number {
  return pages instanceof Tensor ? 0 : FORMAT[pages.format];
}
/** The operands that hold pages: floats or codes, and the rest where the format has it. */
interface PageOperands {
  readonly pages: Tensor;
  readonly scales?: Tensor | undefined;
  readonly zeros?: Tensor | undefined;
  readonly residual?: Tensor | undefined;
}
function operandsOf(pages: Pages): PageOperands {
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
/** Writes heed_kv_append. New rows of "int4" pages go to the residual ones, as floats. */
export function writeKvAppend(block: Block, { k, v, kPages, vPages, slots, firstSlot }: KvAppendPlan): void {
  const { fields, bytes } = KV_APPEND;
  const [keys, values] = [operandsOf(kPages), operandsOf(vPages)];
  const { residual } = keys;
  block.begin(bytes, residual === undefined ? formatOf(kPages) : 0);
  block.tensor(fields.k, k); // [T, Hkv, D]
  block.tensor(fields.v, v); // [T, Hkv, Dv]
  block.tensor(fields.k_pages, residual ?? keys.pages); // [P, Hkv, pageSize, D]
  block.tensor(fields.v_pages, values.residual ?? values.pages); // [P, Hkv, pageSize, Dv]
  block.tensor(fields.slots, slots); // [T]
  block.tensor(fields.k_scales, residual === undefined ? keys.scales : undefined);
  block.tensor(fields.v_scales, residual === undefined ? values.scales : undefined);
  block.int64(fields.first_slot, firstSlot);
}
/** Writes heed_seal_pages. */
export function writeSealPages(block: Block, { kPages, vPages, from, to }: SealPagesPlan): void {
  const { fields, bytes } = SEAL_PAGES;
  block.begin(bytes, 0);
  writePages(block, fields, kPages, vPages);
  block.tensor(fields.from, from); // [n]
  block.tensor(fields.to, to); // [n]
}
