import {
  allocate,
  DTYPES,
  type FusedOp,
  type RmsNormBackwardPlan,
  type RmsNormPlan,
  type Tensor,
} from "@heed/tensor";
import { RMS_NORM, RMS_NORM_BACKWARD, writeRmsNorm, writeRmsNormBackward } from "@heed/tensor/native";
import { type Axes, collapse, join, pick, sizeOf } from "../core/axes.ts";
import { addressOf, axesOf, type View, writeOperand } from "../core/view.ts";
import type { Device, Launch } from "../launch.ts";
import { filling, lanesOf, launchRows, RMS_NORM_ARGS, RMS_NORM_BACKWARD_ARGS } from "./rows.ts";

/** Blocks that share the rows of a backward pass at most: two for each of the 132 multiprocessors of an H100. The same on every device,
 * so that the gradient of the weight is. */
const BACKWARD_BLOCKS = 264;
/** Rows that a group of lanes has at least, for each of which it would otherwise write a row of partial sums. */
const BACKWARD_ROWS = 4;

/** Rows along the last axis: operands [rows..., n] with as few axes as possible. */
export interface RowAxes {
  readonly axes: Axes;
  readonly rows: number;
  readonly lanes: number;
}
/** The rows of operands of one shape [A, B, C, n]. */
export function rowsOf(first: View, ...rest: readonly View[]): RowAxes {
  const all = axesOf(first, ...rest);
  const last = first.shape.length - 1;
  const outer = collapse(
    pick(
      all,
      Array.from({ length: last }, (_, i) => i),
    ),
  );
  const rows = sizeOf(outer.shape);
  return { axes: join(outer, pick(all, [last])), rows, lanes: lanesOf(first.shape[last]!, first.dtype) };
}
/** The launch of the backward pass, and the groups of lanes in it: as many rows of partial sums. */
export function backwardPlan(
  dtype: string,
  { rows, lanes }: RowAxes,
): { readonly launch: Launch; readonly groups: number } {
  const blocks = (tasks: number): number => Math.min(BACKWARD_BLOCKS, Math.ceil(tasks / BACKWARD_ROWS));
  const launch = launchRows(`heed_cuda_rms_norm_backward_${dtype}`, rows, lanes, blocks);
  return { launch, groups: (launch.grid[0] * launch.threads) / lanes };
}

/** RMS norm over the last axis. */
export function rmsNorm(device: Device): FusedOp<RmsNormPlan> {
  const { block, limits } = device;
  const { fields, bytes } = RMS_NORM_ARGS;
  return {
    refusal: () => undefined,
    run: (plan) => {
      const { axes, rows, lanes } = rowsOf(plan.out, plan.x);
      if (rows === 0) return;
      writeRmsNorm(block, plan);
      writeOperand(block, RMS_NORM.fields.out, plan.out, axes, 0);
      writeOperand(block, RMS_NORM.fields.x, plan.x, axes, 1);
      block.int64(fields.rows, rows);
      block.int32(fields.lanes, lanes);
      block.int32(fields.reserved, 0);
      device.launch(launchRows(`heed_cuda_rms_norm_${plan.x.dtype}`, rows, lanes, filling(limits)), bytes);
    },
  };
}
/** Its gradients. That of the weight is summed by groups of lanes, then over these by the reduction: the same bits every time. */
export function rmsNormBackward(device: Device): FusedOp<RmsNormBackwardPlan> {
  const { block } = device;
  const { fields, bytes } = RMS_NORM_BACKWARD_ARGS;
  const once = (
    plan: RmsNormBackwardPlan,
    all: RowAxes,
    launch: Launch,
    partial: Tensor | undefined,
  ): void => {
    const { axes, rows, lanes } = all;
    writeRmsNormBackward(block, plan);
    writeOperand(block, RMS_NORM_BACKWARD.fields.d_x, plan.dx, axes, 0);
    writeOperand(block, RMS_NORM_BACKWARD.fields.x, plan.x, axes, 1);
    writeOperand(block, RMS_NORM_BACKWARD.fields.d_out, plan.dOut, axes, 2);
    block.int64(fields.rows, rows);
    block.int64(fields.partial, partial === undefined ? 0 : addressOf(partial));
    block.int32(fields.lanes, lanes);
    block.int32(fields.reserved, 0);
    device.launch(launch, bytes);
  };
  return {
    refusal: () => undefined,
    run: (plan) => {
      const { engine, dWeight } = plan;
      const all = rowsOf(plan.dx, plan.x, plan.dOut);
      if (all.rows === 0) {
        if (dWeight !== undefined)
          device.zero(addressOf(dWeight), dWeight.size * DTYPES[dWeight.dtype].bytes);
        return;
      }
      const { launch, groups } = backwardPlan(plan.x.dtype, all);
      if (dWeight === undefined) {
        once(plan, all, launch, undefined);
        return;
      }
      using partial = allocate(engine, dWeight.dtype, [groups, dWeight.size]);
      once(plan, all, launch, partial);
      using sums = dWeight.unsqueeze(0);
      engine.reduce("sum", partial, sums);
    },
  };
}
