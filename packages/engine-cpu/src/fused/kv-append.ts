import type { FusedOp, KvAppendPlan } from "@heed/tensor";
import type { Native } from "../native.ts";
import { KV_APPEND } from "../structs.ts";
import { formatOf, operandsOf } from "./pages.ts";

/** Writing new rows into pages on heed_kv_append_run; it takes every plan. */
export function kvAppend(native: Native): FusedOp<KvAppendPlan> {
  const { block, symbols } = native;
  const { fields, bytes } = KV_APPEND;
  return {
    refusal: () => undefined,
    run: ({ k, v, kPages, vPages, slots, firstSlot }) => {
      const [keys, values] = [operandsOf(kPages), operandsOf(vPages)];
      const { residual } = keys; // new rows of "int4" go there, as floats
      block.begin(bytes, residual === undefined ? formatOf(kPages) : 0);
      block.tensor(fields.k, k); // [T, Hkv, D]
      block.tensor(fields.v, v); // [T, Hkv, Dv]
      block.tensor(fields.k_pages, residual ?? keys.pages); // [P, Hkv, pageSize, D]
      block.tensor(fields.v_pages, values.residual ?? values.pages); // [P, Hkv, pageSize, Dv]
      block.tensor(fields.slots, slots); // [T]
      block.tensor(fields.k_scales, residual === undefined ? keys.scales : undefined);
      block.tensor(fields.v_scales, residual === undefined ? values.scales : undefined);
      block.int64(fields.first_slot, firstSlot);
      native.run(symbols.heed_kv_append_run);
    },
  };
}
