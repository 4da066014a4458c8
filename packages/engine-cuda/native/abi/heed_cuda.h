// C ABI of libheed_cuda and libheed_cuda_emulated. Every call returns 0 (a query 1 or 0) or a negative heed_status; the words are in
// heed_cuda_last_error(), per thread. Operations are no part of it: a caller picks a kernel by name and gives it its argument block.
//
// Handles (contexts, transfers, events, graphs) are opaque numbers that are never reused: one that is closed, freed or of another kind
// is refused in words. Addresses are device addresses, which the host cannot read, in the emulation neither. All work of a context is
// ordered in its one stream, and no call waits for the device except heed_cuda_open, heed_cuda_close, heed_cuda_trim, an upload that
// outruns the staging memory, an allocation that has to make room, and, in debug mode, every launch.
// After a failed call the context is as it was, except that an error the driver cannot recover from (an illegal address, a fault in a
// kernel) loses it: then every later call but heed_cuda_close fails and says so.
#pragma once
#include <stdint.h>

#include "../../../engine-cpu/native/abi/heed_cpu.h"
#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define HEED_CUDA_ABI_VERSION 2

typedef struct heed_cuda_context heed_cuda_context;
typedef struct heed_cuda_transfer heed_cuda_transfer;
typedef struct heed_cuda_event heed_cuda_event;
typedef struct heed_cuda_graph heed_cuda_graph;

// `size` is the caller's sizeof, set before the call, in this and every block below.
typedef struct {
  uint32_t size;
  int32_t major, minor;           // compute capability
  int32_t multiprocessors;
  int32_t shared_per_block;       // bytes that a block may opt into
  int32_t driver_version;         // 13000: CUDA 13.0
  int32_t memory_pools;           // 1: the driver allocates in stream order; 0: an allocation may wait for the device
  int32_t level_2_bytes;
  uint64_t memory;                // bytes in all
  char name[128];
} heed_cuda_device;

typedef struct {
  uint32_t size, blocks;          // allocations that live
  uint64_t in_use;                // their bytes, rounded as the allocator does
  uint64_t kept;                  // bytes freed and kept for reuse
  uint64_t device_free, device_total;
} heed_cuda_memory_info;

typedef struct {
  uint32_t size;
  int32_t registers;              // of a thread; 0 in the emulation
  uint64_t handle;                // for heed_cuda_launch
  uint32_t parameter_bytes;       // size of the argument block; 0: the driver does not tell (before CUDA 12.4)
  uint32_t max_threads;
  uint32_t local_bytes;           // spilled registers and stack of a thread
  uint32_t shared_bytes;          // fixed shared memory of a block
} heed_cuda_kernel_info;

typedef struct {
  uint32_t size;
  uint32_t threads;               // of a block, in one axis
  uint64_t kernel;
  uint32_t grid[3];
  uint32_t shared;                // bytes of dynamic shared memory
  const void* args;               // copied before the call returns; NULL: the block follows this one in memory
  uint32_t args_bytes, reserved;
} heed_cuda_launch_info;

// c[b] = alpha * op(a[b]) op(b[b]) + beta * c[b] for b < batch, row-major: c is [m, n] with rows `ldc` elements apart; a is [m, k], or
// [k, m] where transpose_a; b is [k, n], or [n, k] where transpose_b. Sums in float32, float64 for float64. beta == 0 never reads c.
typedef struct {
  uint32_t size;
  int32_t dtype;                  // heed_dtype of a, b and c: a float
  int32_t transpose_a, transpose_b;
  int64_t m, n, k, batch;
  uint64_t a, b, c;
  int64_t lda, ldb, ldc;
  int64_t stride_a, stride_b, stride_c;  // elements between matrices of the batch
  double alpha, beta;
} heed_cuda_gemm_info;

int32_t heed_cuda_abi_version(void);
const char* heed_cuda_last_error(void);
// "size;field=offset;..." of the block with that C name, those of heed_cpu.h and heed_cuda_args.h included; NULL if there is none.
const char* heed_cuda_layout(const char* name);
const char* heed_cuda_build(void);  // "cuda" or "emulated"

