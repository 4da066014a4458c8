import { accumulatorOf } from "../../core/dtype.ts";
import { scope } from "../../core/scope.ts";
import { allocate, type Tensor } from "../../core/tensor.ts";
import { cast } from "../../ops/cast.ts";
import { concat, copyInto } from "../../ops/concat.ts";
import { arange } from "../../ops/create.ts";
import { add, binary, minimum, mul, sub } from "../../ops/elementwise.ts";
import { gather } from "../../ops/gather.ts";
import { sum } from "../../ops/reduce.ts";
import { attentionComposed } from "../attention/composed.ts";
import type { AttentionPlan } from "../attention/plan.ts";
import type { PageRole, Pages } from "../quantised/pages.ts";
import { readPages } from "../quantised/read.ts";
import type { PagedAttentionPlan } from "./plan.ts";

/**
 * Attention over pages whose table the host does not see. Each sequence in turn is given all T query rows and as many pages as the whole
 * table lists; lengths and offsets exclude what is not its own, and the rows of each sequence are picked from its turn. N times the work.
 */
export function pagedAttentionOnDevice(plan: PagedAttentionPlan): void {
  const { N, T } = plan.dims;
  if (N === 0 || T === 0) return;
  scope(() => {
    const turns = Array.from({ length: N }, (_, n) => turnOf(plan, n));
    const { queryIndptr } = plan.view.table;
    const rows = arange(0, T, 1, { engine: plan.engine });
    const ended = binary("lessEqual", queryIndptr.slice(0, 1).unsqueeze(1), rows); // [N, T]
    const sequence = sum(cast(ended, "int32"), { axes: [0] });
    const from = add(mul(sequence, T), rows);
    copyInto(gather(concat(turns.map(({ out }) => out)), from), plan.out);
    if (plan.lse !== undefined) copyInto(gather(concat(turns.map(({ lse }) => lse!)), from), plan.lse);
  });
}
/** What all query rows would get as rows of sequence n: out [T, Hq, Dv] and lse [T, Hq]. */
function turnOf(plan: PagedAttentionPlan, n: number): { out: Tensor; lse: Tensor | undefined } {
  return scope(() => {
    const { engine, q, view, rules } = plan;
    const { T, Hq, Hkv, D, Dv, pageSize } = plan.dims;
    const { queryIndptr, lengths } = view.table;
    const accumulator = accumulatorOf(q.dtype);
    const used = pagesOf(plan, n);
    const Sk = used.size * pageSize;
    // [pages, Hkv, pageSize, w] -> [1, Sk, Hkv, w]
    const rows = (pages: Pages, role: PageRole, width: number): Tensor =>
      cast(
        readPages(pages, role, used, accumulator)
          .permute(0, 2, 1, 3)
          .contiguous()
          .reshape([1, Sk, Hkv, width]),
        accumulator,
      );
    const length = lengths.slice(0, n, n + 1);
    const out = allocate(engine, q.dtype, [1, T, Hq, Dv]);
    const lse = plan.lse && allocate(engine, accumulator, [1, Hq, T]);
    attentionComposed({
      engine,
      dims: { B: 1, S: T, Sk, Hq, Hkv, D, Dv },
      rules: {
        ...rules,
        kvLengths: length,
        queryOffset: sub(length, queryIndptr.slice(0, n + 1, n + 2)) as Tensor<"int32">,
      },
      q: cast(q.unsqueeze(0), accumulator),
      k: rows(view.kPages, "keys", D),
      v: rows(view.vPages, "values", Dv),
      out,
      lse,
    } as unknown as AttentionPlan);
    return { out: out.squeeze(0), lse: lse?.squeeze(0).transpose() };
  });
}
/** The pages of sequence n, then page 0 as often as the table lists others: what is not a token's is not to be looked at. */
function pagesOf({ engine, view, dims }: PagedAttentionPlan, n: number): Tensor<"int32"> {
  const { indptr, indices, lengths } = view.table;
  const at = arange(0, indices.size, 1, { engine });
  const listed = minimum(add(at, indptr.slice(0, n, n + 1) as Tensor<"int32">), indices.size - 1);
  const isUsed = binary("less", mul(at, dims.pageSize), lengths.slice(0, n, n + 1));
  return mul(gather(indices, listed), cast(isUsed, "int32"));
}
