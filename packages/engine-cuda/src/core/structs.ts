import type { Struct } from "@heed/tensor/native";

// Structs of native/abi/heed_cuda_args.h; test/core/structs.test.ts compares them with what the library reports. Each holds the block
// of its operation first.

/** heed_cuda_walk: units of elements, part of the blocks of elementwise kernels. */
export const WALK = { bytes: 24, fields: { units: 0, per_row: 8, width: 16, reserved: 20 } } as const;
/** heed_cuda_unary. */
export const UNARY_ARGS = { bytes: 320, fields: { problem: 0, walk: 296 } } as const;
/** heed_cuda_binary. */
export const BINARY_ARGS = { bytes: 464, fields: { problem: 0, walk: 440 } } as const;
/** heed_cuda_copy_units. */
export const COPY_ARGS = { bytes: 320, fields: { problem: 0, walk: 296 } } as const;
/** heed_cuda_transpose. */
export const TRANSPOSE_ARGS = {
  bytes: 320,
  fields: { problem: 0, tiles: 296, down: 304, across: 312 },
} as const;
/** heed_cuda_gather. */
export const GATHER_ARGS = { bytes: 464, fields: { problem: 0, walk: 440 } } as const;
/** heed_cuda_scatter_add. */
export const SCATTER_ADD_ARGS = { bytes: 464, fields: { problem: 0, row: 440 } } as const;
/** heed_cuda_reduce. */
export const REDUCE_ARGS = {
  bytes: 352,
  fields: {
    problem: 0,
    along: 296,
    results: 320,
    piece: 328,
    kept: 336,
    across: 340,
    dense: 344,
    reserved: 348,
  },
} as const;
/** heed_cuda_softmax. */
export const SOFTMAX_ARGS = {
  bytes: 312,
  fields: { problem: 0, rows: 296, lanes: 304, reserved: 308 },
} as const;
/** heed_cuda_matmul. */
export const MATMUL_ARGS = { bytes: 608, fields: { problem: 0, matrices: 600 } } as const;

/** The structs of the core kernels under their C names. */
export const CORE_STRUCTS: Readonly<Record<string, Struct>> = {
  heed_cuda_walk: WALK,
  heed_cuda_unary: UNARY_ARGS,
  heed_cuda_binary: BINARY_ARGS,
  heed_cuda_copy_units: COPY_ARGS,
  heed_cuda_transpose: TRANSPOSE_ARGS,
  heed_cuda_gather: GATHER_ARGS,
  heed_cuda_scatter_add: SCATTER_ADD_ARGS,
  heed_cuda_reduce: REDUCE_ARGS,
  heed_cuda_softmax: SOFTMAX_ARGS,
  heed_cuda_matmul: MATMUL_ARGS,
};
