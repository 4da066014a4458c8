import { DeviceError, type ErrorDetails } from "@heed/tensor";
import { cString, errorOf, type Handle, type Native } from "./native.ts";
import { KERNEL_INFO, MEMORY_INFO } from "./structs.ts";

/** Where a call puts a handle or an address; read at once. */
const out = new BigUint64Array(new ArrayBuffer(8));
const taken = (): number => Number(out[0]!);

/** What a device's memory holds, in bytes. */
export interface DeviceMemory {
  /** Allocations that live: tensors' storages and what calls under way use. */
  readonly blocks: number;
  readonly inUse: number;
  /** Freed and kept for reuse by this engine; `trim()` gives it back. */
  readonly kept: number;
  readonly deviceFree: number;
  readonly deviceTotal: number;
}
/** What the library tells of a kernel. */
export interface Kernel {
  readonly handle: Handle;
  readonly registers: number;
  readonly parameterBytes: number;
  readonly maxThreads: number;
  /** Spilled registers and stack of a thread. */
  readonly localBytes: number;
  readonly sharedBytes: number;
}
const LOST = /device context (is|was) lost/;

/**
 * An open device: one stream, in whose order everything happens. A call that fails throws the typed error of its status and changes
 * nothing, except that an error which the driver cannot recover from loses the context: see {@link lost}.
 */
export class Context {
  readonly native: Native;
  readonly device: number;
  readonly #handle: Handle;
  #lost = false;
  #closed = false;

