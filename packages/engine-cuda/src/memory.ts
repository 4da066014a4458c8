import type { Memory } from "@heed/tensor";
import type { Context } from "./context.ts";
import type { Temporary } from "./launch.ts";

interface Lost {
  readonly context: Context;
  readonly address: number;
}
// The net for memory that became unreachable without a dispose. A finalizer must not throw: that would end the process.
const collected = new FinalizationRegistry<Lost>(({ context, address }) => {
  try {
    context.free(address);
  } catch {
    // The context has gone, and its memory with it.
  }
});
/**
 * Device memory, which the host cannot read: it has no buffer. `release` frees it in the stream's order, so work that uses it may be
 * under way; the collector frees what nobody released. Throws OutOfMemoryError.
 */
export function deviceMemory(context: Context, bytes: number): Memory {
  const address = context.alloc(bytes);
  const memory: Memory = {
    buffer: undefined,
    address,
    release: () => {
      context.free(address); // where it fails the collector tries again
      collected.unregister(memory);
    },
  };
  collected.register(memory, { context, address }, memory);
  return memory;
}
/** Device memory for one call. Throws OutOfMemoryError. */
export function temporary(context: Context, bytes: number): Temporary {
  const address = context.alloc(bytes);
  let freed = false;
  return {
    address,
    [Symbol.dispose]: () => {
      if (freed) return;
      context.free(address);
      freed = true;
    },
  };
}
