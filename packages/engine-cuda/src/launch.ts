import type { DType } from "@heed/tensor";
import type { Block } from "@heed/tensor/native";

/** One kernel launch. Blocks have one thread axis. */
export interface Launch {
  /** Its name in the library, such as "heed_cuda_softmax". */
  readonly kernel: string;
  /** Blocks along x, y and z: at most 2^31 - 1, 65535 and 65535, none of them 0. */
  readonly grid: readonly [number, number, number];
  /** Threads of a block. */
  readonly threads: number;
  /** Bytes of dynamic shared memory of a block. */
  readonly shared: number;
}
/** What a schedule may use. */
export interface DeviceLimits {
  readonly multiprocessors: number;
  /** Bytes of shared memory that a block may have at most. */
  readonly sharedPerBlock: number;
  /** Compute capability as 10 * major + minor: 90 on Hopper. */
  readonly computeCapability: number;
  /** Bytes of the level 2 cache. */
  readonly level2Bytes: number;
}
/** Device memory for one call. Disposing gives it back in stream order: right after the launch that uses it. */
export interface Temporary {
  readonly address: number;
  [Symbol.dispose](): void;
}
/**
 * c[i] = alpha * op(a[i]) op(b[i]) + beta * c[i] for i < batch, row-major; heed_cuda_gemm_info. Addresses are device addresses, `ld*` are
 * elements between rows, `stride*` elements between the matrices of the batch. beta = 0 never reads c.
 */
export interface Gemm {
  readonly dtype: DType;
  readonly transposeA: boolean;
  readonly transposeB: boolean;
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly batch: number;
  readonly a: number;
  readonly b: number;
  readonly c: number;
  readonly lda: number;
  readonly ldb: number;
  readonly ldc: number;
  readonly strideA: number;
  readonly strideB: number;
  readonly strideC: number;
  readonly alpha: number;
  readonly beta: number;
}
/** What operations see of a device: where an argument block is written, and launches in the order of its one stream. */
export interface Device {
  /** The argument block of the next launch; every launch uses the same memory. {@link LARGEST_ARGUMENTS} bytes. */
  readonly block: Block;
  readonly limits: DeviceLimits;
  /** Launches with the first `bytes` bytes of the block as the kernel's argument. Throws DeviceError, UnsupportedError (no such kernel), ArgumentError. */
  launch(launch: Launch, bytes: number): void;
  /** Device memory of at least `bytes`, for one call. Throws OutOfMemoryError. */
  temporary(bytes: number): Temporary;
  /** Fills device memory with zeros, in the stream's order. Throws DeviceError. */
  zero(address: number, bytes: number): void;
  /** The product by cuBLAS; false where there is none, and nothing was done. Throws DeviceError, ArgumentError. */
  gemm(gemm: Gemm): boolean;
}
/** Bytes that a kernel's argument block may have: what CUDA passes by value before 12.1. */
export const LARGEST_ARGUMENTS = 4096;
