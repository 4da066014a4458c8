import type { Engine, FusedOp, FusedOps } from "@heed/tensor";
import { Context, type DeviceMemory } from "./context.ts";
import { coreMethods } from "./core/index.ts";
import { createDevice } from "./device.ts";
import { type CudaDevice, describeDevice, limitsOf, openNative } from "./devices.ts";
import { fusedOps } from "./fused/index.ts";
import { capture } from "./graph.ts";
import { deviceMemory } from "./memory.ts";
import type { Build } from "./native.ts";
import { elapsed, read, sync } from "./stream.ts";

/** The plan that a fused operation takes. */
type PlanOf<K extends keyof FusedOps> = FusedOps[K] extends FusedOp<infer P> | undefined ? P : never;

/** An engine on a CUDA device, or on the emulation of one. */
export interface CudaEngine extends Engine {
  /** What the driver tells of its device. */
  readonly cuda: CudaDevice;
  /** Whether the driver gave the device context up after an error; then only `close()` and `cuda()` for a new engine are left. */
  readonly lost: boolean;
  /** Whether `close()` was called. */
  readonly closed: boolean;
  /** What its memory holds. Throws DeviceError. */
  memory(): DeviceMemory;
  /** Returns memory that was freed and kept for reuse to the system. Waits for the device. Throws DeviceError. */
  trim(): void;
  /**
   * On: every allocation is filled with 0xff, NaN in every float, and every launch is waited for, so that a fault names its kernel. An
   * emulated device starts with it on. Throws DeviceError.
   */
  debug(on: boolean): void;
  /**
   * Milliseconds that the device takes for what `run` gives to it, by its own clock: earlier work and the host's time do not count, gaps
   * in which the device waits for the host do. An emulated device's say nothing about a real one's. Rejects with what `run` throws and
   * with DeviceError.
   */
  elapsed(run: () => void): Promise<number>;
  /** Why a fused operation would run composed for this plan, or undefined when there is a kernel for it. */
  why<K extends keyof FusedOps>(op: K, plan: PlanOf<K>): string | undefined;
  /** Waits for the device and frees all its memory, that of tensors included; they cannot be used any more. Calling it again does nothing. */
  close(): void;
}

/** Opens a device. Throws EngineLoadError, ArgumentError (no such device), DeviceError, OutOfMemoryError. */
export function createCudaEngine(name: string, build: Build, device: number): CudaEngine {
  const native = openNative(build);
  const about = describeDevice(native, device);
  const context = new Context(native, device);
  const onDevice = createDevice(context, limitsOf(about));
  const fused = fusedOps(onDevice);
  const what = `${about.name}, compute capability ${about.computeCapability}`;
  return {
    name,
    device: "cuda",
    description:
      build === "emulated" ? `kernels for CUDA on an emulated device (${what})` : `CUDA kernels on ${what}`,
    fused,
    cuda: about,
    get lost() {
      return context.lost;
    },
    get closed() {
      return context.closed;
    },
    memory: () => context.memory(),
    trim: () => context.trim(),
    debug: (on) => context.debug(on),
    why: (op, plan) => {
      const kernel = fused[op] as FusedOp<typeof plan> | undefined;
      return kernel === undefined ? `engine "${name}" has no kernel for it` : kernel.refusal(plan);
    },
    elapsed: (run) => elapsed(context, run),
    close: () => context.close(),
    alloc: (bytes) => deviceMemory(context, bytes),
    upload: (values, out) =>
      context.upload(out.storage.address + out.offset * values.BYTES_PER_ELEMENT, values),
    read: (x, signal) => read(context, x, signal),
    sync: () => sync(context),
    capture: (run) => capture(context, run),
    ...coreMethods(onDevice),
  };
}
