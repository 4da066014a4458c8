import { EngineLoadError, HeedError } from "@heed/tensor";
import { blank, bytesOf } from "./context.ts";
import type { DeviceLimits } from "./launch.ts";
import { type Build, loadNative, type Native } from "./native.ts";
import { DEVICE } from "./structs.ts";

/** A device that the driver sees. */
export interface CudaDevice {
  /** Its number, for `cuda({ device })`. */
  readonly device: number;
  readonly name: string;
  /** Such as "9.0" on Hopper. */
  readonly computeCapability: string;
  readonly multiprocessors: number;
  /** Bytes of memory in all. */
  readonly memory: number;
  /** Bytes of shared memory that a block may have. */
  readonly sharedPerBlock: number;
  readonly level2Bytes: number;
  /** The CUDA version that the driver is of, such as "13.0". */
  readonly driver: string;
}

const opened = new Map<Build, Native>();
/** The library of a build with its driver open. Throws EngineLoadError: what is missing, and what to do. */
export function openNative(build: Build): Native {
  const known = opened.get(build);
  if (known !== undefined) return known;
  const native = loadNative(build);
  openDriver(native);
  opened.set(build, native);
  return native;
}
/** Opens the driver, libcuda.so.1 unless a path is given. Throws EngineLoadError. */
export function openDriver(native: Native, path?: string): void {
  const status = native.symbols.open_driver(
    path === undefined ? null : new TextEncoder().encode(`${path}\0`),
  );
  if (status !== 0) throw new EngineLoadError(`[cuda] ${native.words}`, { driver: path ?? "libcuda.so.1" });
}
/** Why the devices of a build cannot be used here, or undefined when they can. */
export function whyNot(build: Build): string | undefined {
  try {
    const devices = listDevices(openNative(build));
    return devices.length > 0 ? undefined : "[cuda] the driver sees no device";
  } catch (error) {
    if (error instanceof HeedError) return error.message;
    throw error;
  }
}
/** The devices that the driver sees. Throws DeviceError. */
export function listDevices(native: Native): CudaDevice[] {
  const count = new Int32Array(new ArrayBuffer(4));
  native.check(native.symbols.device_count(count));
  return Array.from({ length: count[0]! }, (_, device) => describeDevice(native, device));
}
const text = new TextDecoder();
/** Throws ArgumentError or DeviceError when there is no such device. */
export function describeDevice(native: Native, device: number): CudaDevice {
  const { fields, bytes } = DEVICE;
  const info = blank(bytes);
  native.check(native.symbols.device_info(device, bytesOf(info)), { device });
  const at = (offset: number): number => info.getInt32(offset, true);
  const name = bytesOf(info).subarray(fields.name);
  const version = at(fields.driver_version);
  return {
    device,
    name: text.decode(name.subarray(0, name.indexOf(0))),
    computeCapability: `${at(fields.major)}.${at(fields.minor)}`,
    multiprocessors: at(fields.multiprocessors),
    memory: Number(info.getBigUint64(fields.memory, true)),
    sharedPerBlock: at(fields.shared_per_block),
    level2Bytes: at(fields.level_2_bytes),
    driver: `${Math.floor(version / 1000)}.${(version % 1000) / 10}`,
  };
}
/** What schedules need to know of a device. */
export function limitsOf(d: CudaDevice): DeviceLimits {
  const [major, minor] = d.computeCapability.split(".").map(Number) as [number, number];
  const { multiprocessors, sharedPerBlock, level2Bytes } = d;
  return { multiprocessors, sharedPerBlock, level2Bytes, computeCapability: 10 * major + minor };
}
