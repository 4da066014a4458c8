import type { FusedOp, RopePlan } from "@heed/tensor";
import { writeRope } from "@heed/tensor/native";
import { launchUnits, vectorOf } from "../core/walk.ts";
import type { Device } from "../launch.ts";
import { ROPE_ARGS } from "./rows.ts";

/** Vectors that a head is cut into: those of pairs, then those of what passes through; rope.cuh counts the same. */
export function unitsOfHead({
  x,
  rotaryDim,
  pairing,
}: Pick<RopePlan, "x" | "rotaryDim" | "pairing">): number {
  const vector = vectorOf(x.dtype);
  const turned = pairing === "interleaved" ? rotaryDim : rotaryDim / 2;
  return Math.ceil(turned / vector) + Math.ceil((x.shape[3]! - rotaryDim) / vector);
}
/** Rotation of every head, forward and backward. */
export function rope(device: Device): FusedOp<RopePlan> {
  const { block, limits } = device;
  const { fields, bytes } = ROPE_ARGS;
  return {
    refusal: () => undefined,
    run: (plan) => {
      const [B, S, H] = plan.x.shape as readonly [number, number, number, number];
      const units = B * S * H * unitsOfHead(plan);
      if (units === 0) return;
      writeRope(block, plan);
      block.int64(fields.units, units);
      device.launch(launchUnits(`heed_cuda_rope_${plan.x.dtype}`, units, limits), bytes);
    },
  };
}
