import type { DType, FusedOp, NormRopeAppendPlan, Tensor } from "@heed/tensor";
import { writeNormRopeAppend } from "@heed/tensor/native";
import { blocksFor, wholeWarps } from "../core/walk.ts";
import type { Device } from "../launch.ts";
import { lanesOf, NORM_ROPE_APPEND_ARGS, SCRATCH, THREADS } from "./rows.ts";

/** How the heads of a token, of q, k or v, become rows. */
export interface PartRows {
  /** Whether all heads are one row: they are normalised together. */
  readonly all: boolean;
  readonly rows: number;
  readonly lanes: number;
}
/** The rows of H heads of D numbers with these norm weights, [D] or [H * D]. */
export function partRows(H: number, D: number, weights: number | undefined, dtype: DType): PartRows {
  const all = weights !== undefined && weights !== D;
  return { all, rows: all ? 1 : H, lanes: lanesOf(all ? H * D : D, dtype) };
}
/** Threads of a block, and the blocks of a token for each part: whole blocks, since a block does one thing. */
export function tokenBlocks(parts: readonly PartRows[]): {
  readonly threads: number;
  readonly blocks: readonly number[];
} {
  const most = Math.max(...parts.map(({ rows, lanes }) => rows * lanes));
  const threads = parts.some(({ lanes }) => lanes > 32) ? THREADS : wholeWarps(most, THREADS);
  return { threads, blocks: parts.map(({ rows, lanes }) => Math.ceil((rows * lanes) / threads)) };
}
const PARTS = ["q", "k", "v"] as const;

/** Norm, rotation and append in one launch. */
export function normRopeAppend(device: Device): FusedOp<NormRopeAppendPlan> {
  const { block, limits } = device;
  const { fields, bytes } = NORM_ROPE_APPEND_ARGS;
  return {
    refusal: () => undefined,
    run: (plan) => {
      const { q, k, v, norm } = plan;
      const part = (x: Tensor, weight?: Tensor): PartRows =>
        partRows(x.shape[1]!, x.shape[2]!, weight?.size, q.dtype);
      const parts = [part(q, norm?.q), part(k, norm?.k), part(v)];
      const { threads, blocks } = tokenBlocks(parts);
      const tasks = q.shape[0]! * blocks.reduce((a, b) => a + b, 0);
      if (tasks === 0) return;
      writeNormRopeAppend(block, plan);
      block.int64(fields.tasks, tasks);
      PARTS.forEach((name, i) => {
        block.int32(fields[`${name}_lanes`], parts[i]!.lanes);
        block.int32(fields[`${name}_blocks`], blocks[i]!);
      });
      block.int32(fields.q_all, parts[0]!.all ? 1 : 0);
      block.int32(fields.k_all, parts[1]!.all ? 1 : 0);
      const grid = [blocksFor(tasks, limits), 1, 1] as const;
      device.launch(
        { kernel: `heed_cuda_norm_rope_append_${q.dtype}`, grid, threads, shared: SCRATCH },
        bytes,
      );
    },
  };
}
