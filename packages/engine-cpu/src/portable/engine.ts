import { type Engine, LARGEST_BUFFER, type Memory, OutOfMemoryError } from "@heed/tensor";
import { copy } from "./copy.ts";
import { binary, unary } from "./elementwise.ts";
import { gather, scatterAdd } from "./gather.ts";
import { matmul } from "./matmul.ts";
import { reduce } from "./reduce.ts";
import { softmax } from "./softmax.ts";
import { readRaw, writeRaw } from "./view.ts";

function alloc(bytes: number): Memory {
  if (bytes > LARGEST_BUFFER) {
    throw new OutOfMemoryError(
      `[portable] cannot allocate ${bytes} bytes: an ArrayBuffer ends at ${LARGEST_BUFFER}; make several tensors, or use the engine "cpu"`,
      { bytes, most: LARGEST_BUFFER },
    );
  }
  let buffer: ArrayBuffer;
  try {
    buffer = new ArrayBuffer(bytes);
  } catch {
    throw new OutOfMemoryError(
      `[portable] cannot allocate ${bytes} bytes; dispose tensors that are no longer needed`,
      { bytes },
    );
  }
  return wrap(buffer);
}
function wrap(buffer: ArrayBuffer): Memory {
  const release = (): void => {
    if (!buffer.detached) buffer.transfer(0); // frees at once; the collector may take long
  };
  return { buffer, address: 0, release };
}
/**
 * The engine "portable": the core methods in TypeScript, for every platform that Bun runs on. It has no fused kernels, so fused
 * operations run composed. `reason` says why it is in use, as part of the description.
 */
export function createPortableEngine(reason?: string): Engine {
  const floor = "TypeScript on the host, one thread, no native code";
  return {
    name: "portable",
    device: "cpu",
    description: reason === undefined ? floor : `${floor}: ${reason}`,
    fused: {},
    alloc,
    wrap,
    upload: (values, out) => writeRaw(values, out),
    read: async (x) => readRaw(x).slice(),
    sync: async () => {},
    copy,
    unary,
    binary,
    reduce,
    matmul,
    softmax,
    gather,
    scatterAdd,
  };
}
