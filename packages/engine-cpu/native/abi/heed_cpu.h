// C ABI of libheed_cpu. Every call returns 0 or a negative heed_status; heed_last_error() has the words (per thread).
// A parameter block starts with its own size, so that an old binding fails in words instead of reading garbage.
// Letters: B batch, S query length, Sk key length, Hq / Hkv query and key heads, G = Hq / Hkv, D / Dv head sizes.
#pragma once
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define HEED_ABI_VERSION 3
#define HEED_MAX_RANK 8

typedef enum { HEED_OK = 0, HEED_INVALID = -1, HEED_OUT_OF_MEMORY = -2, HEED_UNSUPPORTED = -3, HEED_SYSTEM = -4 } heed_status;

typedef enum {
  HEED_FLOAT64 = 0, HEED_FLOAT32 = 1, HEED_FLOAT16 = 2, HEED_BFLOAT16 = 3,
  HEED_INT32 = 4, HEED_INT64 = 5, HEED_UINT8 = 6, HEED_BOOL = 7
} heed_dtype;

// A strided view. Strides count elements and may be 0 (broadcast) or negative. data == NULL: the operand is absent.
typedef struct {
  void* data;  // element [0, ..., 0]
  int64_t shape[HEED_MAX_RANK];
  int64_t strides[HEED_MAX_RANK];
  int32_t dtype, rank;
} heed_tensor;

typedef enum {
  HEED_NEG = 0, HEED_ABS, HEED_EXP, HEED_LOG, HEED_SQRT, HEED_RSQRT, HEED_SQUARE, HEED_RECIPROCAL, HEED_TANH,
  HEED_SIGMOID, HEED_SILU, HEED_IS_FINITE /* float -> bool */, HEED_NOT /* bool -> bool */
} heed_unary_op;
typedef struct { uint32_t size; int32_t op; heed_tensor x, out; } heed_unary;  // x and out share a shape

typedef enum {
  HEED_ADD = 0, HEED_SUB, HEED_MUL, HEED_DIV, HEED_MAX, HEED_MIN, HEED_POW,
  HEED_EQUAL, HEED_LESS, HEED_LESS_EQUAL,       // -> bool
  HEED_AND, HEED_OR,                            // bool, bool -> bool
  HEED_MASK_ZERO, HEED_MASK_NEG_INF             // a where bool b, else 0 / -inf: selection, so a NaN that is not selected is gone
} heed_binary_op;
typedef struct { uint32_t size; int32_t op; heed_tensor a, b, out; } heed_binary;  // a and b already broadcast to out's shape

typedef enum { HEED_REDUCE_SUM = 0, HEED_REDUCE_MAX, HEED_REDUCE_MIN } heed_reduce_op;
typedef struct { uint32_t size; int32_t op; heed_tensor x, out; } heed_reduce;  // out has x's rank; reduced axes have length 1

typedef struct { uint32_t size, reserved; heed_tensor x, out; } heed_copy;  // same shape; any dtype to any dtype, round to nearest even

// out[..., M, N] = alpha * a[..., M, K] @ b[..., K, N] + beta * out + bias[N]. Transposes are strides. beta == 0 never reads out.
// One dtype throughout, except that b may be float16 or bfloat16 beside float32 a, out and bias.
typedef struct { uint32_t size, reserved; double alpha, beta; heed_tensor a, b, out, bias; } heed_matmul;

typedef struct { uint32_t size, reserved; heed_tensor x, out; } heed_softmax;  // over the last axis; a row of -inf gives zeros

typedef struct { uint32_t size, reserved; heed_tensor x, indices, out; } heed_gather;  // out[i, ...] = x[indices[i], ...]; indices rank 1
typedef struct { uint32_t size, reserved; heed_tensor x, indices, out; } heed_scatter_add;  // out[indices[i], ...] += x[i, ...], i ascending

typedef enum { HEED_PAIRS_HALF = 0, HEED_PAIRS_INTERLEAVED = 1 } heed_pairing;
// Rotates the first rotary_dim components of x[b, s, h, :] by the angle whose cosine and sine stand in row positions[b, s].
typedef struct {
  uint32_t size;
  int32_t pairing, rotary_dim, inverse;  // inverse 1: by the negative angle, which is the backward pass
  heed_tensor x, out;                    // [B, S, H, D]
  heed_tensor cos, sin;                  // [P, rotary_dim / 2], float32 (float64 when x is float64)
  heed_tensor positions;                 // int32 [B, S]
} heed_rope;

