import { DTYPES, type Engine } from "@heed/tensor";
import { SOFTMAX } from "@heed/tensor/native";
import type { Device, DeviceLimits, Launch } from "../launch.ts";
import { type Axes, collapse, join, pick, sizeOf } from "./axes.ts";
import { SOFTMAX_ARGS } from "./structs.ts";
import { axesOf, type View, writeOperand } from "./view.ts";
import { blocksFor, powerOfTwo, vectorOf, wholeWarps } from "./walk.ts";

/** How a softmax runs: `rows` rows along the last axis, `lanes` threads each. Operands are out and x. */
export interface SoftmaxPlan {
  readonly axes: Axes;
  readonly rows: number;
  readonly lanes: number;
  readonly launch: Launch;
}
const THREADS = 256;
/** Vectors of a lane from which on a row gets a block instead of a warp: the warp would wait for its loads one after another. */
const LONG_ROW = 4;

/** The schedule. Lanes of a row are as many as its vectors, up to a warp; a long row gets a block. */
export function softmaxPlan(x: View, out: View, limits: DeviceLimits): SoftmaxPlan {
  const all = axesOf(out, x);
  const last = x.shape.length - 1;
  const outer = collapse(
    pick(
      all,
      x.shape.map((_, i) => i).filter((i) => i !== last),
    ),
  );
  const axes = join(outer, pick(all, [last]));
  const dense = x.strides[last] === 1 && out.strides[last] === 1;
  const vectors = Math.ceil(x.shape[last]! / (dense ? vectorOf(x.dtype) : 1));
  const lanes = vectors > 32 * LONG_ROW ? THREADS : Math.min(32, powerOfTwo(vectors));
  const rows = sizeOf(outer.shape);
  const threads = lanes > 32 ? lanes : wholeWarps(rows * lanes, THREADS);
  const blocks = blocksFor(Math.ceil(rows / (threads / lanes)), limits);
  const shared = 32 * (DTYPES[x.dtype].bytes === 8 ? 8 : 4); // a value of each warp
  return {
    axes,
    rows,
    lanes,
    launch: { kernel: `heed_cuda_softmax_${x.dtype}`, grid: [blocks, 1, 1], threads, shared },
  };
}
/** Softmax over the last axis. */
export function softmax(device: Device): Engine["softmax"] {
  const { block, limits } = device;
  const { fields, bytes } = SOFTMAX_ARGS;
  return (x, out) => {
    const { axes, rows, lanes, launch } = softmaxPlan(x, out, limits);
    block.begin(bytes, 0);
    writeOperand(block, SOFTMAX.fields.x, x, axes, 1);
    writeOperand(block, SOFTMAX.fields.out, out, axes, 0);
    block.int64(fields.rows, rows);
    block.int32(fields.lanes, lanes);
    block.int32(fields.reserved, 0);
    device.launch(launch, bytes);
  };
}
