import type { FusedOp, KvAppendPlan } from "@heed/tensor";
import { writeKvAppend } from "@heed/tensor/native";
import type { Device } from "../launch.ts";
import { filling, KV_APPEND_ARGS, lanesOf, launchRows } from "./rows.ts";

/** New rows into pages of any float dtype, of 8-bit codes, or into the residual pages of "int4". */
export function kvAppend(device: Device): FusedOp<KvAppendPlan> {
  const { block, limits } = device;
  const { fields, bytes } = KV_APPEND_ARGS;
  return {
    refusal: () => undefined,
    run: (plan) => {
      const { k, v } = plan;
      const [T, Hkv, D] = k.shape as readonly [number, number, number];
      const rows = T * 2 * Hkv;
      if (rows === 0) return;
      const lanes = lanesOf(Math.max(D, v.shape[2]!), k.dtype);
      writeKvAppend(block, plan);
      block.int64(fields.rows, rows);
      block.int32(fields.lanes, lanes);
      block.int32(fields.reserved, 0);
      device.launch(launchRows(`heed_cuda_kv_append_${k.dtype}`, rows, lanes, filling(limits)), bytes);
    },
  };
}
