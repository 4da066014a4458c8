import type { Engine } from "@heed/tensor";
import { GATHER, SCATTER_ADD } from "@heed/tensor/native";
import type { Device, DeviceLimits, Launch } from "../launch.ts";
import { type Axes, collapse, join, pick } from "./axes.ts";
import { GATHER_ARGS, SCATTER_ADD_ARGS } from "./structs.ts";
import { addressOf, type View } from "./view.ts";
import { blocksFor, launchUnits, vectorOf, type Walk, walkOf, writeWalk } from "./walk.ts";

/** How rows are moved: axis 0 is that of the rows, the others are those of a row; operands are out and x. */
export interface RowsPlan {
  readonly axes: Axes;
  readonly walk: Walk;
  readonly launch: Launch;
}
/** The axis of the rows and those of a row, of out and x. */
function rowAxes(out: View, x: View): { rows: Axes; row: Axes } {
  const all: Axes = { shape: out.shape, strides: [out.strides, x.strides] };
  const rest = out.shape.map((_, i) => i).slice(1);
  return { rows: pick(all, [0]), row: collapse(pick(all, rest)) };
}
/** The schedule of out[i] = x[indices[i]]: units of all rows. */
export function gatherPlan(x: View, out: View, limits: DeviceLimits): RowsPlan {
  const { rows, row } = rowAxes(out, x);
  const one = walkOf(row, vectorOf(x.dtype));
  const walk = { ...one, units: one.units * out.shape[0]! };
  return { axes: join(rows, row), walk, launch: launchUnits("heed_cuda_gather_rows", walk.units, limits) };
}
/** Warps of a block of heed_cuda_scatter_add; each takes an index and 32 units of its row. */
const SCATTER_WARPS = 4;

/** The schedule of out[indices[i]] += x[i]: the walk is that of one row. */
export function scatterAddPlan(x: View, out: View, limits: DeviceLimits): RowsPlan {
  const { rows, row } = rowAxes(out, x);
  const walk = walkOf(row, vectorOf(x.dtype));
  const tasks = x.shape[0]! * Math.ceil(walk.units / 32);
  const grid = [blocksFor(Math.ceil(tasks / SCATTER_WARPS), limits), 1, 1] as const;
  const threads = 32 * Math.min(SCATTER_WARPS, tasks);
  const launch = { kernel: `heed_cuda_scatter_add_${x.dtype}`, grid, threads, shared: 0 };
  return { axes: join(rows, row), walk, launch };
}
/** out[i, ...] = x[indices[i], ...]. */
export function gather(device: Device): Engine["gather"] {
  const { block, limits } = device;
  const { fields } = GATHER;
  return (x, indices, out) => {
    const { axes, walk, launch } = gatherPlan(x, out, limits);
    const rest = axes.shape.slice(1);
    block.begin(GATHER_ARGS.bytes, 0);
    block.view(fields.x, addressOf(x), x.dtype, [x.shape[0]!, ...rest], axes.strides[1]!);
    block.tensor(fields.indices, indices);
    block.view(fields.out, addressOf(out), out.dtype, axes.shape, axes.strides[0]!);
    writeWalk(block, GATHER_ARGS.fields.walk, walk);
    device.launch(launch, GATHER_ARGS.bytes);
  };
}
/** out[indices[i], ...] += x[i, ...], in ascending i and with one rounding; no atomics. */
export function scatterAdd(device: Device): Engine["scatterAdd"] {
  const { block, limits } = device;
  const { fields } = SCATTER_ADD;
  return (x, indices, out) => {
    const { axes, walk, launch } = scatterAddPlan(x, out, limits);
    const rest = axes.shape.slice(1);
    block.begin(SCATTER_ADD_ARGS.bytes, 0);
    block.view(fields.x, addressOf(x), x.dtype, [x.shape[0]!, ...rest], axes.strides[1]!);
    block.tensor(fields.indices, indices);
    block.view(fields.out, addressOf(out), out.dtype, axes.shape, axes.strides[0]!);
    writeWalk(block, SCATTER_ADD_ARGS.fields.row, walk);
    device.launch(launch, SCATTER_ADD_ARGS.bytes);
  };
}
