import type { FusedOp, SealPagesPlan } from "@heed/tensor";
import { writeSealPages } from "@heed/tensor/native";
import { launchUnits } from "../core/walk.ts";
import type { Device } from "../launch.ts";
import { SEAL_PAGES_ARGS } from "./rows.ts";

/** What a head's page is cut into: bytes of token groups of keys, channel groups of tokens of values. */
export function unitsOfPage({ kPages, vPages }: Pick<SealPagesPlan, "kPages" | "vPages">): {
  readonly keys: number;
  readonly values: number;
} {
  const keys = kPages.scales.shape[2]! * kPages.codes.shape[3]!; // [P, Hkv, token groups, D], [P, Hkv, pageSize, bytes]
  const values = vPages.scales.shape[2]! * vPages.scales.shape[3]!; // [P, Hkv, channel groups, pageSize]
  return { keys, values };
}
/** Full residual pages into "int4" pages. */
export function sealPages(device: Device): FusedOp<SealPagesPlan> {
  const { block, limits } = device;
  const { fields, bytes } = SEAL_PAGES_ARGS;
  return {
    refusal: () => undefined,
    run: (plan) => {
      const { keys, values } = unitsOfPage(plan);
      const units = plan.from.size * plan.kPages.codes.shape[1]! * (keys + values);
      if (units === 0) return;
      writeSealPages(block, plan);
      block.int64(fields.units, units);
      block.int64(fields.key_units, keys);
      block.int64(fields.value_units, values);
      const { dtype } = plan.kPages.residual;
      device.launch(launchUnits(`heed_cuda_seal_pages_${dtype}`, units, limits), bytes);
    },
  };
}
