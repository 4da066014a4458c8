import { type DType, DTYPES, type Engine, type Tensor } from "@heed/tensor";
import { REDUCE, REDUCE_CODE } from "@heed/tensor/native";
import type { Device, Launch } from "../launch.ts";
import { type Axes, collapse, pick, sizeOf } from "./axes.ts";
import { copy } from "./copy.ts";
import { REDUCE_ARGS } from "./structs.ts";
import { addressOf, axesOf, type View } from "./view.ts";
import { powerOfTwo, vectorOf, type Walk, walkOf, writeWalk } from "./walk.ts";

/** One launch of heed_cuda_reduce: how threads and blocks share the work. */
export interface ReducePass {
  readonly along: Walk;
  /** Results that a block has side by side. */
  readonly across: number;
  /** Whether neighbouring threads take neighbouring elements of one result, else of neighbouring results. */
  readonly dense: boolean;
  /** Pieces that the reduced elements are cut into, each of `piece` units; each gives a partial result. */
  readonly pieces: number;
  readonly piece: number;
  readonly launch: Launch;
}
/** How a reduction runs: the axes that stay (operands x and out), the axes that go (of x), the pass over x. */
export interface ReducePlan {
  readonly kept: Axes;
  readonly reduced: Axes;
  readonly results: number;
  readonly pass: ReducePass;
}
const THREADS = 256;
/** Units of a thread: fewer, and the tree in shared memory would weigh; a unit is a load, of which several should be under way. */
const LEAST_UNITS = 4;
/** Blocks below which long reductions are cut into pieces: two for each of the 132 multiprocessors of an H100. The same on every
 * device, so that results are. */
const ENOUGH_BLOCKS = 264;
/** Units of a thread in a piece: less is not worth a second launch. */
const LEAST_OF_PIECE = 16;
const MOST_BLOCKS = 2 ** 31 - 1;

/** The dtype of running sums, and of partial results. */
export function accumulatorDType(dtype: DType): DType {
  return dtype === "float16" || dtype === "bfloat16" ? "float32" : dtype;
}
/** The schedule of a pass over `along` units for each of `results`; `mayCut` as {@link ReducePass.pieces}. */
export function reducePass(
  dtype: DType,
  results: number,
  along: Walk,
  dense: boolean,
  mayCut: boolean,
): ReducePass {
  // Columns keep at least a warp side by side, where there are as many.
  const mostLanes = dense ? THREADS : THREADS / Math.min(32, powerOfTwo(results));
  const lanes = Math.min(mostLanes, powerOfTwo(Math.ceil(along.units / LEAST_UNITS)));
  const across = Math.min(THREADS / lanes, powerOfTwo(results));
  const groups = Math.ceil(results / across);
  const cuts = Math.min(
    Math.ceil(ENOUGH_BLOCKS / groups),
    Math.floor(along.units / (lanes * LEAST_OF_PIECE)),
  );
  const piece = Math.ceil(along.units / (mayCut ? Math.max(cuts, 1) : 1));
  const pieces = Math.ceil(along.units / piece);
  const threads = lanes * across;
  const accumulator = accumulatorDType(dtype);
  const launch = {
    kernel: `heed_cuda_reduce_${accumulator}`,
    grid: [Math.min(groups, MOST_BLOCKS), pieces, 1] as const,
    threads,
    shared: threads * DTYPES[accumulator].bytes,
  };
  return { along, across, dense, pieces, piece, launch };
}
/** The schedule of a reduction of x over the axes where out has length 1 and x may be longer. */
export function reducePlan(x: View, out: View): ReducePlan {
  const all = axesOf(x, out);
  const goes = (i: number): boolean => out.shape[i] === 1 && x.shape[i] !== 1;
  const gone = x.shape.map((_, i) => i).filter(goes);
  const stay = x.shape.map((_, i) => i).filter((i) => !goes(i));
  const kept = collapse(pick(all, stay));
  const reduced = collapse(pick(axesOf(x), gone));
  const results = sizeOf(kept.shape);
  const inner = Math.abs(reduced.strides[0]!.at(-1)!);
  const dense = results === 1 || inner <= Math.abs(kept.strides[0]!.at(-1)!);
  const along = walkOf(reduced, dense ? vectorOf(x.dtype) : Infinity);
  return { kept, reduced, results, pass: reducePass(x.dtype, results, along, dense, true) };
}
/** Row-major strides. */
function rowMajor(shape: readonly number[]): number[] {
  let step = 1;
  return shape
    .toReversed()
    .map((n) => (step *= n) / n)
    .toReversed();
}

/** Reduces the axes where out has length 1: one launch, or two where few long reductions would leave most of the device idle. */
export function reduce(device: Device): Engine["reduce"] {
  const { block } = device;
  const { fields, bytes } = REDUCE_ARGS;
  const run = (pass: ReducePass, kept: number, results: number): void => {
    writeWalk(block, fields.along, pass.along);
    block.int64(fields.results, results);
    block.int64(fields.piece, pass.piece);
    block.int32(fields.kept, kept);
    block.int32(fields.across, pass.across);
    block.int32(fields.dense, pass.dense ? 1 : 0);
    block.int32(fields.reserved, 0);
    device.launch(pass.launch, bytes);
  };
  const once = (op: number, x: Tensor, out: Tensor, plan: ReducePlan, partial?: number): void => {
    const { kept, reduced, results, pass } = plan;
    const shape = [...kept.shape, ...reduced.shape];
    const outShape = [...kept.shape, pass.pieces];
    block.begin(bytes, op);
    block.view(REDUCE.fields.x, addressOf(x), x.dtype, shape, [...kept.strides[0]!, ...reduced.strides[0]!]);
    if (partial === undefined)
      block.view(REDUCE.fields.out, addressOf(out), out.dtype, outShape, [...kept.strides[1]!, 0]);
    else block.view(REDUCE.fields.out, partial, accumulatorDType(x.dtype), outShape, rowMajor(outShape));
    run(pass, kept.shape.length, results);
  };
  const merge = (op: number, partial: number, out: Tensor, { kept, results, pass }: ReducePlan): void => {
    const dtype = accumulatorDType(out.dtype);
    const shape = [...kept.shape, pass.pieces];
    const along = walkOf({ shape: [pass.pieces], strides: [[1]] }, vectorOf(dtype));
    block.begin(bytes, op);
    block.view(REDUCE.fields.x, partial, dtype, shape, rowMajor(shape));
    block.view(REDUCE.fields.out, addressOf(out), out.dtype, [...kept.shape, 1], [...kept.strides[1]!, 0]);
    run(reducePass(dtype, results, along, true, false), kept.shape.length, results);
  };
  const copyTo = copy(device);
  return (name, x, out) => {
    if (sizeOf(x.shape) === sizeOf(out.shape)) {
      copyTo(x, out);
      return;
    }
    const op = REDUCE_CODE[name];
    const plan = reducePlan(x, out);
    if (plan.pass.pieces === 1) {
      once(op, x, out, plan);
      return;
    }
    const size = plan.results * plan.pass.pieces * DTYPES[accumulatorDType(x.dtype)].bytes;
    using partial = device.temporary(size);
    once(op, x, out, plan, partial.address);
    merge(op, partial.address, out, plan);
  };
}
