import { type AttentionBackwardPlan, copyInto, type FusedOp, type Tensor } from "@heed/tensor";
import { writeAttentionBackward } from "@heed/tensor/native";
import type { Device, Launch } from "../../launch.ts";
import {
  type AnySchedule,
  anyKernels,
  type BackwardSchedule,
  maskLaunch,
  sinksLaunch,
  statisticsLaunch,
  tensorCores,
} from "./backward-schedule.ts";
import { aligned, isAligned, room } from "./operands.ts";
import { isRich } from "./schedule.ts";

/** heed_cuda_attention_backward of native/abi/heed_cuda_args.h; its test compares it with what the library reports. */
export const ATTENTION_BACKWARD_ARGS = {
  bytes: 2400,
  fields: { problem: 0, statistics: 2384, tiles: 2392, edge: 2396 },
} as const;
const { fields, bytes } = ATTENTION_BACKWARD_ARGS;

/** What runs for a plan; `any` is there where something needs it, and undefined where it does not fit. */
interface Kernels {
  readonly products: BackwardSchedule | undefined;
  readonly any: AnySchedule | undefined;
  readonly onTensorCores: boolean;
}
/** Whether 32 bits count every 16 bytes of a tensor of 16-bit numbers, as the kernels on tensor cores do: 64 GiB. */
export function isWithinReach({ shape, strides }: Pick<Tensor, "shape" | "strides">): boolean {
  const last = shape.reduce((sum, length, axis) => sum + Math.max(0, length - 1) * strides[axis]!, 0);
  return last < 2 ** 35;
}
function kernelsFor({ q, k, v, dOut, dims, rules }: AttentionBackwardPlan, { limits }: Device): Kernels {
  const near = [q, k, v, dOut].every(isWithinReach);
  const cores = near ? tensorCores(q.dtype, dims, isRich(rules), limits) : undefined;
  const any = anyKernels(q.dtype, dims, limits);
  return { products: cores ?? any, any, onTensorCores: cores !== undefined };
}
function refusal(plan: AttentionBackwardPlan, device: Device): string | undefined {
  const { products, any } = kernelsFor(plan, device);
  const { D, Dv } = plan.dims;
  return products === undefined || (plan.dMask !== undefined && any === undefined)
    ? `a tile of head sizes ${D} and ${Dv} does not fit the shared memory of this device`
    : undefined;
}
/** The plan with operands whose rows tensor cores can read, and gradients that they can write; those that are copies are the stack's. */
function withAlignedRows(plan: AttentionBackwardPlan, stack: DisposableStack): AttentionBackwardPlan {
  const read = <T extends Tensor>(t: T): T => aligned(t, stack) as T;
  const write = <T extends Tensor>(t: T): T => (isAligned(t) ? t : (stack.use(room(t)) as T));
  const { q, k, v, dOut, dq, dk, dv } = plan;
  const operands = { q: read(q), k: read(k), v: read(v), dOut: read(dOut) };
  return { ...plan, ...operands, dq: write(dq), dk: write(dk), dv: write(dv) };
}
/**
 * Attention backward: sums over rows, then a kernel over keys for dk and dv and one over query rows for dq; gradients of the mask and of
 * the sinks have kernels of their own. The same bits every time. Refuses head sizes whose tile does not fit the shared memory.
 */
export function attentionBackward(device: Device): FusedOp<AttentionBackwardPlan> {
  return {
    refusal: (plan) => refusal(plan, device),
    run: (plan) => {
      const { q, dims, dMask, dSinks } = plan;
      const { products, any, onTensorCores } = kernelsFor(plan, device);
      using stack = new DisposableStack();
      const size = q.dtype === "float64" ? 8 : 4;
      const statistics = stack.use(device.temporary(4 * size * dims.B * dims.Hq * dims.S));
      const launch = (given: AttentionBackwardPlan, l: Launch, tiles: number): void => {
        writeAttentionBackward(device.block, given);
        device.block.int64(fields.statistics, statistics.address);
        device.block.int32(fields.tiles, tiles);
        device.block.int32(fields.edge, any?.edge ?? 0);
        device.launch(l, bytes);
      };
      launch(plan, statisticsLaunch(q.dtype, dims), 0);
      const given = onTensorCores ? withAlignedRows(plan, stack) : plan;
      for (const { launch: side, tiles } of [products!.keys, products!.rows]) launch(given, side, tiles);
      for (const name of ["dq", "dk", "dv"] as const)
        if (given[name] !== plan[name])
          copyInto(stack.use(given[name].slice(-1, 0, plan[name].shape.at(-1)!)), plan[name]);
      if (dMask !== undefined) launch(plan, maskLaunch(q.dtype, dims, dMask.strides, any!), 0);
      if (dSinks !== undefined) launch(plan, sinksLaunch(q.dtype, dims), 0);
    },
  };
}
