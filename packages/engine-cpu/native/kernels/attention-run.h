// The one instantiation of attention forward that dense and paged tensors share: attention.cc defines it.
#pragma once
#include "attention-problem-inl.h"

namespace heed::HEED_ISA {
/// Fills in what depends on the storage types (heed_dtype codes) and computes every sequence; `name` is for the error text.
int RunAttention(Problem<float>& problem, int32_t query_dtype, int32_t key_dtype, const char* name);
int RunAttention(Problem<double>& problem, int32_t query_dtype, int32_t key_dtype, const char* name);
/// The same over quantised pages (heed_page_format), whose operands coded_k and coded_v name.
int RunQuantised(Problem<float>& problem, int32_t query_dtype, int32_t format, const char* name);
int RunQuantised(Problem<double>& problem, int32_t query_dtype, int32_t format, const char* name);
}  // namespace heed::HEED_ISA
