import type { DType, DTypeArrays } from "../core/dtype.ts";
import type { Memory } from "../core/storage.ts";
import type { Tensor } from "../core/tensor.ts";
import type { FusedOps } from "./fused.ts";

/** Elementwise functions of one operand. `isFinite` takes a float and gives bool, `not` takes and gives bool. */
export type UnaryOp =
  | "neg"
  | "abs"
  | "exp"
  | "log"
  | "sqrt"
  | "rsqrt"
  | "square"
  | "reciprocal"
  | "tanh"
  | "sigmoid"
  | "silu"
  | "isFinite"
  | "not";
/**
 * Elementwise functions of two operands. Comparisons and `and`, `or` give bool. `maskZero` and `maskNegInf` keep `a` where the
 * bool `b` is true and give 0 or -Infinity elsewhere: a selection, so that a NaN which is not selected is gone.
 */
export type BinaryOp =
  | "add"
  | "sub"
  | "mul"
  | "div"
  | "max"
  | "min"
  | "pow"
  | "equal"
  | "less"
  | "lessEqual"
  | "and"
  | "or"
  | "maskZero"
  | "maskNegInf";
/** Reductions; `max` and `min` carry a NaN through. */
export type ReduceOp = "sum" | "max" | "min";

/** Calls of an engine that were recorded, to be done again as one. Disposing frees what was recorded with them. */
export interface Captured {
  /** Does them, on the memory that they were recorded with. */
  launch(): void;
  [Symbol.dispose](): void;
}
/**
 * What a backend provides: a dozen methods and a table of fused operations. Operands have been validated by the operation that
 * calls: dtypes and shapes fit, operands live on this engine, `out` is allocated, has no overlap with an operand unless it is the
 * same view, and no operand is empty (except that matmul is never called with an empty K). Calls enqueue in order and may return
 * before the work is done; `read` and `sync` wait.
 */
export interface Engine {
  /** The name it is registered under. */
  readonly name: string;
  readonly device: "cpu" | "cuda";
  /** One sentence on what is in use and why, e.g. the instruction set or the reason for the floor. */
  readonly description: string;
  readonly fused: FusedOps;
  /** Uninitialised memory, aligned to 64 bytes. Throws OutOfMemoryError. */
  alloc(bytes: number): Memory;
  /**
   * Takes `buffer`, which is not empty, as memory of its own without a copy: a mapped file. Its address may be a multiple of the element
   * size only. `release` detaches the buffer, which frees it. Absent on an engine that computes in other memory than the host's.
   */
  wrap?(buffer: ArrayBuffer): Memory;
  /** Writes host elements to a contiguous tensor of as many elements. */
  upload(values: DTypeArrays[DType], out: Tensor): void;
  /** A row-major copy of the elements, once earlier work on them is done. */
  read(x: Tensor, signal?: AbortSignal): Promise<DTypeArrays[DType]>;
  /** Resolves when all earlier work is done. */
  sync(): Promise<void>;
  /** out = x, converted to out's dtype: floats round to nearest even; float to integer truncates, saturates, NaN is 0; to bool is x != 0. */
  copy(x: Tensor, out: Tensor): void;
  /** out = op(x), elementwise. */
  unary(op: UnaryOp, x: Tensor, out: Tensor): void;
  /** out = op(a, b), elementwise; both already have out's shape (broadcast axes have stride 0). */
  binary(op: BinaryOp, a: Tensor, b: Tensor, out: Tensor): void;
  /** Reduces the axes where out has length 1 and x may be longer. 16-bit floats accumulate in float32. */
  reduce(op: ReduceOp, x: Tensor, out: Tensor): void;
  /**
   * out[..., M, N] = alpha * a[..., M, K] @ b[..., K, N] + beta * out; leading axes already broadcast. beta = 0 does not read out. One
   * dtype, except that b may be float16 or bfloat16 beside float32 a and out, in a batch too.
   */
  matmul(a: Tensor, b: Tensor, out: Tensor, alpha: number, beta: number): void;
  /** Softmax over the last axis; a row that is -Infinity throughout gives zeros. */
  softmax(x: Tensor, out: Tensor): void;
  /** out[i, ...] = x[indices[i], ...]; indices are int32 or int64 of rank 1 and in range. */
  gather(x: Tensor, indices: Tensor, out: Tensor): void;
  /** out[indices[i], ...] += x[i, ...], in ascending i. */
  scatterAdd(x: Tensor, indices: Tensor, out: Tensor): void;
  /**
   * Records the calls of this engine that `run` makes, and does none of them. `run` calls neither `read` nor `sync`. Absent where a
   * call costs little, and doing several as one saves nothing. Throws what `run` throws, and the engine's own errors.
   */
  capture?(run: () => void): Captured;
}
