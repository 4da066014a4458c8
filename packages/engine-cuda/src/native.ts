import {
  ArgumentError,
  DeviceError,
  EngineLoadError,
  type ErrorDetails,
  type HeedError,
  OutOfMemoryError,
  UnsupportedError,
} from "@heed/tensor";
import { elfDefect } from "@heed/tensor/native";
import { type CString, dlopen, type FFIFunction } from "bun:ffi";
import { existsSync } from "node:fs";

/** HEED_CUDA_ABI_VERSION of native/abi/heed_cuda.h. */
export const ABI_VERSION = 2;

/** Which library: the one that drives CUDA devices, or the emulation of a device on the host. */
export type Build = "cuda" | "emulated";
/** A context, transfer, event or graph: a number that is never used again. */
export type Handle = number;

/**
 * The C functions of native/abi/heed_cuda.h without their prefix. A number is a status, 0 where all went well, unless a comment says
 * otherwise. Views are passed as they are: their address is taken for the length of the call alone.
 */
export interface Symbols {
  last_error(): CString;
  layout(name: Uint8Array): CString | null;
  build(): CString;
  open_driver(path: Uint8Array | null): number;
  device_count(count: Int32Array): number;
  device_info(device: number, info: Uint8Array): number;
  open(device: number, context: BigUint64Array): number;
  close(context: Handle): number;
  debug(context: Handle, on: number): number;
  alloc(context: Handle, bytes: number, address: BigUint64Array): number;
  free(context: Handle, address: number): number;
  memory(context: Handle, info: Uint8Array): number;
  trim(context: Handle): number;
  upload(context: Handle, to: number, from: ArrayBufferView, bytes: number): number;
  download(context: Handle, from: number, bytes: number, transfer: BigUint64Array): number;
  transfer_done(transfer: Handle): number; // 1, 0 or a status
  transfer_take(transfer: Handle, to: ArrayBufferView | null): number;
  copy(context: Handle, to: number, from: number, bytes: number): number;
  fill(context: Handle, to: number, byte: number, bytes: number): number;
  mark(context: Handle, event: BigUint64Array): number;
  event_done(event: Handle): number; // 1, 0 or a status
  event_free(event: Handle): number;
  elapsed(from: Handle, to: Handle, milliseconds: Float32Array): number;
  kernel(context: Handle, name: Uint8Array, info: Uint8Array): number;
  kernels(): CString;
  launch(context: Handle, launch: Uint8Array): number;
  graph_begin(context: Handle): number;
  graph_end(context: Handle, graph: BigUint64Array): number;
  graph_launch(context: Handle, graph: Handle): number;
  graph_free(graph: Handle): number;
  gemm(context: Handle, gemm: Uint8Array): number;
  gemm_library(): CString;
}
const TABLE: Readonly<Record<keyof Symbols, FFIFunction>> = {
  last_error: { args: [], returns: "cstring" },
  layout: { args: ["ptr"], returns: "cstring" },
  build: { args: [], returns: "cstring" },
  open_driver: { args: ["ptr"], returns: "i32" },
  device_count: { args: ["ptr"], returns: "i32" },
  device_info: { args: ["i32", "ptr"], returns: "i32" },
  open: { args: ["i32", "ptr"], returns: "i32" },
  close: { args: ["u64"], returns: "i32" },
  debug: { args: ["u64", "i32"], returns: "i32" },
  alloc: { args: ["u64", "u64", "ptr"], returns: "i32" },
  free: { args: ["u64", "u64"], returns: "i32" },
  memory: { args: ["u64", "ptr"], returns: "i32" },
  trim: { args: ["u64"], returns: "i32" },
  upload: { args: ["u64", "u64", "ptr", "u64"], returns: "i32" },
  download: { args: ["u64", "u64", "u64", "ptr"], returns: "i32" },
  transfer_done: { args: ["u64"], returns: "i32" },
  transfer_take: { args: ["u64", "ptr"], returns: "i32" },
  copy: { args: ["u64", "u64", "u64", "u64"], returns: "i32" },
  fill: { args: ["u64", "u64", "i32", "u64"], returns: "i32" },
  mark: { args: ["u64", "ptr"], returns: "i32" },
  event_done: { args: ["u64"], returns: "i32" },
  event_free: { args: ["u64"], returns: "i32" },
  elapsed: { args: ["u64", "u64", "ptr"], returns: "i32" },
  kernel: { args: ["u64", "ptr", "ptr"], returns: "i32" },
  kernels: { args: [], returns: "cstring" },
  launch: { args: ["u64", "ptr"], returns: "i32" },
  graph_begin: { args: ["u64"], returns: "i32" },
  graph_end: { args: ["u64", "ptr"], returns: "i32" },
  graph_launch: { args: ["u64", "u64"], returns: "i32" },
  graph_free: { args: ["u64"], returns: "i32" },
  gemm: { args: ["u64", "ptr"], returns: "i32" },
  gemm_library: { args: [], returns: "cstring" },
};
const VERSION: Readonly<Record<"heed_cuda_abi_version", FFIFunction>> = {
  heed_cuda_abi_version: { args: [], returns: "i32" },
};

