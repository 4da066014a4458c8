import type { Engine, FusedOp, LinearPlan } from "@heed/tensor";
import { Context } from "../../src/context.ts";
import { coreMethods } from "../../src/core/index.ts";
import { linear } from "../../src/core/matmul.ts";
import { createDevice } from "../../src/device.ts";
import { describeDevice, limitsOf, openNative } from "../../src/devices.ts";
import { deviceMemory } from "../../src/memory.ts";
import type { Device, Launch } from "../../src/launch.ts";
import { read, sync } from "../../src/stream.ts";

/** An engine for core methods, and the linear map beside it. */
export interface CoreEngine {
  readonly engine: Engine;
  readonly linear: FusedOp<LinearPlan>;
}
/** A launch with one block where blocks take work in turns: all matrices of a batch, all units, all rows. */
function narrowed(launch: Launch): Launch {
  const [x, y] = launch.grid;
  const grid = launch.kernel.startsWith("heed_cuda_matmul_") ? ([x, 1, 1] as const) : ([1, y, 1] as const);
  return { ...launch, grid };
}
/**
 * The emulated device with another number of multiprocessors, so that schedules choose as they would there: large tiles on a small
 * device, small tiles on a large one. `narrow`: with as few blocks as a grid may have.
 */
export function emulatedWith(multiprocessors: number, narrow = false): CoreEngine {
  const native = openNative("emulated");
  const context = new Context(native, 0);
  const limits = { ...limitsOf(describeDevice(native, 0)), multiprocessors };
  const whole = createDevice(context, limits);
  const device: Device = narrow
    ? { ...whole, launch: (launch, bytes) => whole.launch(narrowed(launch), bytes) }
    : whole;
  const engine: Engine = {
    name: `cuda-emulated with ${multiprocessors} multiprocessors`,
    device: "cuda",
    description: "kernels for CUDA on an emulated device, for tests",
    fused: {},
    alloc: (bytes) => deviceMemory(context, bytes),
    upload: (values, out) =>
      context.upload(out.storage.address + out.offset * values.BYTES_PER_ELEMENT, values),
    read: (x, signal) => read(context, x, signal),
    sync: () => sync(context),
    ...coreMethods(device),
  };
  return { engine, linear: linear(device) };
}
