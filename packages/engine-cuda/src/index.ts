import { ArgumentError, getEngine, registerEngine } from "@heed/tensor";
import { type CudaDevice, listDevices, openNative, whyNot } from "./devices.ts";
import { createCudaEngine, type CudaEngine } from "./engine.ts";
export type { DeviceMemory } from "./context.ts";
export type { CudaDevice } from "./devices.ts";
export type { CudaEngine } from "./engine.ts";

// Registering loads nothing: neither library nor driver is looked for until an engine is asked for.
const names = new Set<string>();
function register(name: string, build: "cuda" | "emulated", device: number): void {
  names.add(name);
  registerEngine(name, () => createCudaEngine(name, build, device), { isDefault: false });
}
register("cuda", "cuda", 0);
register("cuda-emulated", "emulated", 0);

/** The engine of that name; one whose device context was lost is closed and opened anew. */
function current(name: string, build: "cuda" | "emulated", device: number): CudaEngine {
  const engine = getEngine(name) as CudaEngine;
  if (!engine.lost && !engine.closed) return engine;
  engine.close();
  register(name, build, device);
  return getEngine(name) as CudaEngine;
}
/** Options of {@link cuda}. */
export interface CudaOptions {
  /** The number of the device; default 0. {@link cudaDevices} lists them. */
  readonly device?: number;
}
/**
 * The engine on a CUDA device: "cuda" for device 0, "cuda:1" for device 1 and so on. One that was closed, or whose device context was
 * lost, is replaced by a new one. Throws EngineLoadError where there is no driver or it is too old, in words on what to do; ArgumentError
 * (no such device), DeviceError, OutOfMemoryError.
 */
export function cuda({ device = 0 }: CudaOptions = {}): CudaEngine {
  if (!Number.isInteger(device) || device < 0)
    throw new ArgumentError(`[cuda] device must be a whole number of at least 0; got ${device}`, { device });
  const name = device === 0 ? "cuda" : `cuda:${device}`;
  if (!names.has(name)) register(name, "cuda", device);
  return current(name, "cuda", device);
}
/** The engine whose device is emulated on the host: the same kernels, checked and slow, for tests. Throws EngineLoadError. */
export function cudaEmulated(): CudaEngine {
  return current("cuda-emulated", "emulated", 0);
}
/** The devices that the CUDA driver sees. Throws EngineLoadError where there is no driver, DeviceError. */
export function cudaDevices(): CudaDevice[] {
  return listDevices(openNative("cuda"));
}
/** Why `engine` cannot be used here, or undefined when it can: no library for this platform, no driver, no device. */
export function cudaRefusal(engine: "cuda" | "cuda-emulated" = "cuda"): string | undefined {
  return whyNot(engine === "cuda" ? "cuda" : "emulated");
}
