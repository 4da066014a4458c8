import type { FusedOp, NormRopeAppendPlan } from "@heed/tensor";
import type { Native } from "../native.ts";
import { NORM_ROPE_APPEND } from "../structs.ts";
import { PAIRING } from "./rope.ts";

/** Norm, rotation and append in one pass on heed_norm_rope_append_run; it takes every plan. */
export function normRopeAppend(native: Native): FusedOp<NormRopeAppendPlan> {
  const { block, symbols } = native;
  const { fields, bytes } = NORM_ROPE_APPEND;
  return {
    refusal: () => undefined,
    run: ({ q, k, v, out, norm, rope, kPages, vPages, slots }) => {
      block.begin(bytes, norm?.unitOffset === true ? 1 : 0);
      block.float64(fields.eps, norm?.eps ?? 0);
      block.int32(fields.pairing, PAIRING[rope?.pairing ?? "half"]);
      block.int32(fields.rotary_dim, rope?.rotaryDim ?? 0);
      block.tensor(fields.q, q); // [T, Hq, D]
      block.tensor(fields.k, k); // [T, Hkv, D]
      block.tensor(fields.v, v); // [T, Hkv, Dv]
      block.tensor(fields.out, out); // [T, Hq, D]
      block.tensor(fields.q_weight, norm?.q); // [D] or [Hq * D]
      block.tensor(fields.k_weight, norm?.k); // [D] or [Hkv * D]
      block.tensor(fields.cos, rope?.cos); // [P, rotaryDim / 2]
      block.tensor(fields.sin, rope?.sin); // as cos
      block.tensor(fields.positions, rope?.positions); // [T]
      block.tensor(fields.k_pages, kPages); // [P, Hkv, pageSize, D]
      block.tensor(fields.v_pages, vPages); // [P, Hkv, pageSize, Dv]
      block.tensor(fields.slots, slots); // [T]
      native.run(symbols.heed_norm_rope_append_run);
    },
  };
}
