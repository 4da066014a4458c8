import { scope } from "../../core/scope.ts";
import { copyInto } from "../../ops/concat.ts";
import type { KvAppendPlan } from "./plan.ts";

/** Copies runs of rows that go to consecutive rows of one page. */
export function kvAppendComposed({ k, v, kPages, vPages, slots }: KvAppendPlan): void {
  const pageSize = kPages.shape[2]!;
  const at = scope(() => slots.contiguous().data.slice());
  for (let t = 0; t < at.length;) {
    const slot = at[t]!;
    const row = slot % pageSize;
    let n = 1;
    while (slot >= 0 && t + n < at.length && at[t + n] === slot + n && row + n < pageSize) n++;
    if (slot >= 0) {
      scope(() => {
        for (const [rows, pages] of [
          [k, kPages],
          [v, vPages],
        ] as const) {
          const page = pages.select(0, Math.floor(slot / pageSize)).slice(1, row, row + n); // [Hkv, n, w]
          copyInto(rows.slice(0, t, t + n).transpose(0, 1), page);
        }
      });
    }
    t += n;
  }
}