typedef struct {
  uint32_t size;
  int32_t unit_offset;                   // 1: multiply by (1 + weight)
  double eps;
  heed_tensor x, weight, out;            // [A, B, C, n] (leading axes may be 1); [n], float32 (float64 for float64 x), or absent; as x
} heed_rms_norm;
typedef struct {
  uint32_t size;
  int32_t unit_offset;
  double eps;
  heed_tensor x, weight, d_out, d_x, d_weight;  // d_x, d_weight are written with `=`; weight, d_weight as weight above, absent together
} heed_rms_norm_backward;

typedef enum { HEED_OFFSET_END = 0, HEED_OFFSET_CONSTANT = 1, HEED_OFFSET_TENSOR = 2 } heed_offset_mode;
// What the score of query i and key j becomes; see docs/conventions.md. Causal is window_right = 0.
typedef struct {
  double scale, softcap;                 // softcap 0: none
  int64_t window_left, window_right;     // -1: open
  int64_t sink_tokens;                   // keys below it are not hidden by window_left; 0 where that is open
  int64_t query_offset;                  // with HEED_OFFSET_CONSTANT
  int32_t offset_mode;
  uint32_t dropout_threshold;            // probability * 2^32: a weight whose random word is below it becomes 0
  double dropout_factor;                 // of the others: 1 / (1 - probability). 0: no dropout
  uint64_t dropout_seed;                 // kernels/dropout-inl.h has the generator
  heed_tensor mask;                      // bool or float, broadcast to [B, Hq, S, Sk] by zero strides; or absent
  heed_tensor alibi_slopes;              // [Hq], float32 (float64 when q is float64); or absent
  heed_tensor sinks;                     // [Hq], likewise; or absent
  heed_tensor kv_lengths;                // int32 [B]; absent: Sk
  heed_tensor query_offsets;             // int32 [B], with HEED_OFFSET_TENSOR
} heed_scores;

typedef struct {
  uint32_t size, reserved;
  heed_scores scores;
  heed_tensor q, k, v, out;              // [B, S, Hq, D], [B, Sk, Hkv, D], [B, Sk, Hkv, Dv], [B, S, Hq, Dv]: any strides
  heed_tensor lse;                       // [B, Hq, S], float32 (float64 for float64); or absent. No visible key: the sink, or -inf
} heed_attention;

typedef struct {
  uint32_t size, reserved;
  heed_scores scores;
  heed_tensor q, k, v, out, lse, d_out;  // as the forward pass left them
  heed_tensor dq, dk, dv;                // as q, k, v; written with `=`
  heed_tensor d_mask;                    // as scores.mask (zero strides: summed over), float32 or float64; or absent
  heed_tensor d_sinks;                   // [Hq]; or absent
} heed_attention_backward;

// How pages are stored; src/fused/quantised/pages.ts of the tensor package has the meaning of each.
//   HEED_PAGES_FLOAT: k_pages and v_pages are floats, scales, zeros and residual are absent.
//   HEED_PAGES_E4M3, HEED_PAGES_INT8: they are uint8 codes; scales float32 [P, Hkv, page_size]; zeros and residual absent.
//   HEED_PAGES_INT4: uint8 [P, Hkv, page_size, 16 * ceil(width / 32)]; scales and zeros float32 [P, Hkv, ceil(page_size / 32), D] of
//   keys, [P, Hkv, ceil(Dv / 32), page_size] of values; residual, floats of at most 32 bits [R, Hkv, page_size, width], is page P and on.
typedef enum { HEED_PAGES_FLOAT = 0, HEED_PAGES_E4M3 = 1, HEED_PAGES_INT8 = 2, HEED_PAGES_INT4 = 3 } heed_page_format;

// A ragged batch of N sequences: query rows query_indptr[n] .. query_indptr[n + 1] stand at the end of a sequence of
// lengths[n] tokens, whose token t lies in page indices[indptr[n] + t / page_size] at row t % page_size.
typedef struct {
  uint32_t size;
  int32_t format;                        // heed_page_format
  heed_scores scores;                    // mask, kv_lengths, query_offsets and dropout are absent; offset_mode is HEED_OFFSET_END
  heed_tensor q, out;                    // [T, Hq, D], [T, Hq, Dv]
  heed_tensor lse;                       // [T, Hq]; or absent
  heed_tensor k_pages, v_pages;          // [P, Hkv, page_size, D], [P, Hkv, page_size, Dv]; the dtype may differ from q's
  heed_tensor query_indptr, indptr, indices, lengths;  // int32 [N + 1], [N + 1], [pages in use], [N]
  heed_tensor k_scales, v_scales, k_zeros, v_zeros, k_residual, v_residual;
} heed_paged_attention;

