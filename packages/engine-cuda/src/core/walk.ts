import { type DType, DTYPES } from "@heed/tensor";
import type { Block } from "@heed/tensor/native";
import type { DeviceLimits, Launch } from "../launch.ts";
import { type Axes, sizeOf } from "./axes.ts";
import { WALK } from "./structs.ts";

/** heed_cuda_walk: `units` groups of up to `width` neighbours along the last axis, `perRow` to a row. */
export interface Walk {
  readonly units: number;
  readonly perRow: number;
  readonly width: number;
}
/** Elements of 16 bytes, the widest load of a thread. */
export function vectorOf(dtype: DType): number {
  return 16 / DTYPES[dtype].bytes;
}
/**
 * How elementwise work over these axes is cut. Units are as wide as a vector where every operand's last axis is dense or repeats
 * one element, else single elements, so that neighbouring threads touch neighbouring ones.
 */
export function walkOf({ shape, strides }: Axes, widest: number): Walk {
  const length = shape.at(-1)!;
  const dense = strides.every((s) => s.at(-1) === 1 || s.at(-1) === 0);
  const width = dense && length >= widest ? widest : 1;
  const perRow = Math.ceil(length / width);
  return { units: sizeOf(shape.slice(0, -1)) * perRow, perRow, width };
}
/** 8 warps: enough blocks fit a multiprocessor's 64 warps to even out, and a grid's last wave is short. */
const THREADS = 256;
/** Twice the 8 blocks of 256 threads that a multiprocessor holds: past that, threads take several units. */
const BLOCKS_EACH = 16;

/** `threads` rounded up to whole warps, a block's at most. */
export function wholeWarps(threads: number, most: number = THREADS): number {
  return Math.min(most, Math.ceil(threads / 32) * 32);
}
/** The grid of a kernel whose threads take units in turn. */
export function launchUnits(kernel: string, units: number, limits: DeviceLimits): Launch {
  const threads = wholeWarps(units);
  const blocks = Math.min(Math.ceil(units / threads), BLOCKS_EACH * limits.multiprocessors);
  return { kernel, grid: [blocks, 1, 1], threads, shared: 0 };
}
/** Blocks for `tasks` that blocks take in turn. */
export function blocksFor(tasks: number, limits: DeviceLimits): number {
  return Math.min(tasks, BLOCKS_EACH * limits.multiprocessors);
}
export function writeWalk(block: Block, at: number, { units, perRow, width }: Walk): void {
  block.int64(at + WALK.fields.units, units);
  block.int64(at + WALK.fields.per_row, perRow);
  block.int32(at + WALK.fields.width, width);
  block.int32(at + WALK.fields.reserved, 0);
}
/** The smallest power of two that is at least x. */
export function powerOfTwo(x: number): number {
  return 2 ** Math.ceil(Math.log2(Math.max(x, 1)));
}
