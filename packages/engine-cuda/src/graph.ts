import type { Captured } from "@heed/tensor";
import type { Context } from "./context.ts";

interface Lost {
  readonly context: Context;
  readonly graph: number;
}
const collected = new FinalizationRegistry<Lost>(({ context, graph }) => {
  try {
    context.freeGraph(graph);
  } catch {
    // The context has gone, and its graphs with it. A finalizer must not throw.
  }
});
/**
 * `Engine.capture`: what `run` gives to the stream as one CUDA graph. What it allocates and frees belongs to the graph. Throws what
 * `run` throws, UnsupportedError, DeviceError.
 */
export function capture(context: Context, run: () => void): Captured {
  const graph = context.record(run);
  let freed = false;
  const captured: Captured = {
    launch: () => context.replay(graph),
    [Symbol.dispose]: () => {
      if (freed) return;
      freed = true;
      collected.unregister(captured);
      context.freeGraph(graph);
    },
  };
  collected.register(captured, { context, graph }, captured);
  return captured;
}
