import { accumulatorOf } from "../../core/dtype.ts";
import { scope } from "../../core/scope.ts";
import type { Tensor } from "../../core/tensor.ts";
import { cast } from "../../ops/cast.ts";
import { attentionComposed } from "../attention/composed.ts";
import type { AttentionPlan } from "../attention/plan.ts";
import type { PageRole, Pages } from "../quantised/pages.ts";
import { readPages } from "../quantised/read.ts";
import { pagedAttentionOnDevice } from "./composed-device.ts";
import type { PagedAttentionPlan } from "./plan.ts";

/** Gathers each sequence's pages and attends over them in the composed form; the meaning that a paged kernel must match. */
export function pagedAttentionComposed(plan: PagedAttentionPlan): void {
  if (plan.engine.device !== "cpu") {
    pagedAttentionOnDevice(plan);
    return;
  }
  const { queryIndptr, indptr, indices, lengths } = plan.view.table;
  const { N, Hq, Hkv, D, Dv, pageSize } = plan.dims;
  const host = (t: Tensor<"int32">): Int32Array => scope(() => t.contiguous().data.slice());
  const [queries, starts, tokens] = [host(queryIndptr), host(indptr), host(lengths)];
  const accumulator = accumulatorOf(plan.q.dtype);
  for (let n = 0; n < N; n++) {
    const S = queries[n + 1]! - queries[n]!;
    const Sk = tokens[n]!;
    if (S === 0) continue;
    scope(() => {
      const used = indices.slice(0, starts[n]!, starts[n]! + Math.ceil(Sk / pageSize));
      // [pages, Hkv, pageSize, w] -> [1, Sk, Hkv, w]
      const rows = (pages: Pages, role: PageRole, width: number): Tensor => {
        const tokenMajor = readPages(pages, role, used, accumulator).permute(0, 2, 1, 3).contiguous();
        return cast(tokenMajor.reshape([1, -1, Hkv, width]).slice(1, 0, Sk), accumulator);
      };
      const part = (t: Tensor): Tensor => t.slice(0, queries[n]!, queries[n + 1]!).unsqueeze(0);
      const out = part(plan.out);
      const lse = plan.lse && part(plan.lse).transpose(1, 2); // [1, Hq, S]
      const contiguous = {
        engine: plan.engine,
        dims: { B: 1, S, Sk, Hq, Hkv, D, Dv },
        rules: plan.rules,
        q: cast(part(plan.q), accumulator),
        k: rows(plan.view.kPages, "keys", D),
        v: rows(plan.view.vPages, "values", Dv),
        out,
        lse,
      } as unknown as AttentionPlan;
      attentionComposed(contiguous);
    });
  }
}
