import {
  ArgumentError,
  DeviceError,
  EngineLoadError,
  type HeedError,
  LARGEST_BUFFER,
  type Memory,
  OutOfMemoryError,
  UnsupportedError,
} from "@heed/tensor";
import { Block, elfDefect, LARGEST_BLOCK } from "@heed/tensor/native";
import { type CString, dlopen, type FFIFunction, type Pointer, ptr, toArrayBuffer } from "bun:ffi";
import { existsSync, readFileSync } from "node:fs";
import { largeMemory } from "./large-memory.ts";

/** HEED_ABI_VERSION of native/abi/heed_cpu.h. */
export const ABI_VERSION = 3;

/** An entry point that takes one parameter block. */
export type Entry = (block: Pointer) => number;
type EntryName =
  `heed_${"unary" | "binary" | "reduce" | "copy" | "matmul" | "softmax" | "gather" | "scatter_add" | "rope" | "rms_norm" | "rms_norm_backward" | "attention" | "attention_backward" | "paged_attention" | "kv_append" | "norm_rope_append" | "seal_pages"}_run`;
/** The C functions of native/abi/heed_cpu.h. */
export interface Symbols extends Readonly<Record<EntryName, Entry>> {
  heed_last_error(): CString;
  heed_layout(name: Uint8Array): CString | null;
  heed_select_isa(name: Uint8Array | null): number;
  heed_isa(): CString;
  heed_available_isas(): CString;
  heed_set_threads(threads: number): number;
  heed_threads(): number;
  heed_alloc(bytes: number): Pointer | null;
  readonly heed_free: { readonly ptr: Pointer };
  heed_scratch_bytes(): bigint;
  heed_scratch_release(): void;
  heed_measure_peak(kind: number, threads: number, perSecond: Float64Array): number;
}
const ENTRY: FFIFunction = { args: ["ptr"], returns: "i32" };
const SYMBOLS: Readonly<Record<keyof Symbols, FFIFunction>> = {
  heed_unary_run: ENTRY,
  heed_binary_run: ENTRY,
  heed_reduce_run: ENTRY,
  heed_copy_run: ENTRY,
  heed_matmul_run: ENTRY,
  heed_softmax_run: ENTRY,
  heed_gather_run: ENTRY,
  heed_scatter_add_run: ENTRY,
  heed_rope_run: ENTRY,
  heed_rms_norm_run: ENTRY,
  heed_rms_norm_backward_run: ENTRY,
  heed_attention_run: ENTRY,
  heed_attention_backward_run: ENTRY,
  heed_paged_attention_run: ENTRY,
  heed_kv_append_run: ENTRY,
  heed_norm_rope_append_run: ENTRY,
  heed_seal_pages_run: ENTRY,
  heed_last_error: { args: [], returns: "cstring" },
  heed_layout: { args: ["ptr"], returns: "cstring" },
  heed_select_isa: { args: ["ptr"], returns: "i32" },
  heed_isa: { args: [], returns: "cstring" },
  heed_available_isas: { args: [], returns: "cstring" },
  heed_set_threads: { args: ["i32"], returns: "i32" },
  heed_threads: { args: [], returns: "i32" },
  heed_alloc: { args: ["u64"], returns: "ptr" },
  heed_free: { args: ["ptr", "ptr"], returns: "void" },
  heed_scratch_bytes: { args: [], returns: "u64" },
  heed_scratch_release: { args: [], returns: "void" },
  heed_measure_peak: { args: ["i32", "i32", "ptr"], returns: "i32" },
};
const VERSION: Readonly<Record<"heed_abi_version", FFIFunction>> = {
  heed_abi_version: { args: [], returns: "i32" },
};

// Two parameters that the published types leave out: whom JavaScriptCore calls, with what, when the buffer goes.
const adopt = toArrayBuffer as (
  memory: Pointer,
  offset: number,
  bytes: number,
  context: null,
  free: Pointer,
) => ArrayBuffer;
const cString = (text: string): Uint8Array => new TextEncoder().encode(`${text}\0`);

/** heed_status, as the error to throw. */
const FAILURE: Readonly<Record<number, new (message: string) => HeedError>> = {
  [-1]: ArgumentError,
  [-2]: OutOfMemoryError,
  [-3]: UnsupportedError,
  [-4]: DeviceError,
};

function memoryAt(address: Pointer, buffer: ArrayBuffer): Memory {
  const release = (): void => {
    if (!buffer.detached) buffer.transfer(0);
  };
  return { address: Number(address), buffer, release };
}

