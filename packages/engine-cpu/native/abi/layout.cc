// The memory layout of every parameter block, in words, so that a test can hold the TypeScript binding to it.
#include <stddef.h>
#include <string.h>

#include "heed_cpu.h"

namespace {
struct Field {
  const char* name;
  size_t offset;
};
struct Block {
  const char* name;
  size_t size;
  Field fields[24];
};
#define F(field) {#field, offsetof(Here, field)}
#define BLOCK(name, ...)                              \
  [] {                                                \
    using Here = name;                                \
    return Block{#name, sizeof(Here), {__VA_ARGS__}}; \
  }()
const Block kBlocks[] = {
    BLOCK(heed_tensor, F(data), F(shape), F(strides), F(dtype), F(rank)),
    BLOCK(heed_unary, F(size), F(op), F(x), F(out)),
    BLOCK(heed_binary, F(size), F(op), F(a), F(b), F(out)),
    BLOCK(heed_reduce, F(size), F(op), F(x), F(out)),
    BLOCK(heed_copy, F(size), F(reserved), F(x), F(out)),
    BLOCK(heed_matmul, F(size), F(reserved), F(alpha), F(beta), F(a), F(b), F(out), F(bias)),
    BLOCK(heed_softmax, F(size), F(reserved), F(x), F(out)),
    BLOCK(heed_gather, F(size), F(reserved), F(x), F(indices), F(out)),
    BLOCK(heed_scatter_add, F(size), F(reserved), F(x), F(indices), F(out)),
    BLOCK(heed_rope, F(size), F(pairing), F(rotary_dim), F(inverse), F(x), F(out), F(cos), F(sin), F(positions)),
    BLOCK(heed_rms_norm, F(size), F(unit_offset), F(eps), F(x), F(weight), F(out)),
    BLOCK(heed_rms_norm_backward, F(size), F(unit_offset), F(eps), F(x), F(weight), F(d_out), F(d_x), F(d_weight)),
    BLOCK(heed_scores, F(scale), F(softcap), F(window_left), F(window_right), F(sink_tokens), F(query_offset),
          F(offset_mode), F(dropout_threshold), F(dropout_factor), F(dropout_seed), F(mask), F(alibi_slopes), F(sinks), F(kv_lengths), F(query_offsets)),
    BLOCK(heed_attention, F(size), F(reserved), F(scores), F(q), F(k), F(v), F(out), F(lse)),
    BLOCK(heed_attention_backward, F(size), F(reserved), F(scores), F(q), F(k), F(v), F(out), F(lse), F(d_out), F(dq), F(dk),
          F(dv), F(d_mask), F(d_sinks)),
    BLOCK(heed_norm_rope_append, F(size), F(unit_offset), F(eps), F(pairing), F(rotary_dim), F(q), F(k), F(v), F(out), F(q_weight),
          F(k_weight), F(cos), F(sin), F(positions), F(k_pages), F(v_pages), F(slots)),
    BLOCK(heed_paged_attention, F(size), F(format), F(scores), F(q), F(out), F(lse), F(k_pages), F(v_pages), F(query_indptr),
          F(indptr), F(indices), F(lengths), F(k_scales), F(v_scales), F(k_zeros), F(v_zeros), F(k_residual), F(v_residual)),
    BLOCK(heed_kv_append, F(size), F(format), F(k), F(v), F(k_pages), F(v_pages), F(slots), F(k_scales), F(v_scales), F(first_slot)),
    BLOCK(heed_seal_pages, F(size), F(reserved), F(k_pages), F(v_pages), F(k_scales), F(v_scales), F(k_zeros), F(v_zeros),
          F(k_residual), F(v_residual), F(from), F(to)),
};

char* Append(char* at, const char* text) {
  const size_t n = strlen(text);
  memcpy(at, text, n + 1);
  return at + n;
}
char* Append(char* at, size_t number) {
  char digits[24];
  char* first = digits + sizeof digits - 1;
  *first = 0;
  do *--first = static_cast<char>('0' + number % 10);
  while (number /= 10);
  return Append(at, first);
}
thread_local char text[1024];
}  // namespace

extern "C" const char* heed_layout(const char* name) {
  if (name == nullptr) return nullptr;
  for (const Block& block : kBlocks) {
    if (strcmp(name, block.name) != 0) continue;
    char* at = Append(text, block.size);
    for (const Field& field : block.fields) {
      if (field.name == nullptr) break;
      at = Append(Append(Append(Append(at, ";"), field.name), "="), field.offset);
    }
    return text;
  }
  return nullptr;
}
