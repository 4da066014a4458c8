import type { AttentionPlan, PagedAttentionPlan, Pages, ScoreRules, Tensor } from "@heed/tensor";
import { type Block, formatOf, writePages, writeScores } from "@heed/tensor/native";

/** heed_cuda_attention of native/abi/heed_cuda_args.h; test/structs.test.ts compares it with what the library reports. */
export const ATTENTION_ARGS = {
  bytes: 2992,
  fields: {
    size: 0,
    tiles: 4,
    scores: 8,
    q: 800,
    k: 944,
    v: 1088,
    out: 1232,
    lse: 1376,
    query_indptr: 1520,
    indptr: 1664,
    indices: 1808,
    lengths: 1952,
    k_scales: 2096,
    v_scales: 2240,
    k_zeros: 2384,
    v_zeros: 2528,
    k_residual: 2672,
    v_residual: 2816,
    format: 2960,
    keys: 2964,
    part: 2968,
    reserved: 2972,
    partial: 2976,
    counters: 2984,
  },
} as const;
const { fields, bytes } = ATTENTION_ARGS;
const PAGE_FIELDS = { ...fields, k_pages: fields.k, v_pages: fields.v };
const TABLE = ["query_indptr", "indptr", "indices", "lengths"] as const;

/** What a kernel is given besides operands and rules. */
export interface Extras {
  /** Tiles of query rows to a sequence of a batch. */
  readonly tiles?: number;
  /** Keys of a tile. */
  readonly keys?: number;
  /** How a sequence is cut into parts, and the addresses where these meet. */
  readonly parts?:
    { readonly least: number; readonly partial: number; readonly counters: number } | undefined;
}
/** Queries and results, as the kernel takes them: perhaps in memory of their own. */
export interface QueryOperands {
  readonly q: Tensor;
  readonly out: Tensor;
  readonly lse: Tensor | undefined;
}
function begin(block: Block, rules: ScoreRules, { q, out, lse }: QueryOperands, extras: Extras): void {
  block.begin(bytes, extras.tiles ?? 0);
  writeScores(block, fields.scores, rules);
  block.tensor(fields.q, q);
  block.tensor(fields.out, out);
  block.tensor(fields.lse, lse);
  block.int32(fields.keys, extras.keys ?? 0);
  block.int32(fields.part, extras.parts?.least ?? 0);
  block.int32(fields.reserved, 0);
  block.int64(fields.partial, extras.parts?.partial ?? 0);
  block.int64(fields.counters, extras.parts?.counters ?? 0);
}
/** Writes heed_cuda_attention for a batch: q, out [B, S, Hq, D], k, v [B, Sk, Hkv, D], lse [B, Hq, S]. */
export function writeDense(
  block: Block,
  { rules }: Pick<AttentionPlan, "rules">,
  queries: QueryOperands,
  k: Tensor,
  v: Tensor,
  extras: Extras,
): void {
  begin(block, rules, queries, extras);
  block.tensor(fields.k, k);
  block.tensor(fields.v, v);
  for (const name of TABLE) block.absent(fields[name]);
  for (const name of ["scales", "zeros", "residual"] as const) {
    block.absent(fields[`k_${name}`]);
    block.absent(fields[`v_${name}`]);
  }
  block.int32(fields.format, 0);
}
/** Writes heed_cuda_attention over pages: q, out [T, Hq, D], pages [P, Hkv, pageSize, D], lse [T, Hq]. */
export function writePaged(
  block: Block,
  { rules, view }: Pick<PagedAttentionPlan, "rules" | "view">,
  queries: QueryOperands,
  extras: Extras,
  pages: { readonly kPages: Pages; readonly vPages: Pages } = view,
): void {
  const { table } = view;
  begin(block, rules, queries, extras);
  writePages(block, PAGE_FIELDS, pages.kPages, pages.vPages);
  block.tensor(fields.query_indptr, table.queryIndptr); // [N + 1]
  block.tensor(fields.indptr, table.indptr); // [N + 1]
  block.tensor(fields.indices, table.indices);
  block.tensor(fields.lengths, table.lengths); // [N]
  block.int32(fields.format, formatOf(pages.kPages));
}
