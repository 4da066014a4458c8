import type { FloatDType } from "../../core/dtype.ts";
import { scope } from "../../core/scope.ts";
import { Tensor } from "../../core/tensor.ts";
import { cast } from "../../ops/cast.ts";
import { copyInto } from "../../ops/concat.ts";
import { sub } from "../../ops/elementwise.ts";
import { withRows } from "../../ops/put-rows.ts";
import type { Pages } from "../quantised/pages.ts";
import { encodeRows } from "../quantised/rows.ts";
import type { KvAppendPlan } from "./plan.ts";

/** rows [T, Hkv, ...] and where they go, [P, Hkv, pageSize, ...]. */
type Write = readonly [rows: Tensor, pages: Tensor];

/** What is to be copied for rows [T, Hkv, width]: the rows themselves, or their codes and scales. */
function writes(rows: Tensor<FloatDType>, pages: Pages): readonly Write[] {
  if (pages instanceof Tensor) return [[rows, pages]];
  if (pages.format === "int4") return [[rows, pages.residual]];
  if (rows.size === 0) return []; // no columns: the scales belong to what holds them
  const { codes, scales } = encodeRows(rows, pages.format);
  return [
    [codes, pages.codes],
    [scales, pages.scales],
  ];
}
/** Copies runs of rows that go to consecutive rows of one page; on a device, whose slots the host does not see, rewrites the pages. */
export function kvAppendComposed({
  engine,
  k,
  v,
  kPages,
  vPages,
  slots,
  pageSize,
  firstSlot,
}: KvAppendPlan): void {
  scope(() => {
    const all = [...writes(k, kPages), ...writes(v, vPages)];
    if (engine.device !== "cpu") {
      const at = firstSlot === 0 ? slots : sub(slots, firstSlot);
      for (const write of all) rewrite(write, at);
      return;
    }
    const at = slots.contiguous().data.slice();
    for (let t = 0; t < at.length;) {
      const slot = at[t]! < 0 ? -1 : at[t]! - firstSlot;
      const row = slot % pageSize;
      let n = 1;
      while (slot >= 0 && t + n < at.length && at[t + n] === at[t]! + n && row + n < pageSize) n++;
      if (slot >= 0) for (const write of all) copyRun(write, [t, n], [Math.floor(slot / pageSize), row]);
      t += n;
    }
  });
}
/** Copies n rows from row t on into a page, from its row `row` on. */
function copyRun(
  [rows, pages]: Write,
  [t, n]: readonly [number, number],
  [page, row]: readonly [number, number],
): void {
  scope(() => {
    const target = pages.select(0, page).slice(1, row, row + n); // [Hkv, n, ...]
    copyInto(rows.slice(0, t, t + n).transpose(0, 1), target);
  });
}
/** Writes all pages anew, with the rows in their slots `at` [T]. */
function rewrite([rows, pages]: Write, at: Tensor<"int32">): void {
  scope(() => {
    if (pages.size === 0 || rows.size === 0) return;
    const byToken = pages.transpose(1, 2); // [P, pageSize, Hkv, ...]
    const { shape } = byToken;
    const before = byToken.contiguous().reshape([shape[0]! * shape[1]!, ...shape.slice(2)]);
    const after = withRows(before, cast(rows, pages.dtype), at);
    copyInto(after.reshape(shape), byToken);
  });
}