/** A text as C takes it. */
export const cString = (text: string): Uint8Array => new TextEncoder().encode(`${text}\0`);

/** heed_status, as the error to throw. */
const FAILURE: Readonly<Record<number, new (message: string, details: ErrorDetails) => HeedError>> = {
  [-1]: ArgumentError,
  [-2]: OutOfMemoryError,
  [-3]: UnsupportedError,
  [-4]: DeviceError,
};
/** The error of a status in the library's words; a driver's error has its name and number in the details. */
export function errorOf(status: number, words: string, details: ErrorDetails = {}): HeedError {
  const [, driverError, code] = /\b(CUDA_ERROR_\w+) \((\d+)\)/.exec(words) ?? [];
  const driver = driverError === undefined ? {} : { driverError, driverCode: Number(code) };
  return new (FAILURE[status] ?? DeviceError)(`[cuda] ${words}`, { ...details, ...driver });
}

/** An open library. It is never closed. */
export class Native {
  readonly build: Build;
  readonly symbols: Symbols;
  constructor(build: Build, symbols: Symbols) {
    this.build = build;
    this.symbols = symbols;
  }
  /** What the last failed call of this thread says. */
  get words(): string {
    return String(this.symbols.last_error());
  }
  /** Throws the typed error of a status that is not 0. */
  check(status: number, details?: ErrorDetails): void {
    if (status !== 0) throw errorOf(status, this.words, details);
  }
  /** The layout of a struct as the library reports it, `size;field=offset;...`. */
  layout(name: string): string {
    return String(this.symbols.layout(cString(name)));
  }
  /** The names of all kernels in the library, sorted. */
  get kernels(): string[] {
    return String(this.symbols.kernels()).split("\n").filter(Boolean);
  }
}

/** Where a library of this platform would be. */
export function prebuilt(build: Build): string {
  const name = build === "cuda" ? "libheed_cuda.so" : "libheed_cuda_emulated.so";
  return `${import.meta.dir}/../prebuilt/${process.platform}-${process.arch}/${name}`;
}
function refuse(path: string, why: string, cause?: unknown): never {
  throw new EngineLoadError(
    `[cuda] cannot load ${path}: ${why}; reinstall @heed/engine-cuda, or use the engine "cpu"`,
    { path, platform: `${process.platform}-${process.arch}` },
    cause === undefined ? {} : { cause },
  );
}
function open<S>(path: string, symbols: Readonly<Record<string, FFIFunction>>): S {
  try {
    return dlopen(path, symbols).symbols as unknown as S;
  } catch (error) {
    return refuse(path, error instanceof Error ? error.message : String(error), error);
  }
}
/**
 * Opens a library by its absolute path; no driver is looked for. Throws EngineLoadError when the file is missing, damaged, for another
 * platform, of another ABI version or of another build.
 */
export function loadNative(build: Build, path: string = prebuilt(build)): Native {
  const platform = `${process.platform}-${process.arch}`;
  if (!existsSync(path)) {
    refuse(
      path,
      path === prebuilt(build) ? `no library for ${platform} comes with it` : "there is no such file",
    );
  }
  const defect = process.platform === "linux" ? elfDefect(path) : undefined;
  if (defect !== undefined) refuse(path, defect);
  // The version alone first: a symbol that an old library lacks would fail the whole table with less to say.
  const version = open<{ heed_cuda_abi_version(): number }>(path, VERSION).heed_cuda_abi_version();
  if (version !== ABI_VERSION)
    refuse(path, `it has ABI version ${version}, this package needs ${ABI_VERSION}`);
  const prefixed = Object.entries(TABLE).map(([name, type]) => [`heed_cuda_${name}`, type]);
  const raw = open<Record<string, unknown>>(path, Object.fromEntries(prefixed));
  const symbols = Object.fromEntries(Object.keys(TABLE).map((name) => [name, raw[`heed_cuda_${name}`]]));
  const native = new Native(build, symbols as unknown as Symbols);
  const found = String(native.symbols.build());
  if (found !== build) refuse(path, `it is the "${found}" library, not the "${build}" one`);
  return native;
}
