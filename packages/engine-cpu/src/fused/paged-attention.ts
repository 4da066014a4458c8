import type { FusedOp, PagedAttentionPlan } from "@heed/tensor";
import type { Native } from "../native.ts";
import { PAGED_ATTENTION } from "../structs.ts";
import { formatOf, writePages } from "./pages.ts";
import { writeScores } from "./scores.ts";

/** Attention over pages on heed_paged_attention_run; it takes every plan. */
export function pagedAttention(native: Native): FusedOp<PagedAttentionPlan> {
  const { block, symbols } = native;
  const { fields, bytes } = PAGED_ATTENTION;
  return {
    refusal: () => undefined,
    run: ({ rules, q, view, out, lse }) => {
      const { kPages, vPages, table } = view;
      block.begin(bytes, formatOf(kPages));
      writeScores(block, fields.scores, rules);
      block.tensor(fields.q, q); // [T, Hq, D]
      block.tensor(fields.out, out); // [T, Hq, Dv]
      block.tensor(fields.lse, lse); // [T, Hq]
      writePages(block, fields, kPages, vPages); // [P, Hkv, pageSize, D], [P, Hkv, pageSize, Dv]
      block.tensor(fields.query_indptr, table.queryIndptr); // [N + 1]
      block.tensor(fields.indptr, table.indptr); // [N + 1]
      block.tensor(fields.indices, table.indices);
      block.tensor(fields.lengths, table.lengths); // [N]
      native.run(symbols.heed_paged_attention_run);
    },
  };
}
