import { type Engine, registerEngine } from "@heed/tensor";
import { Context } from "../../src/context.ts";
import { coreMethods } from "../../src/core/index.ts";
import { createDevice } from "../../src/device.ts";
import { describeDevice, limitsOf, openNative } from "../../src/devices.ts";
import { fusedOps } from "../../src/fused/index.ts";
import type { DeviceLimits } from "../../src/launch.ts";
import { deviceMemory } from "../../src/memory.ts";
import { read, sync } from "../../src/stream.ts";
import { ENGINE } from "../support.ts";

/** The emulated device with other limits, so that schedules choose as they would there. */
export function emulatedWithin(over: Partial<DeviceLimits>): Engine {
  const native = openNative("emulated");
  const context = new Context(native, 0);
  const device = createDevice(context, { ...limitsOf(describeDevice(native, 0)), ...over });
  return {
    name: "cuda-emulated within other limits",
    device: "cuda",
    description: "kernels for CUDA on an emulated device, for tests",
    fused: fusedOps(device),
    alloc: (bytes) => deviceMemory(context, bytes),
    upload: (values, out) =>
      context.upload(out.storage.address + out.offset * values.BYTES_PER_ELEMENT, values),
    read: (x, signal) => read(context, x, signal),
    sync: () => sync(context),
    ...coreMethods(device),
  };
}

/** The name of an engine that chooses as on Hopper, compute capability 9.0: the emulated device with its limits, or this machine's. */
export function hopper(): string {
  if (ENGINE === "cuda") return ENGINE;
  const name = "cuda-emulated-hopper";
  const create = (): Engine => ({
    ...emulatedWithin({ computeCapability: 90, sharedPerBlock: 227 * 1024 }),
    name,
  });
  registerEngine(name, create, { isDefault: false });
  return name;
}
