import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { dispatch, type FusedMode } from "../../engine/fused.ts";
import type { Pages } from "../quantised/pages.ts";
import { kvAppendComposed } from "./composed.ts";
import { planKvAppend } from "./plan.ts";

/**
 * Writes row t of k [T, Hkv, D] and v [T, Hkv, Dv] to page floor(slots[t] / pageSize), row slots[t] mod pageSize, of kPages
 * [P, Hkv, pageSize, D] and vPages, converting to the pages' dtype or encoding into their format; a slot of -1 is skipped. Slots must be
 * distinct. Rows of "int4" pages go to residual pages (page numbers from P on) as they are: `sealPages` encodes a page that is full.
 * Throws ShapeError, DTypeError, ArgumentError, DeviceError, DisposedError; then nothing was written.
 */
export function kvAppend(
  k: Tensor,
  v: Tensor,
  kPages: Pages,
  vPages: Pages,
  slots: Tensor<"int32">,
  options: { readonly fused?: FusedMode | undefined } = {},
): void {
  scope(() => {
    const plan = planKvAppend(k, v, kPages, vPages, slots);
    if (k.size + v.size > 0) dispatch(plan.engine, "kvAppend", plan, kvAppendComposed, options.fused);
  });
}