  /** Opens a device. Throws DeviceError, OutOfMemoryError. The driver is open. */
  constructor(native: Native, device: number) {
    this.native = native;
    this.device = device;
    native.check(native.symbols.open(device, out), { device });
    this.#handle = taken();
  }
  /** Whether the driver gave the context up: nothing can be done with it but to close it. */
  get lost(): boolean {
    return this.#lost;
  }
  get closed(): boolean {
    return this.#closed;
  }
  /** Throws the error of a status below 0; returns the others. */
  check(status: number, details: ErrorDetails = {}): number {
    if (status >= 0) return status;
    if (this.#closed) {
      throw new DeviceError("[cuda] this engine was closed; call cuda() for a new one", {
        device: this.device,
      });
    }
    const { words } = this.native;
    if (LOST.test(words)) this.#lost = true;
    throw errorOf(status, words, { device: this.device, ...details });
  }
  /** Waits for the stream and frees everything, the memory of tensors included. Calling it again does nothing. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.native.symbols.close(this.#handle);
  }
  /** The address of device memory. Throws OutOfMemoryError. */
  alloc(bytes: number): number {
    this.check(this.native.symbols.alloc(this.#handle, bytes, out), { bytes });
    return taken();
  }
  /** Gives memory back in the stream's order. Of a context that is lost or closed everything has been given back. */
  free(address: number): void {
    if (this.#closed || this.#lost) return;
    this.check(this.native.symbols.free(this.#handle, address));
  }
  memory(): DeviceMemory {
    const { fields, bytes } = MEMORY_INFO;
    const info = blank(bytes);
    this.check(this.native.symbols.memory(this.#handle, bytesOf(info)));
    const at = (offset: number): number => Number(info.getBigUint64(offset, true));
    return {
      blocks: info.getUint32(fields.blocks, true),
      inUse: at(fields.in_use),
      kept: at(fields.kept),
      deviceFree: at(fields.device_free),
      deviceTotal: at(fields.device_total),
    };
  }
  /** Returns what is kept for reuse to the system. */
  trim(): void {
    this.check(this.native.symbols.trim(this.#handle));
  }
  debug(on: boolean): void {
    this.check(this.native.symbols.debug(this.#handle, on ? 1 : 0));
  }
  /** `values` may be used again when it returns. */
  upload(to: number, values: ArrayBufferView): void {
    this.check(this.native.symbols.upload(this.#handle, to, values, values.byteLength));
  }
  /** Fills device memory with zeros. */
  zero(to: number, bytes: number): void {
    this.check(this.native.symbols.fill(this.#handle, to, 0, bytes));
  }
  /** Starts a copy to the host; see {@link arrived} and {@link take}. */
  download(from: number, bytes: number): Handle {
    this.check(this.native.symbols.download(this.#handle, from, bytes, out));
    return taken();
  }
  arrived(transfer: Handle): boolean {
    return this.check(this.native.symbols.transfer_done(transfer)) === 1;
  }
  /** Ends a transfer: into `to` when it has arrived, or with undefined without looking. */
  take(transfer: Handle, to: ArrayBufferView | undefined): void {
    this.check(this.native.symbols.transfer_take(transfer, to ?? null));
  }
  /** An event that is {@link done} when everything given to the stream before it is. */
  mark(): Handle {
    this.check(this.native.symbols.mark(this.#handle, out));
    return taken();
  }
  done(event: Handle): boolean {
    return this.check(this.native.symbols.event_done(event)) === 1;
  }
  freeEvent(event: Handle): void {
    if (!this.#closed && !this.#lost) this.check(this.native.symbols.event_free(event));
  }
  /** Milliseconds between two events that are done. */
  elapsed(from: Handle, to: Handle): number {
    const milliseconds = new Float32Array(new ArrayBuffer(4));
    this.check(this.native.symbols.elapsed(from, to, milliseconds));
    return milliseconds[0]!;
  }
  /** Throws UnsupportedError when there is none of that name. */
  kernel(name: string): Kernel {
    const { fields, bytes } = KERNEL_INFO;
    const info = blank(bytes);
    this.check(this.native.symbols.kernel(this.#handle, cString(name), bytesOf(info)), { kernel: name });
    const at = (offset: number): number => info.getUint32(offset, true);
    return {
      handle: Number(info.getBigUint64(fields.handle, true)),
      registers: at(fields.registers),
      parameterBytes: at(fields.parameter_bytes),
      maxThreads: at(fields.max_threads),
      localBytes: at(fields.local_bytes),
      sharedBytes: at(fields.shared_bytes),
    };
  }
  /** Launches what a heed_cuda_launch_info says. */
  launch(info: Uint8Array): void {
    const status = this.native.symbols.launch(this.#handle, info);
    if (status !== 0) this.check(status);
  }
  /** Whether there was a library that takes it, and did what a heed_cuda_gemm_info says. */
  gemm(info: Uint8Array): boolean {
    const status = this.native.symbols.gemm(this.#handle, info);
    if (status === UNSUPPORTED) return false;
    this.check(status);
    return true;
  }
  /** Path and version of the library behind {@link gemm}; empty when none was found. */
  get gemmLibrary(): string {
    return String(this.native.symbols.gemm_library());
  }
  /** Records what `run` gives to the stream, and does none of it. Throws what `run` throws; then there is no graph. */
  record(run: () => void): Handle {
    const { symbols } = this.native;
    this.check(symbols.graph_begin(this.#handle));
    try {
      run();
      this.check(symbols.graph_end(this.#handle, out));
    } catch (error) {
      this.#abandonRecording();
      throw error;
    }
    return taken();
  }
  /** Ends a recording that failed, whose own error is the one to see. Where the context cannot be entered it goes on: once more, then. */
  #abandonRecording(): void {
    const { symbols } = this.native;
    for (let tries = 0; tries < 2; tries++) {
      if (symbols.graph_end(this.#handle, out) !== 0) continue;
      symbols.graph_free(taken());
      return;
    }
  }
  replay(graph: Handle): void {
    this.check(this.native.symbols.graph_launch(this.#handle, graph));
  }
  freeGraph(graph: Handle): void {
    if (!this.#closed && !this.#lost) this.check(this.native.symbols.graph_free(graph));
  }
}
/** HEED_UNSUPPORTED. */
const UNSUPPORTED = -3;

/** A block for the library to fill in, its size in place. */
export function blank(bytes: number): DataView {
  const view = new DataView(new ArrayBuffer(bytes));
  view.setUint32(0, bytes, true);
  return view;
}
/** A view as it is passed. */
export function bytesOf(view: DataView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}
