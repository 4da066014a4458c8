import { type DType, type DTypeArrays, DTYPES, type Tensor } from "@heed/tensor";
import type { Context } from "./context.ts";

/** How long completion is asked for at every turn of the event loop; after that a turn waits. A question costs 0.4 us, a wait 62 us or more. */
const EAGER_MILLISECONDS = 2;

/** Resolves when `done` says so, which is asked for without blocking. Rejects with the signal's reason when that aborts, or what `done` throws. */
export async function settled(done: () => boolean, signal?: AbortSignal): Promise<void> {
  const start = performance.now();
  for (;;) {
    signal?.throwIfAborted();
    if (done()) return;
    if (performance.now() - start < EAGER_MILLISECONDS) await new Promise<void>((next) => setImmediate(next));
    else await Bun.sleep(1);
  }
}
/** `Engine.read`: a row-major copy once earlier work is done. An abort drops the transfer, which then ends by itself. */
export async function read(context: Context, x: Tensor, signal?: AbortSignal): Promise<DTypeArrays[DType]> {
  const { array, bytes } = DTYPES[x.dtype];
  const host = new array(x.size);
  if (x.size === 0) return host;
  const transfer = start(context, x, bytes);
  let arrived = false;
  try {
    await settled(() => context.arrived(transfer), signal);
    arrived = true;
  } finally {
    if (!arrived) drop(context, transfer);
  }
  context.take(transfer, host);
  return host;
}
/** Begins the copy to the host; a row-major copy on the device is freed in the stream's order, behind it. */
function start(context: Context, x: Tensor, bytes: number): number {
  using dense = x.contiguous();
  return context.download(dense.storage.address + dense.offset * bytes, dense.size * bytes);
}
/** Drops a transfer after a failure or an abort, whose own error is the one to report. */
function drop(context: Context, transfer: number): void {
  try {
    context.take(transfer, undefined);
  } catch {
    // The context was lost or closed, and the transfer with it.
  }
}
/** `Engine.sync`: resolves when everything given to the stream is done. */
export async function sync(context: Context): Promise<void> {
  const event = context.mark();
  try {
    await settled(() => context.done(event));
  } finally {
    context.freeEvent(event);
  }
}
/** Milliseconds that the device takes for what `run` gives to the stream. */
export async function elapsed(context: Context, run: () => void): Promise<number> {
  const from = context.mark();
  try {
    run();
    const to = context.mark();
    try {
      await settled(() => context.done(to));
      return context.elapsed(from, to);
    } finally {
      context.freeEvent(to);
    }
  } finally {
    context.freeEvent(from);
  }
}
