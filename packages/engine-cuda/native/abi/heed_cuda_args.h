// Parameter blocks of kernels that need more than the block of the operation, which each holds first. Views in them have been
// reduced to as few axes as possible (src/core/axes.ts): axes of length 1 are gone, neighbours that lie behind one another in every
// operand are one axis; each has at least one axis.
#pragma once
#include "../../../engine-cpu/native/abi/heed_cpu.h"

// How an elementwise kernel walks: in units of `width` neighbours along the last axis, `per_row` of them to a row.
typedef struct { int64_t units, per_row; int32_t width, reserved; } heed_cuda_walk;

typedef struct { heed_unary problem; heed_cuda_walk walk; } heed_cuda_unary;
typedef struct { heed_binary problem; heed_cuda_walk walk; } heed_cuda_binary;
typedef struct { heed_copy problem; heed_cuda_walk walk; } heed_cuda_copy_units;
// The last two axes are cut into tiles of 32 x 32, `down` by `across`; x is dense along the first of them, out along the second.
typedef struct { heed_copy problem; int64_t tiles, down, across; } heed_cuda_transpose;
// x, out: axis 0 counts the indices (x's stride there is that of its rows).
typedef struct { heed_gather problem; heed_cuda_walk walk; } heed_cuda_gather;
// x, out: axis 0 counts their rows, which are walked as `row` says.
typedef struct { heed_scatter_add problem; heed_cuda_walk row; } heed_cuda_scatter_add;

// x [kept..., reduced...], `kept` axes of the first kind; out [kept..., pieces]. A block has `across` results side by side, each with
// block_threads / across threads. dense 1: neighbouring threads take neighbouring elements of one result, else of neighbouring results.
// `along` walks the reduced axes; a piece is `piece` of its units.
typedef struct {
  heed_reduce problem;
  heed_cuda_walk along;
  int64_t results, piece;
  int32_t kept, across, dense, reserved;
} heed_cuda_reduce;

// x, out [rows..., n]; each row has `lanes` threads: a power of two up to 32, or the whole block.
typedef struct { heed_softmax problem; int64_t rows; int32_t lanes, reserved; } heed_cuda_softmax;

// a [batch..., M, K], b [batch..., K, N], out [batch..., M, N]; `matrices` is the product of the batch axes.
typedef struct { heed_matmul problem; int64_t matrices; } heed_cuda_matmul;

// Attention. Without indices, of a batch: q, out [B, S, Hq, D], k, v [B, Sk, Hkv, D], lse [B, Hq, S], `tiles` tiles of query rows to a
// sequence. With indices, over pages: q, out [T, Hq, D], k, v [P, Hkv, page_size, D], lse [T, Hq], the rest as in heed_paged_attention.
// heed_cuda_attention_<bf16 | f16>_*: rows lie 16-byte aligned, their numbers behind one another; D and Dv are multiples of 8.
typedef struct {
  uint32_t size;
  int32_t tiles;
  heed_scores scores;
  heed_tensor q, k, v, out, lse;
  heed_tensor query_indptr, indptr, indices, lengths;
  heed_tensor k_scales, v_scales, k_zeros, v_zeros, k_residual, v_residual;
  int32_t format;         // heed_page_format
  int32_t keys;           // of a tile, where the kernel leaves it open
  int32_t part, reserved;     // fewest keys of a part of a sequence
  void *partial, *counters;   // where parts meet: float32 [slots, Hkv, G, Dv + 4]; int32 [N, Hkv], zero
} heed_cuda_attention;

// Kernels over rows. `lanes` threads have a row: a power of two up to 32, or the whole block of 256. Theirs depends on the row's length and
// dtype alone.
// x, out [rows..., n].
typedef struct { heed_rms_norm problem; int64_t rows; int32_t lanes, reserved; } heed_cuda_rms_norm;
// x, d_out, d_x [rows..., n]; sums of d_weight, of the accumulator's dtype, go to partial [grid * threads / lanes, n]; or NULL.
typedef struct { heed_rms_norm_backward problem; int64_t rows; void* partial; int32_t lanes, reserved; } heed_cuda_rms_norm_backward;
typedef struct { heed_rope problem; int64_t units; } heed_cuda_rope;
// `rows` heads of keys and values of groups of `tokens` tokens: ceil(T / tokens) * 2 * Hkv. tokens 1; or 4, where rows of both, and those of
// float pages of the same dtype, are whole vectors of 16 aligned bytes.
typedef struct { heed_kv_append problem; int64_t rows; int32_t lanes, tokens; } heed_cuda_kv_append;
// *_all 1: all heads of a token are one row. *_blocks: of a token's rows; `tasks` blocks in all.
typedef struct {
  heed_norm_rope_append problem;
  int64_t tasks;
  int32_t q_lanes, k_lanes, v_lanes, q_all, k_all, q_blocks, k_blocks, v_blocks;
} heed_cuda_norm_rope_append;
// Units of a head's page: ceil(page_size / 32) * bytes of a row of keys, page_size * ceil(Dv / 32) of values; `units` of all.
typedef struct { heed_seal_pages problem; int64_t units, key_units, value_units; } heed_cuda_seal_pages;

// Attention backward. heed_cuda_attention_backward_<bf16 | f16>_*: rows of all operands but out, and of dq, dk and dv, as in
// heed_cuda_attention.
typedef struct {
  heed_attention_backward problem;
  void* statistics;     // [B, Hkv, S * G, 4], float32, or float64 for float64: lse / ln 2, delta, lse, 0
  int32_t tiles, edge;  // tiles of a sequence; rows and keys of a tile, where the kernel leaves it open
} heed_cuda_attention_backward;
