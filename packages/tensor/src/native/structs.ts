/** A C struct of engine-cpu's native/abi/heed_cpu.h, which every native engine takes: its size in bytes and the byte offset of each field. */
export interface Struct {
  readonly bytes: number;
  readonly fields: Readonly<Record<string, number>>;
}
// Offsets are written by hand; test/structs.test.ts of each engine compares them with what its library reports.

/** heed_tensor: a strided view, part of every block. */
export const TENSOR = {
  bytes: 144,
  fields: { data: 0, shape: 8, strides: 72, dtype: 136, rank: 140 },
} as const;
/** heed_unary. */
export const UNARY = { bytes: 296, fields: { size: 0, op: 4, x: 8, out: 152 } } as const;
/** heed_binary. */
export const BINARY = {
  bytes: 440,
  fields: { size: 0, op: 4, a: 8, b: 152, out: 296 },
} as const;
/** heed_reduce. */
export const REDUCE = { bytes: 296, fields: { size: 0, op: 4, x: 8, out: 152 } } as const;
/** heed_copy. */
export const COPY = {
  bytes: 296,
  fields: { size: 0, reserved: 4, x: 8, out: 152 },
} as const;
/** heed_matmul. */
export const MATMUL = {
  bytes: 600,
  fields: { size: 0, reserved: 4, alpha: 8, beta: 16, a: 24, b: 168, out: 312, bias: 456 },
} as const;
/** heed_softmax. */
export const SOFTMAX = {
  bytes: 296,
  fields: { size: 0, reserved: 4, x: 8, out: 152 },
} as const;
/** heed_gather. */
export const GATHER = {
  bytes: 440,
  fields: { size: 0, reserved: 4, x: 8, indices: 152, out: 296 },
} as const;
/** heed_scatter_add. */
export const SCATTER_ADD = {
  bytes: 440,
  fields: { size: 0, reserved: 4, x: 8, indices: 152, out: 296 },
} as const;
/** heed_rope. */
export const ROPE = {
  bytes: 736,
  fields: {
    size: 0,
    pairing: 4,
    rotary_dim: 8,
    inverse: 12,
    x: 16,
    out: 160,
    cos: 304,
    sin: 448,
    positions: 592,
  },
} as const;
/** heed_rms_norm. */
export const RMS_NORM = {
  bytes: 448,
  fields: { size: 0, unit_offset: 4, eps: 8, x: 16, weight: 160, out: 304 },
} as const;
/** heed_rms_norm_backward. */
export const RMS_NORM_BACKWARD = {
  bytes: 736,
  fields: { size: 0, unit_offset: 4, eps: 8, x: 16, weight: 160, d_out: 304, d_x: 448, d_weight: 592 },
} as const;
/** heed_scores, part of the blocks of attention. */
export const SCORES = {
  bytes: 792,
  fields: {
    scale: 0,
    softcap: 8,
    window_left: 16,
    window_right: 24,
    sink_tokens: 32,
    query_offset: 40,
    offset_mode: 48,
    dropout_threshold: 52,
    dropout_factor: 56,
    dropout_seed: 64,
    mask: 72,
    alibi_slopes: 216,
    sinks: 360,
    kv_lengths: 504,
    query_offsets: 648,
  },
} as const;
/** heed_attention. */
export const ATTENTION = {
  bytes: 1520,
  fields: { size: 0, reserved: 4, scores: 8, q: 800, k: 944, v: 1088, out: 1232, lse: 1376 },
} as const;
/** heed_attention_backward. */
export const ATTENTION_BACKWARD = {
  bytes: 2384,
  fields: {
    size: 0,
    reserved: 4,
    scores: 8,
    q: 800,
    k: 944,
    v: 1088,
    out: 1232,
    lse: 1376,
    d_out: 1520,
    dq: 1664,
    dk: 1808,
    dv: 1952,
    d_mask: 2096,
    d_sinks: 2240,
  },
} as const;
/** heed_paged_attention. */
export const PAGED_ATTENTION = {
  bytes: 2960,
  fields: {
    size: 0,
    format: 4,
    scores: 8,
    q: 800,
    out: 944,
    lse: 1088,
    k_pages: 1232,
    v_pages: 1376,
    query_indptr: 1520,
    indptr: 1664,
    indices: 1808,
    lengths: 1952,
    k_scales: 2096,
    v_scales: 2240,
    k_zeros: 2384,
    v_zeros: 2528,
    k_residual: 2672,
    v_residual: 2816,
  },
} as const;
/** heed_kv_append. */
export const KV_APPEND = {
  bytes: 1024,
  fields: {
    size: 0,
    format: 4,
    k: 8,
    v: 152,
    k_pages: 296,
    v_pages: 440,
    slots: 584,
    k_scales: 728,
    v_scales: 872,
    first_slot: 1016,
  },
} as const;
/** heed_seal_pages. */
export const SEAL_PAGES = {
  bytes: 1448,
  fields: {
    size: 0,
    reserved: 4,
    k_pages: 8,
    v_pages: 152,
    k_scales: 296,
    v_scales: 440,
    k_zeros: 584,
    v_zeros: 728,
    k_residual: 872,
    v_residual: 1016,
    from: 1160,
    to: 1304,
  },
} as const;
/** heed_norm_rope_append. */
export const NORM_ROPE_APPEND = {
  bytes: 1752,
  fields: {
    size: 0,
    unit_offset: 4,
    eps: 8,
    pairing: 16,
    rotary_dim: 20,
    q: 24,
    k: 168,
    v: 312,
    out: 456,
    q_weight: 600,
    k_weight: 744,
    cos: 888,
    sin: 1032,
    positions: 1176,
    k_pages: 1320,
    v_pages: 1464,
    slots: 1608,
  },
} as const;

/** Every struct under its C name. */
export const STRUCTS: Readonly<Record<string, Struct>> = {
  heed_tensor: TENSOR,
  heed_unary: UNARY,
  heed_binary: BINARY,
  heed_reduce: REDUCE,
  heed_copy: COPY,
  heed_matmul: MATMUL,
  heed_softmax: SOFTMAX,
  heed_gather: GATHER,
  heed_scatter_add: SCATTER_ADD,
  heed_rope: ROPE,
  heed_rms_norm: RMS_NORM,
  heed_rms_norm_backward: RMS_NORM_BACKWARD,
  heed_scores: SCORES,
  heed_attention: ATTENTION,
  heed_attention_backward: ATTENTION_BACKWARD,
  heed_paged_attention: PAGED_ATTENTION,
  heed_kv_append: KV_APPEND,
  heed_norm_rope_append: NORM_ROPE_APPEND,
  heed_seal_pages: SEAL_PAGES,
};
/** Bytes that hold any block. */
export const LARGEST_BLOCK: number = Math.max(...Object.values(STRUCTS).map((s) => s.bytes));
