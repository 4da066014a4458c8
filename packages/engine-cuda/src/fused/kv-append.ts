import { type FusedOp, type KvAppendPlan, Tensor } from "@heed/tensor";
import { writeKvAppend } from "@heed/tensor/native";
import type { Device } from "../launch.ts";
import { isAligned } from "./attention/operands.ts";
import { filling, KV_APPEND_ARGS, lanesOf, launchRows, oneEach, THREADS } from "./rows.ts";

/** Tokens of which a lane has vectors under way together in native/kernels/rows/append.cuh. */
const TOKENS = 4;
/** Blocks of that kernel that a multiprocessor holds at once. */
const RESIDENT = 4;

/** Whether rows go into pages as they are, vector by vector. */
function copiesVectors({ k, v, kPages, vPages }: KvAppendPlan): boolean {
  return (
    [kPages, vPages].every(
      (pages) => pages instanceof Tensor && pages.dtype === k.dtype && isAligned(pages),
    ) && [k, v].every(isAligned)
  );
}
/** Tokens that a lane takes, of T with `rows` heads each: several of vectors, where that leaves enough lanes to fill the device. */
export function tokensEach(
  vectors: boolean,
  T: number,
  rows: number,
  lanes: number,
  multiprocessors: number,
): number {
  return vectors && T * rows * lanes >= TOKENS * RESIDENT * THREADS * multiprocessors ? TOKENS : 1;
}

/** New rows into pages of any float dtype, of 8-bit codes, or into the residual pages of "int4". */
export function kvAppend(device: Device): FusedOp<KvAppendPlan> {
  const { block, limits } = device;
  const { fields, bytes } = KV_APPEND_ARGS;
  return {
    refusal: () => undefined,
    run: (plan) => {
      const { k, v } = plan;
      const [T, Hkv, D] = k.shape as readonly [number, number, number];
      if (T * Hkv === 0) return;
      const lanes = lanesOf(Math.max(D, v.shape[2]!), k.dtype);
      const tokens = tokensEach(copiesVectors(plan), T, 2 * Hkv, lanes, limits.multiprocessors);
      const rows = Math.ceil(T / tokens) * 2 * Hkv;
      writeKvAppend(block, plan);
      block.int64(fields.rows, rows);
      block.int32(fields.lanes, lanes);
      block.int32(fields.tokens, tokens);
      const blocks = tokens === TOKENS ? oneEach : filling(limits);
      device.launch(launchRows(`heed_cuda_kv_append_${k.dtype}`, rows, lanes, blocks), bytes);
    },
  };
}
