import type { FloatDType } from "../../core/dtype.ts";
import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { dispatch, type FusedMode } from "../../engine/fused.ts";
import type { ScoreOptions } from "../attention/options.ts";
import type { Pages } from "../quantised/pages.ts";
import { pagedAttentionComposed } from "./composed.ts";
import { type PagedAttentionPlan, type PagedView, planPagedAttention } from "./plan.ts";

/** Options of {@link pagedAttention}. `isCausal` is true unless said otherwise. */
export interface PagedAttentionOptions extends ScoreOptions {
  /** See {@link FusedMode}. */
  readonly fused?: FusedMode | undefined;
}
function run(
  q: Tensor,
  view: PagedView<Pages>,
  o: PagedAttentionOptions,
  wantLse: boolean,
): PagedAttentionPlan {
  const plan = planPagedAttention(q, view, o, wantLse);
  if (plan.out.size > 0) dispatch(plan.engine, "pagedAttention", plan, pagedAttentionComposed, o.fused);
  return plan;
}
/**
 * Attention of a ragged batch over a paged cache (Kwon et al. 2023, arXiv:2309.06180), prefill and decode in any mix: q [T, Hq, D] holds
 * the queries of all sequences one after the other, each standing at the end of its sequence as `view.table` says. Keys and values are
 * read in place, quantised ones included. Returns [T, Hq, Dv] in q's dtype, which may differ from the pages'.
 * Throws ShapeError, DTypeError, ArgumentError (a table that does not fit), DeviceError, DisposedError, OutOfMemoryError.
 */
export function pagedAttention<D extends FloatDType>(
  q: Tensor<D>,
  view: PagedView<Pages>,
  options: PagedAttentionOptions = {},
): Tensor<D> {
  return scope(() => run(q, view, options, false).out as Tensor as Tensor<D>);
}
/** {@link pagedAttention} that also returns the log-sum-exp of each row's scores [T, Hq], float32 (float64 for float64). */
export function pagedAttentionWithLse<D extends FloatDType>(
  q: Tensor<D>,
  view: PagedView<Pages>,
  options: PagedAttentionOptions = {},
): { readonly output: Tensor<D>; readonly lse: Tensor } {
  return scope(() => {
    const { out, lse } = run(q, view, options, true);
    return { output: out as Tensor as Tensor<D>, lse: lse! };
  });
}
