import { Block } from "@heed/tensor/native";
import type { Context } from "./context.ts";
import { type Device, type DeviceLimits, type Gemm, LARGEST_ARGUMENTS, type Launch } from "./launch.ts";
import { temporary } from "./memory.ts";
import { GEMM_INFO, LAUNCH_INFO } from "./structs.ts";

/** heed_dtype of the floats. */
const FLOAT_CODE: Readonly<Record<string, number>> = { float64: 0, float32: 1, float16: 2, bfloat16: 3 };

/** What operations see of an open context. */
export function createDevice(context: Context, limits: DeviceLimits): Device {
  // The launch and the argument block behind it, in one memory: `args` stays NULL.
  const memory = new ArrayBuffer(LAUNCH_INFO.bytes + LARGEST_ARGUMENTS);
  const view = new Uint8Array(memory);
  const head = new Block(memory);
  const handles = new Map<string, number>();
  const handleOf = (name: string): number => {
    const known = handles.get(name);
    if (known !== undefined) return known;
    const { handle } = context.kernel(name);
    handles.set(name, handle);
    return handle;
  };
  const { fields } = LAUNCH_INFO;
  return {
    block: new Block(memory, LAUNCH_INFO.bytes),
    limits,
    launch: ({ kernel, grid, threads, shared }: Launch, bytes) => {
      head.begin(LAUNCH_INFO.bytes, threads);
      head.int64(fields.kernel, handleOf(kernel));
      for (let axis = 0; axis < 3; axis++) head.int32(fields.grid + 4 * axis, grid[axis]!);
      head.int32(fields.shared, shared);
      head.int64(fields.args, 0);
      head.int32(fields.args_bytes, bytes);
      context.launch(view);
    },
    temporary: (bytes) => temporary(context, bytes),
    zero: (address, bytes) => context.zero(address, bytes),
    gemm: gemmOn(context),
  };
}
/** The product by cuBLAS. Where there is none, it is asked for once. */
function gemmOn(context: Context): Device["gemm"] {
  const { fields, bytes } = GEMM_INFO;
  const memory = new ArrayBuffer(bytes);
  const view = new Uint8Array(memory);
  const block = new Block(memory);
  let isMissing = false;
  return (g: Gemm) => {
    if (isMissing) return false;
    block.begin(bytes, FLOAT_CODE[g.dtype]!);
    block.int32(fields.transpose_a, g.transposeA ? 1 : 0);
    block.int32(fields.transpose_b, g.transposeB ? 1 : 0);
    for (const name of ["m", "n", "k", "batch", "a", "b", "c", "lda", "ldb", "ldc"] as const)
      block.int64(fields[name], g[name]);
    block.int64(fields.stride_a, g.strideA);
    block.int64(fields.stride_b, g.strideB);
    block.int64(fields.stride_c, g.strideC);
    block.float64(fields.alpha, g.alpha);
    block.float64(fields.beta, g.beta);
    if (context.gemm(view)) return true;
    isMissing = context.gemmLibrary === ""; // else it is this product that the library does not take
    return false;
  };
}