// Row t of k and v goes to page slots[t] / page_size, row slots[t] % page_size; a slot of -1 is skipped. HEED_PAGES_INT4 is not for
// this call: its new rows go to residual pages, which are floats.
typedef struct {
  uint32_t size;
  int32_t format;                        // heed_page_format
  heed_tensor k, v;                      // [T, Hkv, D], [T, Hkv, Dv]
  heed_tensor k_pages, v_pages;          // as above; converts to the pages' dtype
  heed_tensor slots;                     // int32 [T]
  heed_tensor k_scales, v_scales;
  int64_t first_slot;                    // number of the first slot of the pages
} heed_kv_append;

// From projected rows to a step of attention: q and k are normalised where they have a weight, rotated where there are tables; q goes
// to out, k and v into pages as heed_kv_append says. Every stage rounds to the dtype of q, as one call after the other would.
typedef struct {
  uint32_t size;
  int32_t unit_offset;                   // 1: multiply by (1 + weight)
  double eps;
  int32_t pairing, rotary_dim;           // as in heed_rope
  heed_tensor q, k, v, out;              // [T, Hq, D], [T, Hkv, D], [T, Hkv, Dv], [T, Hq, D]; one dtype
  heed_tensor q_weight, k_weight;        // float32 (float64 for float64): [D] for each head by itself, [H * D] for all together; or absent
  heed_tensor cos, sin;                  // [P, rotary_dim / 2], likewise; or absent
  heed_tensor positions;                 // int32 [T]; absent with the tables
  heed_tensor k_pages, v_pages, slots;   // as in heed_kv_append
} heed_norm_rope_append;
// Encodes residual page from[i] into page to[i] of HEED_PAGES_INT4, keys and values.
typedef struct {
  uint32_t size, reserved;
  heed_tensor k_pages, v_pages, k_scales, v_scales, k_zeros, v_zeros, k_residual, v_residual;
  heed_tensor from, to;                  // int32 [n]
} heed_seal_pages;

int32_t heed_unary_run(const heed_unary* p);
int32_t heed_binary_run(const heed_binary* p);
int32_t heed_reduce_run(const heed_reduce* p);
int32_t heed_copy_run(const heed_copy* p);
int32_t heed_matmul_run(const heed_matmul* p);
int32_t heed_softmax_run(const heed_softmax* p);
int32_t heed_gather_run(const heed_gather* p);
int32_t heed_scatter_add_run(const heed_scatter_add* p);
int32_t heed_rope_run(const heed_rope* p);
int32_t heed_rms_norm_run(const heed_rms_norm* p);
int32_t heed_rms_norm_backward_run(const heed_rms_norm_backward* p);
int32_t heed_attention_run(const heed_attention* p);
int32_t heed_attention_backward_run(const heed_attention_backward* p);
int32_t heed_paged_attention_run(const heed_paged_attention* p);
int32_t heed_kv_append_run(const heed_kv_append* p);
int32_t heed_norm_rope_append_run(const heed_norm_rope_append* p);
int32_t heed_seal_pages_run(const heed_seal_pages* p);

int32_t heed_abi_version(void);
const char* heed_last_error(void);
// "size;field=offset;..." of the parameter block with that C name; NULL if there is none. Tests compare it with src/structs.ts.
const char* heed_layout(const char* name);
// Picks the kernels: "v2", "v3", "v4" (x86-64 levels) or NULL for the best this processor has. Refuses what it lacks.
int32_t heed_select_isa(const char* name);
const char* heed_isa(void);             // the level in use
const char* heed_available_isas(void);  // comma-separated, worst first
// Number of threads that work on one call, the caller included (1 to 256). 0: the physical cores this process may use.
int32_t heed_set_threads(int32_t threads);
int32_t heed_threads(void);
// 64-byte aligned memory (2 MiB and huge pages from 4 MiB on; from 1 GiB on address space alone, filled in as it is touched), not
// cleared; NULL when there is none.
void* heed_alloc(uint64_t bytes);
void heed_free(void* memory, void* context);  // the shape of a JavaScriptCore bytes deallocator; context is ignored
uint64_t heed_scratch_bytes(void);            // bytes held between calls: kernel scratch and freed blocks (128 MiB at most) for reuse
void heed_scratch_release(void);              // returns both to the system
typedef enum { HEED_PEAK_FMA_FLOAT32 = 0, HEED_PEAK_READ = 1 } heed_peak_kind;
int32_t heed_measure_peak(int32_t kind, int32_t threads, double* per_second);  // FLOP/s, or bytes/s over 256 MiB
#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
