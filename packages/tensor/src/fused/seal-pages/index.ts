import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { dispatch, type FusedMode } from "../../engine/fused.ts";
import type { QuantisedGroups } from "../quantised/pages.ts";
import { sealPagesComposed } from "./composed.ts";
import { planSealPages } from "./plan.ts";

/**
 * Encodes the full residual pages from [n] of "int4" keys and values into their pages to [n], whose numbers must be distinct: keys per
 * channel over groups of 32 tokens, values per token over groups of 32 channels (KIVI: Liu et al. 2024, arXiv:2402.02750). A group's zero is
 * its smallest number and its scale a fifteenth of its span, so that a number moves by half a scale at most; a group that holds NaN or
 * Infinity becomes NaN. The residual pages stay as they are. Throws ShapeError, DTypeError, ArgumentError, DeviceError, DisposedError;
 * then nothing was written.
 */
export function sealPages(
  kPages: QuantisedGroups,
  vPages: QuantisedGroups,
  from: Tensor<"int32">,
  to: Tensor<"int32">,
  options: { readonly fused?: FusedMode | undefined } = {},
): void {
  scope(() => {
    const plan = planSealPages(kPages, vPages, from, to);
    if (from.size > 0) dispatch(plan.engine, "sealPages", plan, sealPagesComposed, options.fused);
  });
}
