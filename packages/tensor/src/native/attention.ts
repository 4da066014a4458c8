import type { AttentionBackwardPlan, AttentionPlan, ScoreRules } from "../fused/attention/plan.ts";
import type { PagedAttentionPlan } from "../fused/paged-attention/plan.ts";
import type { Block } from "./block.ts";
import { formatOf, writePages } from "./pages.ts";
import { ATTENTION, ATTENTION_BACKWARD, PAGED_ATTENTION, SCORES } from "./structs.ts";

/** heed_offset_mode. */
const END = 0;
const CONSTANT = 1;
const TENSOR = 2;

/** Writes heed_scores, the rules by which a score becomes a weight, at `at` bytes into the block. */
export function writeScores(block: Block, at: number, rules: ScoreRules): void {
  const { fields } = SCORES;
  const { queryOffset, dropout } = rules;
  block.float64(at + fields.scale, rules.scale);
  block.float64(at + fields.softcap, rules.softcap);
  block.int64(at + fields.window_left, rules.windowLeft);
  block.int64(at + fields.window_right, rules.windowRight);
  block.int64(at + fields.sink_tokens, rules.sinkTokens);
  block.int64(at + fields.query_offset, typeof queryOffset === "number" ? queryOffset : 0);
  block.int32(
    at + fields.offset_mode,
    queryOffset === "end" ? END : typeof queryOffset === "number" ? CONSTANT : TENSOR,
  );
  block.int32(at + fields.dropout_threshold, dropout?.threshold ?? 0);
  block.float64(at + fields.dropout_factor, dropout?.factor ?? 0);
  block.int32(at + fields.dropout_seed, dropout?.key[0] ?? 0);
  block.int32(at + fields.dropout_seed + 4, dropout?.key[1] ?? 0);
  block.tensor(at + fields.mask, rules.mask);
  block.tensor(at + fields.alibi_slopes, rules.alibiSlopes);
  block.tensor(at + fields.sinks, rules.sinks);
  block.tensor(at + fields.kv_lengths, rules.kvLengths);
  block.tensor(at + fields.query_offsets, typeof queryOffset === "object" ? queryOffset : undefined);
}
/** Writes heed_attention. */
export function writeAttention(block: Block, { rules, q, k, v, out, lse }: AttentionPlan): void {
  const { fields, bytes } = ATTENTION;
  block.begin(bytes, 0);
  writeScores(block, fields.scores, rules);
  block.tensor(fields.q, q); // [B, S, Hq, D]
  block.tensor(fields.k, k); // [B, Sk, Hkv, D]
  block.tensor(fields.v, v); // [B, Sk, Hkv, Dv]
  block.tensor(fields.out, out); // [B, S, Hq, Dv]
  block.tensor(fields.lse, lse); // [B, Hq, S]
}
/** Writes heed_attention_backward. */
export function writeAttentionBackward(block: Block, plan: AttentionBackwardPlan): void {
  const { fields, bytes } = ATTENTION_BACKWARD;
  block.begin(bytes, 0);
  writeScores(block, fields.scores, plan.rules);
  block.tensor(fields.q, plan.q); // [B, S, Hq, D]
  block.tensor(fields.k, plan.k); // [B, Sk, Hkv, D]
  block.tensor(fields.v, plan.v); // [B, Sk, Hkv, Dv]
  block.tensor(fields.out, plan.out); // [B, S, Hq, Dv]
  block.tensor(fields.lse, plan.lse); // [B, Hq, S]
  block.tensor(fields.d_out, plan.dOut); // as out
  block.tensor(fields.dq, plan.dq); // as q
  block.tensor(fields.dk, plan.dk); // as k
  block.tensor(fields.dv, plan.dv); // as v
  block.tensor(fields.d_mask, plan.dMask); // [B, Hq, S, Sk] by zero strides
  block.tensor(fields.d_sinks, plan.dSinks); // [Hq]
}
/** Writes heed_paged_attention. */
export function writePagedAttention(block: Block, { rules, q, view, out, lse }: PagedAttentionPlan): void {
  const { fields, bytes } = PAGED_ATTENTION;
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
}
