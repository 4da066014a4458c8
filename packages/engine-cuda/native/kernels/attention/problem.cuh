// What the attention kernels know of a problem: which query rows a sequence has, which keys they see, where everything lies.
// Letters: B batch, S query length, Sk key length, Hq / Hkv query and key heads, G = Hq / Hkv, D / Dv head sizes.
#pragma once
#include "../../abi/heed_cuda_args.h"
#include "../../device/device.h"

namespace heed {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// The length of a sequence whose page table does not fit: no key is visible, and its rows become NaN.
constexpr int kUnknown = -1;

// One sequence of a batch, whole or over pages, as seen by the query heads of one key head. A "row" is a query of one of these G heads:
// row r is token r / G, head r % G of the group, so that the heads which share keys share their tiles.
struct Sequence {
  const unsigned char *k, *v;   // of token 0; of page 0 where there are pages
  int32_t k_token, v_token;     // bytes from one token to the next
  int64_t k_page, v_page;       // from one page to the next
  const int32_t* pages;         // of this sequence; null: keys and values lie behind one another
  int page_size;
  int tokens, length, group;    // queries; keys; G
  int64_t offset;               // position of token 0
  int batch, first_head;        // for masks, slopes, sinks and dropout
  int first_token;              // among the rows of q and out
  DEVICE int rows() const { return tokens * group; }
};

DEVICE int64_t element_bytes(const heed_tensor& t) {
  return t.dtype == HEED_FLOAT64 ? 8 : t.dtype == HEED_FLOAT32 ? 4 : t.dtype == HEED_UINT8 ? 1 : 2;
}
DEVICE int at_i32(const heed_tensor& t, int64_t i) { return static_cast<const int32_t*>(t.data)[i * t.strides[0]]; }
DEVICE unsigned char* bytes_of(const heed_tensor& t, int64_t element) {
  return static_cast<unsigned char*>(t.data) + element * element_bytes(t);
}

DEVICE int64_t first_position(const heed_scores& s, int batch, int tokens, int length) {
  if (s.offset_mode == HEED_OFFSET_END) return static_cast<int64_t>(length) - tokens;
  return s.offset_mode == HEED_OFFSET_CONSTANT ? s.query_offset : at_i32(s.query_offsets, batch);
}

// Keys of a sequence of a batch: a length in memory that no host has looked at stays within those that are there.
DEVICE int dense_length(const heed_scores& rules, int batch, int keys) {
  if (!rules.kv_lengths.data) return keys;
  const int length = at_i32(rules.kv_lengths, batch);
  return length < 0 ? 0 : length > keys ? keys : length;
}
// Of a batch of equal lengths: k, v [B, Sk, Hkv, D].
DEVICE Sequence dense_sequence(const heed_cuda_attention& p, int batch, int kv_head) {
  Sequence s;
  s.group = static_cast<int>(p.q.shape[2]) / static_cast<int>(p.k.shape[2]);
  s.batch = batch;
  s.first_head = kv_head * s.group;
  s.first_token = 0;
  s.k = bytes_of(p.k, batch * p.k.strides[0] + kv_head * p.k.strides[2]);
  s.v = bytes_of(p.v, batch * p.v.strides[0] + kv_head * p.v.strides[2]);
  s.k_token = static_cast<int32_t>(p.k.strides[1] * element_bytes(p.k));
  s.v_token = static_cast<int32_t>(p.v.strides[1] * element_bytes(p.v));
  s.k_page = s.v_page = 0;
  s.pages = nullptr;
  s.page_size = 1;
  s.tokens = static_cast<int>(p.q.shape[1]);
  s.length = dense_length(p.scores, batch, static_cast<int>(p.k.shape[1]));
  s.offset = first_position(p.scores, batch, s.tokens, s.length);
  return s;
}
// Whether a sequence's part of the page table stays within its rows and the lengths. No host has looked at it, and a page that is not there
// would cost the context.
DEVICE bool table_fits(const heed_cuda_attention& p, const Sequence& s, int first, int listed) {
  if (first < 0 || listed < 0 || first + static_cast<int64_t>(listed) > p.indices.shape[0]) return false;
  return s.tokens <= s.length && s.length <= static_cast<int64_t>(listed) * s.page_size;
}
DEVICE int pages_of(const Sequence& s) { return (s.length + s.page_size - 1) / s.page_size; }
// Whether entries from .. to - 1 of a sequence's table are pages that there are. Each warp looks for itself.
DEVICE bool pages_exist(const heed_cuda_attention& p, const Sequence& s, int from, int to) {
  const int64_t total = p.k.shape[0] + (p.format == HEED_PAGES_INT4 ? p.k_residual.shape[0] : 0);
  bool known = true;
  ROLLED for (int i = from + lane(); i < to; i += 32) known = known && s.pages[i] >= 0 && s.pages[i] < total;
  return ballot(!known) == 0;
}
// Of a ragged batch over pages: k, v [P, Hkv, page_size, D]; its pages are looked at by whoever reads them.
DEVICE Sequence unchecked_sequence(const heed_cuda_attention& p, int n, int kv_head) {
  Sequence s;
  s.group = static_cast<int>(p.q.shape[1]) / static_cast<int>(p.k.shape[1]);
  s.batch = n;
  s.first_head = kv_head * s.group;
  s.first_token = at_i32(p.query_indptr, n);
  s.k = bytes_of(p.k, kv_head * p.k.strides[1]);
  s.v = bytes_of(p.v, kv_head * p.v.strides[1]);
  s.k_token = static_cast<int32_t>(p.k.strides[2] * element_bytes(p.k));
  s.v_token = static_cast<int32_t>(p.v.strides[2] * element_bytes(p.v));
  s.k_page = p.k.strides[0] * element_bytes(p.k);
  s.v_page = p.v.strides[0] * element_bytes(p.v);
  s.pages = static_cast<const int32_t*>(p.indices.data) + at_i32(p.indptr, n);
  s.page_size = static_cast<int>(p.k.shape[2]);
  s.tokens = at_i32(p.query_indptr, n + 1) - s.first_token;
  s.length = at_i32(p.lengths, n);
  s.offset = static_cast<int64_t>(s.length) - s.tokens;
  const int first = at_i32(p.indptr, n);
  if (!table_fits(p, s, first, at_i32(p.indptr, n + 1) - first)) s.length = kUnknown;
  if (s.first_token < 0 || s.tokens < 0 || static_cast<int64_t>(s.first_token) + s.tokens > p.q.shape[0]) s.tokens = 0;
  return s;
}
DEVICE Sequence paged_sequence(const heed_cuda_attention& p, int n, int kv_head) {
  Sequence s = unchecked_sequence(p, n, kv_head);
  if (!pages_exist(p, s, 0, pages_of(s))) s.length = kUnknown;
  return s;
}
DEVICE Sequence sequence_of(const heed_cuda_attention& p, int n, int kv_head) {
  return p.indices.data ? paged_sequence(p, n, kv_head) : dense_sequence(p, n, kv_head);
}

// Where row r's numbers begin in q or out.
DEVICE unsigned char* row_at(const heed_cuda_attention& p, const heed_tensor& t, const Sequence& s, int row) {
  const int64_t token = s.first_token + row / s.group, head = s.first_head + row % s.group;
  return p.indices.data ? bytes_of(t, token * t.strides[0] + head * t.strides[1])
                        : bytes_of(t, s.batch * t.strides[0] + token * t.strides[1] + head * t.strides[2]);
}
// Row r's element of lse, [T, Hq] or [B, Hq, S].
template <class A>
DEVICE A* lse_at(const heed_cuda_attention& p, const Sequence& s, int row) {
  const int64_t token = s.first_token + row / s.group, head = s.first_head + row % s.group;
  A* lse = static_cast<A*>(p.lse.data);
  return p.indices.data ? lse + token * p.lse.strides[0] + head * p.lse.strides[1]
                        : lse + s.batch * p.lse.strides[0] + head * p.lse.strides[1] + token * p.lse.strides[2];
}

// A tile of query rows of one sequence; sequence -1: there is none of that number.
struct Work { int sequence, tile; };

// Tiles of `rows` rows, sequence by sequence. Of equal lengths the last tile of a sequence comes first: causality gives it the most keys.
DEVICE Work find_work(const heed_cuda_attention& p, int number, int rows) {
  if (!p.indices.data) return {number / p.tiles, p.tiles - 1 - number % p.tiles};
  const int sequences = static_cast<int>(p.lengths.shape[0]);
  const int group = static_cast<int>(p.q.shape[1]) / static_cast<int>(p.k.shape[1]);
  for (int first = 0, before = 0; first < sequences; first += 32) {
    const int n = first + lane();
    const int own = n < sequences ? ((at_i32(p.query_indptr, n + 1) - at_i32(p.query_indptr, n)) * group + rows - 1) / rows : 0;
    if (ballot(n < sequences && own != 1) == 0) {  // as where each decodes one token
      if (number - before < 32 && first + number - before < sequences) return {first + number - before, 0};
      before += 32;
      continue;
    }
    int upto = own;  // tiles of the sequences from `first` to this lane's
    UNROLL for (int step = 1; step < 32; step *= 2) {
      const int left = shuffle(upto, lane() - step & 31);
      if (lane() >= step) upto += left;
    }
    const uint32_t ends_behind = ballot(number < before + upto);
    if (ends_behind) {
      int at = 0;
      while (!(ends_behind >> at & 1)) at++;
      return {first + at, number - before - (shuffle(upto, at) - shuffle(own, at))};
    }
    before += shuffle(upto, 31);
  }
  return {-1, 0};
}
// Where token j lies among keys or values, whose token 0 (of page 0) begins at `start`; its key; its value.
DEVICE const unsigned char* token_at(const Sequence& s, const unsigned char* start, int32_t token_bytes, int64_t page_bytes, int j) {
  if (!s.pages) return start + static_cast<int64_t>(j) * token_bytes;
  return start + s.pages[j / s.page_size] * page_bytes + j % s.page_size * token_bytes;
}
DEVICE const unsigned char* key_at(const Sequence& s, int j) { return token_at(s, s.k, s.k_token, s.k_page, j); }
DEVICE const unsigned char* value_at(const Sequence& s, int j) { return token_at(s, s.v, s.v_token, s.v_page, j); }

// Keys begin .. end - 1.
struct Range { int begin, end; };

DEVICE int clamp_key(int64_t j, int length) {
  return static_cast<int>(j < 0 ? 0 : j > length ? length : j);
}
// The keys that a token sees by causality, window and length.
DEVICE Range visible_keys(const heed_scores& rules, const Sequence& s, int token) {
  const int64_t position = s.offset + token;
  return {rules.window_left < 0 ? 0 : clamp_key(position - rules.window_left, s.length),
          rules.window_right < 0 ? s.length : clamp_key(position + rules.window_right + 1, s.length)};
}
// The same for the rows from `first` on of a block that has `rows`, fewer than 2^16, in a few operations of 32 bits: the ends of the
// first row's range stand as far outside of 0 .. length as the block's tokens can bring them back.
struct RowRanges {
  int first, length, begin, end;      // begin, end: of the first row's token
  uint32_t skipped, group, inverse;   // rows of that token before the block; 2^32 / group, rounded up
  DEVICE RowRanges(const heed_scores& rules, const Sequence& s, int first, int rows)
      : first(first), length(s.length < 0 ? 0 : s.length), skipped(first % s.group), group(s.group), inverse(UINT32_MAX / s.group + 1) {
    const int64_t position = s.offset + first / s.group;
    begin = rules.window_left < 0 ? -rows : near(position - rules.window_left, rows);
    end = rules.window_right < 0 ? length : near(position + rules.window_right + 1, rows);
  }
  DEVICE int near(int64_t key, int rows) const { return static_cast<int>(key < -rows ? -rows : key > length ? length : key); }
  DEVICE int cut(int key, int token) const {
    const int moved = key + (token < length - key ? token : length - key);
    return moved < 0 ? 0 : moved;
  }
  DEVICE Range at(int row) const {
    const uint32_t within = skipped + static_cast<uint32_t>(row - first);
    const int token = static_cast<int>(group == 1 ? within : static_cast<uint64_t>(within) * inverse >> 32);
    return {cut(begin, token), cut(end, token)};
  }
};
// The sink tokens are keys below this one. A token sees those before its range's end whatever the range's begin.
DEVICE int sink_end(const heed_scores& rules, const Sequence& s) { return clamp_key(rules.sink_tokens, s.length); }
DEVICE bool is_seen(int key, Range window, int sinks) { return key < window.end && (key >= window.begin || key < sinks); }
// Where a walk over tiles that has come to key `first` goes on: there, or at `window`, the first tile of the window, if nobody sees the
// tiles before that.
DEVICE int skip_hidden(int first, int sinks, int window) { return first >= sinks && first < window ? window : first; }

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, doi:10.1145/2063384.2063405): key j of a query is kept when word j % 4 of counter
// (j / 4, query, head, batch) is at least the threshold.
struct DropoutWords { uint32_t at[4]; };  // of keys 4 n .. 4 n + 3
OUTLINED DropoutWords dropout_words(uint64_t seed, uint32_t n, uint32_t query, uint32_t head, uint32_t batch) {
  uint32_t x0 = n, x1 = query, x2 = head, x3 = batch;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  ROLLED for (int round = 0; round < 10; round++) {
    const uint64_t a = static_cast<uint64_t>(0xd2511f53u) * x0, c = static_cast<uint64_t>(0xcd9e8d57u) * x2;
    x0 = static_cast<uint32_t>(c >> 32) ^ x1 ^ k0;
    x1 = static_cast<uint32_t>(c);
    x2 = static_cast<uint32_t>(a >> 32) ^ x3 ^ k1;
    x3 = static_cast<uint32_t>(a);
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return {{x0, x1, x2, x3}};
}
DEVICE uint32_t dropout_word(uint64_t seed, uint32_t key, uint32_t query, uint32_t head, uint32_t batch) {
  const DropoutWords words = dropout_words(seed, key / 4, query, head, batch);
  return key % 4 == 0 ? words.at[0] : key % 4 == 1 ? words.at[1] : key % 4 == 2 ? words.at[2] : words.at[3];
}

DEVICE float float_at(const heed_tensor& t, int64_t i) {
  if (t.dtype == HEED_FLOAT32) return static_cast<const float*>(t.data)[i];
  if (t.dtype == HEED_FLOAT16) return to_float(static_cast<const f16*>(t.data)[i]);
  return to_float(static_cast<const bf16*>(t.data)[i]);
}
// The element of the mask for a query and key 0, and from one key to the next.
DEVICE int64_t mask_start(const heed_tensor& mask, int batch, int head, int token) {
  return batch * mask.strides[0] + head * mask.strides[1] + token * mask.strides[2];
}
// What the mask adds to a score: -infinity hides the key, whatever its score.
DEVICE float mask_bias(const heed_tensor& mask, int64_t at) {
  if (mask.dtype == HEED_BOOL) return static_cast<const uint8_t*>(mask.data)[at] ? 0.0f : -INFINITY;
  return float_at(mask, at);
}

}  // namespace heed
