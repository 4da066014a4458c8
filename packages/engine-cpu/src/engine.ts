import {
  type BinaryOp,
  type DTypeArrays,
  type DType,
  type Engine,
  type ReduceOp,
  type UnaryOp,
} from "@heed/tensor";
import { attention } from "./fused/attention.ts";
import { attentionBackward } from "./fused/attention-backward.ts";
import { kvAppend } from "./fused/kv-append.ts";
import { linear } from "./fused/linear.ts";
import { normRopeAppend } from "./fused/norm-rope-append.ts";
import { pagedAttention } from "./fused/paged-attention.ts";
import { rmsNorm, rmsNormBackward } from "./fused/rms-norm.ts";
import { sealPages } from "./fused/seal-pages.ts";
import { rope } from "./fused/rope.ts";
import type { Native } from "./native.ts";
import { BINARY, COPY, GATHER, MATMUL, REDUCE, SCATTER_ADD, SOFTMAX, UNARY } from "./structs.ts";

/** heed_unary_op. */
const UNARY_CODE: Readonly<Record<UnaryOp, number>> = {
  neg: 0,
  abs: 1,
  exp: 2,
  log: 3,
  sqrt: 4,
  rsqrt: 5,
  square: 6,
  reciprocal: 7,
  tanh: 8,
  sigmoid: 9,
  silu: 10,
  isFinite: 11,
  not: 12,
};
/** heed_binary_op. */
const BINARY_CODE: Readonly<Record<BinaryOp, number>> = {
  add: 0,
  sub: 1,
  mul: 2,
  div: 3,
  max: 4,
  min: 5,
  pow: 6,
  equal: 7,
  less: 8,
  lessEqual: 9,
  and: 10,
  or: 11,
  maskZero: 12,
  maskNegInf: 13,
};
/** heed_reduce_op. */
const REDUCE_CODE: Readonly<Record<ReduceOp, number>> = { sum: 0, max: 1, min: 2 };

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
      block.begin(COPY.bytes, 0);
      block.tensor(COPY.fields.x, x);
      block.tensor(COPY.fields.out, out);
      native.run(symbols.heed_copy_run);
    },
    unary: (op, x, out) => {
      block.begin(UNARY.bytes, UNARY_CODE[op]);
      block.tensor(UNARY.fields.x, x);
      block.tensor(UNARY.fields.out, out);
      native.run(symbols.heed_unary_run);
    },
    binary: (op, a, b, out) => {
      block.begin(BINARY.bytes, BINARY_CODE[op]);
      block.tensor(BINARY.fields.a, a);
      block.tensor(BINARY.fields.b, b);
      block.tensor(BINARY.fields.out, out);
      native.run(symbols.heed_binary_run);
    },
    reduce: (op, x, out) => {
      block.begin(REDUCE.bytes, REDUCE_CODE[op]);
      block.tensor(REDUCE.fields.x, x);
      block.tensor(REDUCE.fields.out, out);
      native.run(symbols.heed_reduce_run);
    },
    matmul: (a, b, out, alpha, beta) => {
      block.begin(MATMUL.bytes, 0);
      block.float64(MATMUL.fields.alpha, alpha);
      block.float64(MATMUL.fields.beta, beta);
      block.tensor(MATMUL.fields.a, a);
      block.tensor(MATMUL.fields.b, b);
      block.tensor(MATMUL.fields.out, out);
      block.absent(MATMUL.fields.bias);
      native.run(symbols.heed_matmul_run);
    },
    softmax: (x, out) => {
      block.begin(SOFTMAX.bytes, 0);
      block.tensor(SOFTMAX.fields.x, x);
      block.tensor(SOFTMAX.fields.out, out);
      native.run(symbols.heed_softmax_run);
    },
    gather: (x, indices, out) => {
      block.begin(GATHER.bytes, 0);
      block.tensor(GATHER.fields.x, x);
      block.tensor(GATHER.fields.indices, indices);
      block.tensor(GATHER.fields.out, out);
      native.run(symbols.heed_gather_run);
    },
    scatterAdd: (x, indices, out) => {
      block.begin(SCATTER_ADD.bytes, 0);
      block.tensor(SCATTER_ADD.fields.x, x);
      block.tensor(SCATTER_ADD.fields.indices, indices);
      block.tensor(SCATTER_ADD.fields.out, out);
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
    fused: {
      linear: linear(native),
      rope: rope(native),
      rmsNorm: rmsNorm(native),
      rmsNormBackward: rmsNormBackward(native),
      attention: attention(native),
      attentionBackward: attentionBackward(native),
      pagedAttention: pagedAttention(native),
      kvAppend: kvAppend(native),
      normRopeAppend: normRopeAppend(native),
      sealPages: sealPages(native),
    },
    alloc: (bytes) => native.alloc(bytes),
    wrap: (buffer) => native.wrap(buffer),
    ...coreMethods(native),
  };
}
