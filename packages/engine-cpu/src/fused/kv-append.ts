import type { FusedOp, KvAppendPlan } from "@heed/tensor";
import type { Native } from "../native.ts";
import { KV_APPEND } from "../structs.ts";

/** Writing new rows into pages on heed_kv_append_run; it takes every plan. */
export function kvAppend(native: Native): FusedOp<KvAppendPlan> {
  const { block, symbols } = native;
  const { fields, bytes } = KV_APPEND;
  return {
    refusal: () => undefined,
    run: ({ k, v, kPages, vPages, slots }) => {
      block.begin(bytes, 0);
      block.tensor(fields.k, k); // [T, Hkv, D]
      block.tensor(fields.v, v); // [T, Hkv, Dv]
      block.tensor(fields.k_pages, kPages); // [P, Hkv, pageSize, D]
      block.tensor(fields.v_pages, vPages); // [P, Hkv, pageSize, Dv]
      block.tensor(fields.slots, slots); // [T]
      native.run(symbols.heed_kv_append_run);
    },
  };
}
