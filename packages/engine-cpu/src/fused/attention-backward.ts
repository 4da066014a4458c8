import type { AttentionBackwardPlan, FusedOp } from "@heed/tensor";
import type { Native } from "../native.ts";
import { ATTENTION_BACKWARD } from "../structs.ts";
import { writeScores } from "./scores.ts";

/** Attention backward on heed_attention_backward_run; it takes every plan. */
export function attentionBackward(native: Native): FusedOp<AttentionBackwardPlan> {
  const { block, symbols } = native;
  const { fields, bytes } = ATTENTION_BACKWARD;
  return {
    refusal: () => undefined,
    run: ({ rules, q, k, v, out, lse, dOut, dq, dk, dv, dMask, dSinks }) => {
      block.begin(bytes, 0);
      writeScores(block, fields.scores, rules);
      block.tensor(fields.q, q); // [B, S, Hq, D]
      block.tensor(fields.k, k); // [B, Sk, Hkv, D]
      block.tensor(fields.v, v); // [B, Sk, Hkv, Dv]
      block.tensor(fields.out, out); // [B, S, Hq, Dv]
      block.tensor(fields.lse, lse); // [B, Hq, S]
      block.tensor(fields.d_out, dOut); // as out
      block.tensor(fields.dq, dq); // as q
      block.tensor(fields.dk, dk); // as k
      block.tensor(fields.dv, dv); // as v
      block.tensor(fields.d_mask, dMask); // [B, Hq, S, Sk] by zero strides
      block.tensor(fields.d_sinks, dSinks); // [Hq]
      native.run(symbols.heed_attention_backward_run);
    },
  };
}
