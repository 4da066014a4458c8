import type { AttentionPlan, FusedOp } from "@heed/tensor";
import type { Native } from "../native.ts";
import { ATTENTION } from "../structs.ts";
import { writeScores } from "./scores.ts";

/** Attention forward on heed_attention_run; it takes every plan. */
export function attention(native: Native): FusedOp<AttentionPlan> {
  const { block, symbols } = native;
  const { fields, bytes } = ATTENTION;
  return {
    refusal: () => undefined,
    run: ({ rules, q, k, v, out, lse }) => {
      block.begin(bytes, 0);
      writeScores(block, fields.scores, rules);
      block.tensor(fields.q, q); // [B, S, Hq, D]
      block.tensor(fields.k, k); // [B, Sk, Hkv, D]
      block.tensor(fields.v, v); // [B, Sk, Hkv, Dv]
      block.tensor(fields.out, out); // [B, S, Hq, Dv]
      block.tensor(fields.lse, lse); // [B, Hq, S]
      native.run(symbols.heed_attention_run);
    },
  };
}
