import type { ScoreRules } from "@heed/tensor";
import type { Block } from "../block.ts";
import { SCORES } from "../structs.ts";

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
