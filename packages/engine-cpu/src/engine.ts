import type { DType, DTypeArrays, Engine } from "@heed/tensor";
import {
  writeBinary,
  writeCopy,
  writeGather,
  writeMatmul,
  writeReduce,
  writeScatterAdd,
  writeSoftmax,
  writeUnary,
} from "@heed/tensor/native";
import { fusedOps } from "./fused.ts";
import type { Native } from "./native.ts";

type CoreMethods = Omit<Engine, "name" | "device" | "description" | "fused" | "alloc" | "wrap">;

/** The core methods: each writes its parameter block and calls. */
function coreMethods(native: Native): CoreMethods {
  const { block, symbols } = native;
  return {
    upload: (values, out) => (out.data as Uint8Array).set(values as Uint8Array),
    read: async (x) => {
      using dense = x.contiguous();
      return dense.data.slice() as DTypeArrays[DType];
    },
    sync: async () => {},
    copy: (x, out) => {
      writeCopy(block, x, out);
      native.run(symbols.heed_copy_run);
    },
    unary: (op, x, out) => {
      writeUnary(block, op, x, out);
      native.run(symbols.heed_unary_run);
    },
    binary: (op, a, b, out) => {
      writeBinary(block, op, a, b, out);
      native.run(symbols.heed_binary_run);
    },
    reduce: (op, x, out) => {
      writeReduce(block, op, x, out);
      native.run(symbols.heed_reduce_run);
    },
    matmul: (a, b, out, alpha, beta) => {
      writeMatmul(block, { a, b, out }, alpha, beta);
      native.run(symbols.heed_matmul_run);
    },
    softmax: (x, out) => {
      writeSoftmax(block, x, out);
      native.run(symbols.heed_softmax_run);
    },
    gather: (x, indices, out) => {
      writeGather(block, x, indices, out);
      native.run(symbols.heed_gather_run);
    },
    scatterAdd: (x, indices, out) => {
      writeScatterAdd(block, x, indices, out);
      native.run(symbols.heed_scatter_add_run);
    },
  };
}
/** The engine "cpu": native kernels for the core methods and every fused operation. */
export function createNativeEngine(native: Native): Engine {
  return {
    name: "cpu",
    device: "cpu",
    get description() {
      const { symbols } = native;
      return `native kernels for x86-64-${symbols.heed_isa()}, ${symbols.heed_threads()} threads`;
    },
    fused: fusedOps(native),
    alloc: (bytes) => native.alloc(bytes),
    wrap: (buffer) => native.wrap(buffer),
    ...coreMethods(native),
  };
}