/** An open library: its functions, and the block their parameters go through. It is never closed. */
export class Native {
  readonly symbols: Symbols;
  readonly block: Block;
  readonly #block: Pointer;
  readonly #free: Pointer;
  constructor(symbols: Symbols) {
    this.symbols = symbols;
    this.#free = symbols.heed_free.ptr;
    const memory = this.#allocate(LARGEST_BLOCK);
    this.#block = memory.address;
    this.block = new Block(memory.buffer);
  }
  /** Calls an entry point on what {@link block} holds. Throws what the library's status and words say. */
  run(entry: Entry): void {
    const status = entry(this.#block);
    if (status !== 0) this.fail(status);
  }
  /** Throws the typed error of a status that is not 0, in the library's words. */
  fail(status: number): never {
    throw new (FAILURE[status] ?? DeviceError)(String(this.symbols.heed_last_error()));
  }
  /**
   * Host memory, 64-byte aligned, owned by its buffer: `release` frees it at once and detaches every view, and the collector frees it
   * when nobody did. More than an ArrayBuffer holds has parts instead of a buffer. Throws OutOfMemoryError.
   */
  alloc(bytes: number): Memory {
    const { address, buffer } = this.#allocate(bytes);
    if (bytes <= LARGEST_BUFFER) return memoryAt(address, buffer);
    return largeMemory(Number(address), bytes, buffer, (at, length) => toArrayBuffer(address, at, length));
  }
  /** Memory of somebody else's buffer, which is not empty; `release` detaches it as if it were allocated here. */
  wrap(buffer: ArrayBuffer): Memory {
    return memoryAt(ptr(new Uint8Array(buffer)), buffer); // of a buffer that exists, so the address stays
  }
  #allocate(bytes: number): { address: Pointer; buffer: ArrayBuffer } {
    const room = Math.max(bytes, 64); // an empty tensor needs an address too: NULL would say that the operand is absent
    const address = this.symbols.heed_alloc(room);
    if (address === null) {
      throw new OutOfMemoryError(
        `[cpu] cannot allocate ${bytes} bytes; dispose tensors that are no longer needed`,
        { bytes },
      );
    }
    return { address, buffer: adopt(address, 0, Math.min(room, LARGEST_BUFFER), null, this.#free) };
  }
  /** The layout of a struct as the library reports it, `size;field=offset;...`. */
  layout(name: string): string {
    return String(this.symbols.heed_layout(cString(name)));
  }
  /** Switches to the kernels of an instruction set, or to the best there are. Throws when this processor lacks it. */
  selectIsa(name: string | undefined): void {
    const status = this.symbols.heed_select_isa(name === undefined ? null : cString(name));
    if (status !== 0) this.fail(status);
  }
  /** FLOP/s or bytes/s; see heed_measure_peak. */
  measurePeak(kind: number, threads: number): number {
    const perSecond = new Float64Array(1);
    const status = this.symbols.heed_measure_peak(kind, threads, perSecond);
    if (status !== 0) this.fail(status);
    return perSecond[0]!;
  }
}

/** Where the library of this platform would be. */
export const PREBUILT: string = `${import.meta.dir}/../prebuilt/${process.platform}-${process.arch}/libheed_cpu.so`;
/**
 * Why the library at `path` cannot serve a process that maps these files (the text of /proc/self/maps; empty off Linux), or undefined
 * when it may. Loads nothing.
 */
export function whyMissing(path: string, maps: string): string | undefined {
  const platform = `${process.platform}-${process.arch}`;
  if (!existsSync(path)) return `no native library for ${platform} comes with this package`;
  if (maps.includes("/ld-musl-"))
    return `this process runs on musl, and the library for ${platform} needs glibc`;
  return undefined;
}
/** Why there is no native library for this platform, or undefined when there is one. */
export const missing: string | undefined = whyMissing(PREBUILT, processMaps());

function processMaps(): string {
  try {
    return process.platform === "linux" ? readFileSync("/proc/self/maps", "utf8") : "";
  } catch {
    return ""; // no /proc: loading will tell
  }
}

function refuse(path: string, why: string, cause?: unknown): never {
  throw new EngineLoadError(
    `[cpu] cannot load ${path}: ${why}; reinstall @heed/engine-cpu, build the library with "bun run build:native", or use the engine "portable"`,
    { path, platform: `${process.platform}-${process.arch}` },
    cause === undefined ? {} : { cause },
  );
}
function open<S>(path: string, symbols: Readonly<Record<keyof S & string, FFIFunction>>): S {
  try {
    return dlopen(path, symbols).symbols as unknown as S;
  } catch (error) {
    return refuse(path, error instanceof Error ? error.message : String(error), error);
  }
}
/**
 * Opens a library by its absolute path and selects the instruction set that `target` names (the best one when it is empty). Throws
 * EngineLoadError when the file is missing, damaged, for another platform or of another ABI version, or the target is not available.
 */
export function loadNative(
  path: string = PREBUILT,
  target: string | undefined = process.env["HEED_CPU_TARGET"],
): Native {
  if (path === PREBUILT && missing !== undefined) refuse(path, missing);
  if (!existsSync(path)) refuse(path, "there is no such file");
  const defect = process.platform === "linux" ? elfDefect(path) : undefined;
  if (defect !== undefined) refuse(path, defect);
  // The version alone first: a symbol that an old library lacks would fail the whole table with less to say.
  const version = open<{ heed_abi_version(): number }>(path, VERSION).heed_abi_version();
  if (version !== ABI_VERSION)
    refuse(path, `it has ABI version ${version}, this package needs ${ABI_VERSION}`);
  const native = new Native(open<Symbols>(path, SYMBOLS));
  try {
    native.selectIsa(target === "" ? undefined : target);
  } catch (error) {
    refuse(path, `HEED_CPU_TARGET=${target} was refused: ${(error as Error).message}`, error);
  }
  return native;
}