// Loads the driver, libcuda.so.1 where path is NULL. Once it is loaded another one needs every context closed. The emulation ignores path.
int32_t heed_cuda_open_driver(const char* path);
int32_t heed_cuda_device_count(int32_t* count);
int32_t heed_cuda_device_info(int32_t device, heed_cuda_device* info);

// The device's primary context, a stream and a memory pool of our own in it.
int32_t heed_cuda_open(int32_t device, heed_cuda_context** context);
// Waits for the stream, then frees everything of the context, its handles included; a lost context is closed too.
int32_t heed_cuda_close(heed_cuda_context* context);
// on: every allocation is filled with 0xff (NaN in every float) and keeps its exact size, every launch is waited for, so that a fault
// names its kernel. A context of the emulation starts with it on.
int32_t heed_cuda_debug(heed_cuda_context* context, int32_t on);

// Memory is given and taken back in the stream's order: it may be freed while work that uses it is under way.
int32_t heed_cuda_alloc(heed_cuda_context* context, uint64_t bytes, uint64_t* address);
int32_t heed_cuda_free(heed_cuda_context* context, uint64_t address);
int32_t heed_cuda_memory(heed_cuda_context* context, heed_cuda_memory_info* info);
int32_t heed_cuda_trim(heed_cuda_context* context);  // returns what is kept for reuse to the system

// `from` may be reused when it returns.
int32_t heed_cuda_upload(heed_cuda_context* context, uint64_t to, const void* from, uint64_t bytes);
int32_t heed_cuda_download(heed_cuda_context* context, uint64_t from, uint64_t bytes, heed_cuda_transfer** transfer);
int32_t heed_cuda_transfer_done(heed_cuda_transfer* transfer);  // 1, 0
// Copies what arrived and ends the transfer. NULL drops it, at any time; otherwise it has to be done.
int32_t heed_cuda_transfer_take(heed_cuda_transfer* transfer, void* to);
int32_t heed_cuda_copy(heed_cuda_context* context, uint64_t to, uint64_t from, uint64_t bytes);
int32_t heed_cuda_fill(heed_cuda_context* context, uint64_t to, int32_t byte, uint64_t bytes);

// An event is done when everything given to the stream before it is.
int32_t heed_cuda_mark(heed_cuda_context* context, heed_cuda_event** event);
int32_t heed_cuda_event_done(heed_cuda_event* event);  // 1, 0
int32_t heed_cuda_event_free(heed_cuda_event* event);
int32_t heed_cuda_elapsed(heed_cuda_event* from, heed_cuda_event* to, float* milliseconds);  // both done

int32_t heed_cuda_kernel(heed_cuda_context* context, const char* name, heed_cuda_kernel_info* kernel);
// Names of the kernels in this library, one a line, sorted.
const char* heed_cuda_kernels(void);
int32_t heed_cuda_launch(heed_cuda_context* context, const heed_cuda_launch_info* launch);

// What is launched, copied, filled and uploaded between begin and end is recorded and not done; an upload keeps its bytes with the
// graph. Memory allocated meanwhile lives as long as the graph, for others until it is freed; memory freed meanwhile stays the graph's.
// Downloads, events and trim are refused. Where recording fails, end says so and there is no graph.
int32_t heed_cuda_graph_begin(heed_cuda_context* context);
int32_t heed_cuda_graph_end(heed_cuda_context* context, heed_cuda_graph** graph);
int32_t heed_cuda_graph_launch(heed_cuda_context* context, heed_cuda_graph* graph);
int32_t heed_cuda_graph_free(heed_cuda_graph* graph);

// cuBLAS, where there is one: HEED_CUBLAS (a path), the loader's own path, $CUDA_HOME, a Python environment's site-packages. Otherwise
// HEED_UNSUPPORTED, and the words say where it was looked for.
int32_t heed_cuda_gemm(heed_cuda_context* context, const heed_cuda_gemm_info* gemm);
const char* heed_cuda_gemm_library(void);  // path and version of the one in use; "" when none was found or none asked for yet
#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
