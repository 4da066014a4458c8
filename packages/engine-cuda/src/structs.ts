import type { Struct } from "@heed/tensor/native";

// Structs of native/abi/heed_cuda.h; test/structs.test.ts compares them with what the libraries report.

/** heed_cuda_device. */
export const DEVICE = {
  bytes: 168,
  fields: {
    size: 0,
    major: 4,
    minor: 8,
    multiprocessors: 12,
    shared_per_block: 16,
    driver_version: 20,
    memory_pools: 24,
    level_2_bytes: 28,
    memory: 32,
    name: 40,
  },
} as const;
/** heed_cuda_memory_info. */
export const MEMORY_INFO = {
  bytes: 40,
  fields: { size: 0, blocks: 4, in_use: 8, kept: 16, device_free: 24, device_total: 32 },
} as const;
/** heed_cuda_kernel_info. */
export const KERNEL_INFO = {
  bytes: 32,
  fields: {
    size: 0,
    registers: 4,
    handle: 8,
    parameter_bytes: 16,
    max_threads: 20,
    local_bytes: 24,
    shared_bytes: 28,
  },
} as const;
/** heed_cuda_launch_info. */
export const LAUNCH_INFO = {
  bytes: 48,
  fields: { size: 0, threads: 4, kernel: 8, grid: 16, shared: 28, args: 32, args_bytes: 40, reserved: 44 },
} as const;
/** heed_cuda_gemm_info. */
export const GEMM_INFO = {
  bytes: 136,
  fields: {
    size: 0,
    dtype: 4,
    transpose_a: 8,
    transpose_b: 12,
    m: 16,
    n: 24,
    k: 32,
    batch: 40,
    a: 48,
    b: 56,
    c: 64,
    lda: 72,
    ldb: 80,
    ldc: 88,
    stride_a: 96,
    stride_b: 104,
    stride_c: 112,
    alpha: 120,
    beta: 128,
  },
} as const;

/** The structs of the runtime under their C names. */
export const RUNTIME_STRUCTS: Readonly<Record<string, Struct>> = {
  heed_cuda_device: DEVICE,
  heed_cuda_memory_info: MEMORY_INFO,
  heed_cuda_kernel_info: KERNEL_INFO,
  heed_cuda_launch_info: LAUNCH_INFO,
  heed_cuda_gemm_info: GEMM_INFO,
};
