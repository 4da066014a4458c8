import { DisposedError, LeakError, ShapeError } from "./errors.ts";

/** Bytes that JavaScriptCore lets an ArrayBuffer have, and so the most that the host sees of a memory at once. */
export const LARGEST_BUFFER: number = 2 ** 32;

/** A part of a memory that the host sees: `buffer` holds what begins `start` bytes after the memory's first one. */
export interface HostPart {
  readonly buffer: ArrayBuffer;
  readonly start: number;
}
/** Memory that an engine handed out. `address` is what native code is given. */
export interface Memory {
  /** All of it, where the host can read it and it has at most {@link LARGEST_BUFFER} bytes. */
  readonly buffer: ArrayBuffer | undefined;
  readonly address: number;
  /**
   * A part that holds `bytes` (at most {@link LARGEST_BUFFER}) from `at` on, for memory that the host can read and that is too large for
   * `buffer`. `release` detaches it, and the memory is not collected while it is reachable.
   */
  part?(at: number, bytes: number): HostPart;
  /** Gives the memory back. Called once. */
  release(): void;
}
/** What Heed's tensors hold at the moment, over all engines. */
export interface MemoryUsage {
  /** Storages that are alive (views share one). */
  readonly storages: number;
  /** Bytes allocated for them. */
  readonly bytes: number;
  /** Bytes of files that are mapped for the rest of them, which the system loads as they are read and drops when it needs room. */
  readonly mappedBytes: number;
  /** The largest `bytes` since the start or the last {@link resetPeakMemory}. */
  readonly peakBytes: number;
}
/** A storage that was created while a {@link LeakTracker} was active and has not been released. */
export interface Leak {
  readonly bytes: number;
  /** The stack at its allocation. */
  readonly stack: string;
}
/** Records allocations from its creation until it is disposed. */
export interface LeakTracker {
  /** Storages created since, and still alive. */
  report(): readonly Leak[];
  /** Throws LeakError, with the oldest allocation's stack, when {@link report} is not empty. */
  check(): void;
  [Symbol.dispose](): void;
}

let storages = 0;
let bytes = 0;
let mappedBytes = 0;
let peakBytes = 0;
const trackers = new Set<Map<Storage, string>>();

/** Live storages, their bytes and the peak. Memory the collector freed without a dispose counts until then. */
export function memoryUsage(): MemoryUsage {
  return { storages, bytes, mappedBytes, peakBytes };
}
/** Sets the peak of {@link memoryUsage} to the present number of bytes. */
export function resetPeakMemory(): void {
  peakBytes = bytes;
}
function leakError(leaks: readonly Leak[]): LeakError {
  const total = leaks.reduce((n, leak) => n + leak.bytes, 0);
  return new LeakError(
    `[memory] ${leaks.length} storages of ${total} bytes are still alive; dispose them, or make them in a scope. The oldest was made at\n${leaks[0]!.stack}`,
    { leaks },
  );
}
/** Starts recording where storages are allocated; for development and tests, since each allocation then takes a stack trace. */
export function trackLeaks(): LeakTracker {
  const live = new Map<Storage, string>();
  trackers.add(live);
  const report = (): Leak[] => [...live].map(([storage, stack]) => ({ bytes: storage.byteLength, stack }));
  return {
    report,
    check: () => {
      const leaks = report();
      if (leaks.length > 0) throw leakError(leaks);
    },
    [Symbol.dispose]: () => void trackers.delete(live),
  };
}
/** The present stack, deep enough to reach the caller of a fused operation. */
function allocationStack(): string {
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = 50;
  const stack = new Error("allocated here").stack ?? "";
  Error.stackTraceLimit = limit;
  return stack;
}
/** Throws ShapeError when a view of that many bytes is more than the host sees at once. */
export function checkHostBytes(bytes: number): void {
  if (bytes <= LARGEST_BUFFER) return;
  throw new ShapeError(
    `[tensor] a view of ${bytes} bytes is more than the ${LARGEST_BUFFER} that the host sees at once; slice it and take the parts one by one`,
    { bytes, most: LARGEST_BUFFER },
  );
}
type Booked = Pick<Storage, "byteLength" | "isMapped">;

/** Enters a storage in the books, or with -1 strikes it out. */
function book({ byteLength, isMapped }: Booked, sign: 1 | -1): void {
  storages += sign;
  if (isMapped) mappedBytes += sign * byteLength;
  else bytes += sign * byteLength;
  if (bytes > peakBytes) peakBytes = bytes;
}
// A storage that became unreachable without a dispose: its memory went with its ArrayBuffer, the books follow here.
const collected = new FinalizationRegistry<Booked>((entry) => book(entry, -1));

/** Reference-counted memory under one or more tensors. */
export class Storage {
  readonly byteLength: number;
  /** Whether the memory is a file's, mapped, and not allocated. */
  readonly isMapped: boolean;
  readonly #memory: Memory;
  #references = 1;
  constructor(memory: Memory, byteLength: number, isMapped = false) {
    this.#memory = memory;
    this.byteLength = byteLength;
    this.isMapped = isMapped;
    book(this, 1);
    collected.register(this, { byteLength, isMapped }, this);
    if (trackers.size > 0) {
      const stack = allocationStack();
      for (const live of trackers) live.set(this, stack);
    }
  }
  /** Whether the memory is still there: not released, and its buffer not detached by somebody else. */
  get alive(): boolean {
    return this.#references > 0 && !(this.#memory.buffer?.detached ?? false);
  }
  /** All of the memory, where the host can read it and it fits an ArrayBuffer: see {@link hostPart}. Throws DisposedError. */
  get buffer(): ArrayBuffer | undefined {
    this.check();
    return this.#memory.buffer;
  }
  /**
   * The memory, or the part of it that holds `bytes` from `at` on where all of it is too large for an ArrayBuffer; undefined on a device
   * whose memory the host cannot read. Throws DisposedError, ShapeError when `bytes` is too large as well.
   */
  hostPart(at: number, bytes: number): HostPart | undefined {
    const { buffer } = this;
    if (buffer !== undefined) return { buffer, start: 0 };
    if (this.#memory.part === undefined) return undefined;
    checkHostBytes(bytes);
    return this.#memory.part(at, bytes);
  }
  /** The address of the first byte, for native code. Throws DisposedError. */
  get address(): number {
    this.check();
    return this.#memory.address;
  }
  /** Throws DisposedError when the memory is gone. */
  check(): void {
    if (this.alive) return;
    throw new DisposedError(
      this.#references > 0
        ? "[tensor] the memory of this tensor was detached (its buffer was transferred); copy the data instead of transferring it"
        : "[tensor] this tensor was disposed; keep it alive until its last use, or return it from the scope",
      { bytes: this.byteLength },
    );
  }
  /** One more user. */
  retain(): void {
    this.check();
    this.#references++;
  }
  /** One user less; the last gives the memory back at once. */
  release(): void {
    if (--this.#references > 0) return;
    collected.unregister(this);
    book(this, -1);
    for (const live of trackers) live.delete(this);
    this.#memory.release();
  }
}
