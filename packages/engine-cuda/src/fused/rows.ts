import type { DType } from "@heed/tensor";
import type { Struct } from "@heed/tensor/native";
import type { DeviceLimits, Launch } from "../launch.ts";
import { blocksFor, powerOfTwo, vectorOf, wholeWarps } from "../core/walk.ts";

// Structs of the kernels over rows in native/abi/heed_cuda_args.h; test/fused/rows.test.ts compares them with what the library reports.

/** heed_cuda_rms_norm. */
export const RMS_NORM_ARGS = {
  bytes: 464,
  fields: { problem: 0, rows: 448, lanes: 456, reserved: 460 },
} as const;
/** heed_cuda_rms_norm_backward. */
export const RMS_NORM_BACKWARD_ARGS = {
  bytes: 760,
  fields: { problem: 0, rows: 736, partial: 744, lanes: 752, reserved: 756 },
} as const;
/** heed_cuda_rope. */
export const ROPE_ARGS = { bytes: 744, fields: { problem: 0, units: 736 } } as const;
/** heed_cuda_kv_append. */
export const KV_APPEND_ARGS = {
  bytes: 1040,
  fields: { problem: 0, rows: 1024, lanes: 1032, tokens: 1036 },
} as const;
/** heed_cuda_norm_rope_append. */
export const NORM_ROPE_APPEND_ARGS = {
  bytes: 1792,
  fields: {
    problem: 0,
    tasks: 1752,
    q_lanes: 1760,
    k_lanes: 1764,
    v_lanes: 1768,
    q_all: 1772,
    k_all: 1776,
    q_blocks: 1780,
    k_blocks: 1784,
    v_blocks: 1788,
  },
} as const;
/** heed_cuda_seal_pages. */
export const SEAL_PAGES_ARGS = {
  bytes: 1472,
  fields: { problem: 0, units: 1448, key_units: 1456, value_units: 1464 },
} as const;
/** The structs of the kernels over rows under their C names. */
export const ROW_STRUCTS: Readonly<Record<string, Struct>> = {
  heed_cuda_rms_norm: RMS_NORM_ARGS,
  heed_cuda_rms_norm_backward: RMS_NORM_BACKWARD_ARGS,
  heed_cuda_rope: ROPE_ARGS,
  heed_cuda_kv_append: KV_APPEND_ARGS,
  heed_cuda_norm_rope_append: NORM_ROPE_APPEND_ARGS,
  heed_cuda_seal_pages: SEAL_PAGES_ARGS,
};

/** Threads of a block. */
export const THREADS = 256;
/** Vectors of a lane from which on a row gets a block instead of a warp: the warp would wait for its loads one after another. */
const LONG_ROW = 4;
/** Bytes of shared memory through which the warps of a block add up a row: one number each, at most a float64. */
export const SCRATCH: number = 32 * 8;

/**
 * Threads of a row of `length` numbers: a power of two up to a warp, or a block. It depends on nothing else, so that a row is added up in
 * the same order whatever kernel it is in and wherever it lies.
 */
export function lanesOf(length: number, dtype: DType): number {
  const vectors = Math.ceil(length / vectorOf(dtype));
  return vectors > 32 * LONG_ROW ? THREADS : Math.min(32, powerOfTwo(vectors));
}
/** The launch of a kernel whose blocks take rows of `lanes` threads in turn, and the blocks at most. */
export function launchRows(
  kernel: string,
  rows: number,
  lanes: number,
  blocks: (tasks: number) => number,
): Launch {
  const threads = lanes > 32 ? THREADS : wholeWarps(rows * lanes, THREADS);
  return {
    kernel,
    grid: [blocks(Math.ceil(rows / (threads / lanes))), 1, 1],
    threads,
    shared: SCRATCH,
  };
}
/** Blocks of one task each: the device hands them out as others end. Past what a grid has room for they take several. */
export const oneEach = (tasks: number): number => Math.min(tasks, 2 ** 20);
/** Blocks that fill the device. */
export const filling =
  (limits: DeviceLimits) =>
  (tasks: number): number =>
    blocksFor(tasks, limits);
