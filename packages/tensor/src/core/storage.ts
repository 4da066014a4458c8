import { DisposedError, LeakError } from "./errors.ts";

/** Memory that an engine handed out. `buffer` is set when the host can read it; `address` is what native code is given. */
export interface Memory {
  readonly buffer: ArrayBuffer | undefined;
  readonly address: number;
  /** Gives the memory back. Called once. */
  release(): void;
}
/** What Heed's tensors hold at the moment, over all engines. */
export interface MemoryUsage {
  /** Storages that are alive (views share one). */
  readonly storages: number;
  /** Their bytes. */
  readonly bytes: number;
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
let peakBytes = 0;
const trackers = new Set<Map<Storage, string>>();

/** Live storages, their bytes and the peak. Memory the collector freed without a dispose counts until then. */
export function memoryUsage(): MemoryUsage {
  return { storages, bytes, peakBytes };
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
// A storage that became unreachable without a dispose: its memory went with its ArrayBuffer, the books follow here.
const collected = new FinalizationRegistry<{ byteLength: number }>(({ byteLength }) => {
  storages--;
  bytes -= byteLength;
});

/** Reference-counted memory under one or more tensors. */
export class Storage {
  readonly byteLength: number;
  readonly #memory: Memory;
  #references = 1;
  constructor(memory: Memory, byteLength: number) {
    this.#memory = memory;
    this.byteLength = byteLength;
    storages++;
    bytes += byteLength;
    if (bytes > peakBytes) peakBytes = bytes;
    collected.register(this, { byteLength }, this);
    if (trackers.size > 0) {
      const stack = allocationStack();
      for (const live of trackers) live.set(this, stack);
    }
  }
  /** Whether the memory is still there: not released, and its buffer not detached by somebody else. */
  get alive(): boolean {
    return this.#references > 0 && !(this.#memory.buffer?.detached ?? false);
  }
  /** The host's view of the memory; undefined on a device whose memory the host cannot read. Throws DisposedError. */
  get buffer(): ArrayBuffer | undefined {
    this.check();
    return this.#memory.buffer;
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
    storages--;
    bytes -= this.byteLength;
    for (const live of trackers) live.delete(this);
    this.#memory.release();
  }
}
