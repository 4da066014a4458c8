import { type DType, DTYPES, type Engine } from "@heed/tensor";
import { COPY } from "@heed/tensor/native";
import type { Device, DeviceLimits, Launch } from "../launch.ts";
import { type Axes, collapse, pick, sizeOf } from "./axes.ts";
import { COPY_ARGS, TRANSPOSE_ARGS } from "./structs.ts";
import { axesOf, type View, writeOperand } from "./view.ts";
import { blocksFor, launchUnits, vectorOf, type Walk, walkOf, writeWalk } from "./walk.ts";

/** Rows and columns of a tile of a transpose: a warp reads 32 neighbours and writes 32. */
const TILE = 32;
/** Shorter axes than this fill too little of a tile to pay. */
const LEAST_OF_TILE = 8;
/** Elements of a unit of a conversion: 16 bytes of the narrower dtype, or 32 of the wide path's registers. */
const FLOAT_UNIT = 8;
const ANY_UNIT = 4;

/** How a copy runs: by units, or by 32 x 32 tiles of its last two axes. Axes have the result first. */
export type CopyPlan =
  | { readonly axes: Axes; readonly launch: Launch; readonly walk: Walk }
  | { readonly axes: Axes; readonly launch: Launch; readonly tiles: Tiles };
interface Tiles {
  readonly tiles: number;
  readonly down: number;
  readonly across: number;
}
/** The axis along which x is dense, where that is another one than out's and both are long enough for tiles; else -1. */
function transposedAxis({ shape, strides }: Axes): number {
  const last = shape.length - 1;
  const x = strides[1]!;
  if (Math.abs(x[last]!) <= 1 || shape[last]! < LEAST_OF_TILE) return -1;
  return x.findIndex((step, i) => i !== last && step === 1 && shape[i]! >= LEAST_OF_TILE);
}
function transposePlan(given: Axes, rows: number, size: number, limits: DeviceLimits): CopyPlan {
  const last = given.shape.length - 1;
  const outer = given.shape.map((_, i) => i).filter((i) => i !== rows && i !== last);
  const axes = pick(given, [...outer, rows, last]);
  const down = Math.ceil(given.shape[rows]! / TILE);
  const across = Math.ceil(given.shape[last]! / TILE);
  const tiles = sizeOf(axes.shape.slice(0, -2)) * down * across;
  const grid = [blocksFor(tiles, limits), 1, 1] as const;
  const launch = {
    kernel: "heed_cuda_move_transposed",
    grid,
    threads: 8 * TILE,
    shared: TILE * (TILE + 1) * size,
  };
  return { axes, launch, tiles: { tiles, down, across } };
}
const isNarrowFloat = (dtype: DType): boolean => DTYPES[dtype].isFloat && dtype !== "float64";

/** The schedule of out = x, which also decides the kernel: a conversion where the dtypes differ. */
export function copyPlan(x: View, out: View, limits: DeviceLimits): CopyPlan {
  const axes = collapse(axesOf(out, x));
  if (x.dtype === out.dtype) {
    const rows = transposedAxis(axes);
    if (rows >= 0) return transposePlan(axes, rows, DTYPES[x.dtype].bytes, limits);
    const walk = walkOf(axes, vectorOf(x.dtype));
    return { axes, walk, launch: launchUnits("heed_cuda_move", walk.units, limits) };
  }
  const narrow = isNarrowFloat(x.dtype) && isNarrowFloat(out.dtype);
  const walk = walkOf(axes, narrow ? FLOAT_UNIT : ANY_UNIT);
  const kernel = narrow ? "heed_cuda_convert_float" : "heed_cuda_convert_any";
  return { axes, walk, launch: launchUnits(kernel, walk.units, limits) };
}
/** out = x, in out's dtype. */
export function copy(device: Device): Engine["copy"] {
  const { block, limits } = device;
  return (x, out) => {
    const plan = copyPlan(x, out, limits);
    const bytes = "walk" in plan ? COPY_ARGS.bytes : TRANSPOSE_ARGS.bytes;
    block.begin(bytes, 0);
    writeOperand(block, COPY.fields.x, x, plan.axes, 1);
    writeOperand(block, COPY.fields.out, out, plan.axes, 0);
    if ("walk" in plan) {
      writeWalk(block, COPY_ARGS.fields.walk, plan.walk);
    } else {
      const { fields } = TRANSPOSE_ARGS;
      block.int64(fields.tiles, plan.tiles.tiles);
      block.int64(fields.down, plan.tiles.down);
      block.int64(fields.across, plan.tiles.across);
    }
    device.launch(plan.launch, bytes);
  };
}
