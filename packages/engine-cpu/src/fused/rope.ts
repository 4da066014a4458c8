import type { FusedOp, RopePlan } from "@heed/tensor";
import type { Native } from "../native.ts";
import { ROPE } from "../structs.ts";

/** heed_pairing. */
export const PAIRING: Readonly<Record<RopePlan["pairing"], number>> = { half: 0, interleaved: 1 };

/** Rotary embedding, and its backward pass, on heed_rope_run; it takes every plan. */
export function rope(native: Native): FusedOp<RopePlan> {
  const { block, symbols } = native;
  const { fields, bytes } = ROPE;
  return {
    refusal: () => undefined,
    run: ({ x, out, cos, sin, positions, rotaryDim, pairing, inverse }) => {
      block.begin(bytes, PAIRING[pairing]);
      block.int32(fields.rotary_dim, rotaryDim);
      block.int32(fields.inverse, inverse ? 1 : 0);
      block.tensor(fields.x, x); // [B, S, H, D]
      block.tensor(fields.out, out); // as x
      block.tensor(fields.cos, cos); // [P, rotaryDim / 2]
      block.tensor(fields.sin, sin); // as cos
      block.tensor(fields.positions, positions); // [B, S]
      native.run(symbols.heed_rope_run);
    },
  };
}
