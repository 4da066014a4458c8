import type { Tensor } from "../core/tensor.ts";
import type { BinaryOp, ReduceOp, UnaryOp } from "../engine/engine.ts";
import type { Block } from "./block.ts";
import { BINARY, COPY, GATHER, MATMUL, REDUCE, SCATTER_ADD, SOFTMAX, UNARY } from "./structs.ts";

/** heed_unary_op. */
export const UNARY_CODE: Readonly<Record<UnaryOp, number>> = {
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
export const BINARY_CODE: Readonly<Record<BinaryOp, number>> = {
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
export const REDUCE_CODE: Readonly<Record<ReduceOp, number>> = { sum: 0, max: 1, min: 2 };

/** Writes heed_copy. */
export function writeCopy(block: Block, x: Tensor, out: Tensor): void {
  block.begin(COPY.bytes, 0);
  block.tensor(COPY.fields.x, x);
  block.tensor(COPY.fields.out, out);
}
/** Writes heed_unary. */
export function writeUnary(block: Block, op: UnaryOp, x: Tensor, out: Tensor): void {
  block.begin(UNARY.bytes, UNARY_CODE[op]);
  block.tensor(UNARY.fields.x, x);
  block.tensor(UNARY.fields.out, out);
}
/** Writes heed_binary. */
export function writeBinary(block: Block, op: BinaryOp, a: Tensor, b: Tensor, out: Tensor): void {
  block.begin(BINARY.bytes, BINARY_CODE[op]);
  block.tensor(BINARY.fields.a, a);
  block.tensor(BINARY.fields.b, b);
  block.tensor(BINARY.fields.out, out);
}
/** Writes heed_reduce. */
export function writeReduce(block: Block, op: ReduceOp, x: Tensor, out: Tensor): void {
  block.begin(REDUCE.bytes, REDUCE_CODE[op]);
  block.tensor(REDUCE.fields.x, x);
  block.tensor(REDUCE.fields.out, out);
}
/** The operands of heed_matmul: out [..., M, N] = alpha * a [..., M, K] @ b [..., K, N] + beta * out + bias [N]. */
export interface MatmulOperands {
  readonly a: Tensor;
  readonly b: Tensor;
  readonly out: Tensor;
  readonly bias?: Tensor | undefined;
}
/** Writes heed_matmul. */
export function writeMatmul(block: Block, operands: MatmulOperands, alpha: number, beta: number): void {
  const { fields, bytes } = MATMUL;
  block.begin(bytes, 0);
  block.float64(fields.alpha, alpha);
  block.float64(fields.beta, beta);
  block.tensor(fields.a, operands.a);
  block.tensor(fields.b, operands.b);
  block.tensor(fields.out, operands.out);
  block.tensor(fields.bias, operands.bias);
}
/** Writes heed_softmax. */
export function writeSoftmax(block: Block, x: Tensor, out: Tensor): void {
  block.begin(SOFTMAX.bytes, 0);
  block.tensor(SOFTMAX.fields.x, x);
  block.tensor(SOFTMAX.fields.out, out);
}
/** Writes heed_gather. */
export function writeGather(block: Block, x: Tensor, indices: Tensor, out: Tensor): void {
  block.begin(GATHER.bytes, 0);
  block.tensor(GATHER.fields.x, x);
  block.tensor(GATHER.fields.indices, indices);
  block.tensor(GATHER.fields.out, out);
}
/** Writes heed_scatter_add. */
export function writeScatterAdd(block: Block, x: Tensor, indices: Tensor, out: Tensor): void {
  block.begin(SCATTER_ADD.bytes, 0);
  block.tensor(SCATTER_ADD.fields.x, x);
  block.tensor(SCATTER_ADD.fields.indices, indices);
  block.tensor(SCATTER_ADD.fields.out, out);
}
