import type { BinaryOp, DType, Engine, UnaryOp } from "@heed/tensor";
import { BINARY, BINARY_CODE, UNARY, UNARY_CODE } from "@heed/tensor/native";
import type { Device, DeviceLimits, Launch } from "../launch.ts";
import { type Axes, collapse } from "./axes.ts";
import { BINARY_ARGS, UNARY_ARGS } from "./structs.ts";
import { axesOf, type View, writeOperand } from "./view.ts";
import { launchUnits, vectorOf, type Walk, walkOf, writeWalk } from "./walk.ts";

/** How elementwise work runs: over which axes (operands: the result, then the operands), in which units, as which launch. */
export interface Elementwise {
  readonly axes: Axes;
  readonly walk: Walk;
  readonly launch: Launch;
}
/** The schedule of a kernel over `operands`, the result first, in units as wide as a vector of `dtype`. */
export function elementwise(
  kernel: string,
  dtype: DType,
  operands: readonly View[],
  limits: DeviceLimits,
): Elementwise {
  const axes = collapse(axesOf(...operands));
  const walk = walkOf(axes, vectorOf(dtype));
  return { axes, walk, launch: launchUnits(kernel, walk.units, limits) };
}
/** out = op(x) on heed_cuda_unary_<dtype of x>. */
export function unary(device: Device): Engine["unary"] {
  const { block, limits } = device;
  return (op: UnaryOp, x, out) => {
    const { axes, walk, launch } = elementwise(`heed_cuda_unary_${x.dtype}`, x.dtype, [out, x], limits);
    block.begin(UNARY_ARGS.bytes, UNARY_CODE[op]);
    writeOperand(block, UNARY.fields.x, x, axes, 1);
    writeOperand(block, UNARY.fields.out, out, axes, 0);
    writeWalk(block, UNARY_ARGS.fields.walk, walk);
    device.launch(launch, UNARY_ARGS.bytes);
  };
}
/** out = op(a, b) on heed_cuda_binary_<dtype of a>. */
export function binary(device: Device): Engine["binary"] {
  const { block, limits } = device;
  return (op: BinaryOp, a, b, out) => {
    const { axes, walk, launch } = elementwise(`heed_cuda_binary_${a.dtype}`, a.dtype, [out, a, b], limits);
    block.begin(BINARY_ARGS.bytes, BINARY_CODE[op]);
    writeOperand(block, BINARY.fields.a, a, axes, 1);
    writeOperand(block, BINARY.fields.b, b, axes, 2);
    writeOperand(block, BINARY.fields.out, out, axes, 0);
    writeWalk(block, BINARY_ARGS.fields.walk, walk);
    device.launch(launch, BINARY_ARGS.bytes);
  };
}
