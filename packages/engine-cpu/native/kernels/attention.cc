// Attention forward on dense tensors: out = softmax(scores(q, k)) v, lse = log sum exp (Vaswani et al. 2017, arXiv:1706.03762).
#include "attention-run-inl.h"
#include "attention-run.h"

namespace heed::HEED_ISA {
namespace {
template <class T, class Q> int SetQueryType(Problem<T>& a) {
  if constexpr (__is_same(Acc<Q>, T)) {
    a.load_query = LoadQuery<T, Q>;
    a.store_out = StoreOut<T, Q>;
    return HEED_OK;
  }
  return HEED_UNSUPPORTED;
}
template <class T, class K> int SetKeyType(Problem<T>& a) {
  if constexpr (__is_same(Acc<K>, T)) {
    a.pack_keys = PackKeys<T, K>;
    a.pack_values = PackValues<T, K>;
    a.decode = Decode<T, K>;
    a.kv_bytes = sizeof(K);
    return HEED_OK;
  }
  return HEED_UNSUPPORTED;
}
template <class T> int Run(Problem<T>& a, int32_t query_dtype, int32_t key_dtype, const char* name) {
  const int q = DispatchFloat(query_dtype, HEED_UNSUPPORTED, [&](auto t) { return SetQueryType<T, typename decltype(t)::type>(a); });
  const int k = DispatchFloat(key_dtype, HEED_UNSUPPORTED, [&](auto t) { return SetKeyType<T, typename decltype(t)::type>(a); });
  if (q != HEED_OK || k != HEED_OK)
    return Fail(HEED_UNSUPPORTED, "[%s] queries of dtype code %d with keys of dtype code %d have no kernel: both must be float64, or neither",
                name, query_dtype, key_dtype);
  return RunAttention(a, name);
}

template <class T, class K> void SetCodes(Problem<T>& a) {
  a.unpack = UnpackScaled<T, K>;
  if constexpr (__is_same(T, float)) a.decode = Decode<T, K>;
}
template <class T, class R> HEED_NOINLINE void LoadResidual(T* to, const char* from, int64_t step, int64_t n) {
  if constexpr (__is_same(Acc<R>, T)) return LoadQuery<T, R>(to, from, step, n, 1);
  else
    for (int64_t i = 0; i < n; i++) to[i] = static_cast<T>(ToFloat(*reinterpret_cast<const R*>(from + i * step)));
}
template <class T> int SetResidual(CodedPages<T>& of) {
  return DispatchFloat(of.residual->dtype, HEED_UNSUPPORTED, [&](auto tag) {
    using R = typename decltype(tag)::type;
    of.load_residual = LoadResidual<T, R>;
    of.residual_bytes = sizeof(R);
    return HEED_OK;
  });
}
template <class T> bool UnitSteps(const CodedPages<T>& of) { return of.scales->strides[3] == 1 && of.zeros->strides[3] == 1; }
template <class T> int Quantised(Problem<T>& a, int32_t query_dtype, int32_t format, const char* name) {
  int status = DispatchFloat(query_dtype, HEED_UNSUPPORTED, [&](auto t) { return SetQueryType<T, typename decltype(t)::type>(a); });
  a.pack_keys = PackKeys<T, T>;
  a.pack_values = PackValues<T, T>;
  a.decode = Decode<T, T>;
  a.kv_bytes = 1;
  if (format == HEED_PAGES_INT8) SetCodes<T, Int8Code>(a);
  else if (format == HEED_PAGES_E4M3) SetCodes<T, E4M3Code>(a);
  else if (format != HEED_PAGES_INT4 || SetResidual(a.coded_k) != HEED_OK || SetResidual(a.coded_v) != HEED_OK) status = HEED_UNSUPPORTED;
  else {
    a.unpack = UnpackGroups<T>;
    // Groups of keys then are the halves of every block, and scales lie as vectors.
    a.by_groups = __is_same(T, float) && a.page_size % kCodeGroup == 0 && UnitSteps(a.coded_k) && UnitSteps(a.coded_v);
  }
  if (status != HEED_OK)
    return Fail(HEED_UNSUPPORTED, "[%s] queries of dtype code %d over pages of format %d have no kernel", name, query_dtype, format);
  return RunAttention(a, name);
}

template <class T> Sequence SequenceOf(const Problem<T>& a, int64_t n) {
  const int64_t length = a.rules.Length(n);
  return {n,
          a.rules.queries,
          length,
          a.rules.Offset(n, length),
          a.q + n * a.q_strides.batch,
          a.out + n * a.out_strides.batch,
          a.lse == nullptr ? nullptr : a.lse + n * a.lse_strides.batch,
          nullptr};
}
template <class T> int Dense(const heed_attention& p, int64_t query_bytes) {
  bool valid;
  Problem<T> a = {};
  a.rules = MakeScoreRules<T>(p.scores, p.q.shape[1], p.k.shape[1], &valid);
  if (!valid) return Fail(HEED_UNSUPPORTED, "[attention] the mask must be bool or float; got dtype code %d", p.scores.mask.dtype);
  a.sequences = p.q.shape[0];
  a.Hq = p.q.shape[2];
  a.Hkv = p.k.shape[2];
  if (a.sequences == 0 || a.Hq == 0 || p.q.shape[1] == 0) return HEED_OK;
  a.G = a.Hq / a.Hkv;
  a.D = p.q.shape[3];
  a.Dv = p.v.shape[3];
  a.q = static_cast<const char*>(p.q.data);
  a.k = static_cast<const char*>(p.k.data);
  a.v = static_cast<const char*>(p.v.data);
  a.out = static_cast<char*>(p.out.data);
  a.lse = static_cast<char*>(p.lse.data);
  a.q_strides = BytesOf(p.q, query_bytes);
  a.k_strides = BytesOf(p.k, query_bytes);
  a.v_strides = BytesOf(p.v, query_bytes);
  a.out_strides = BytesOf(p.out, query_bytes);
  const int64_t* lse = p.lse.strides;  // [B, Hq, S]
  a.lse_strides = {lse[0] * static_cast<int64_t>(sizeof(T)), lse[2] * static_cast<int64_t>(sizeof(T)),
                   lse[1] * static_cast<int64_t>(sizeof(T)), 0};
  a.sequence = SequenceOf<T>;
  return RunAttention(a, p.q.dtype, p.k.dtype, "attention");
}
}  // namespace

int RunAttention(Problem<float>& a, int32_t query_dtype, int32_t key_dtype, const char* name) { return Run(a, query_dtype, key_dtype, name); }
int RunAttention(Problem<double>& a, int32_t query_dtype, int32_t key_dtype, const char* name) { return Run(a, query_dtype, key_dtype, name); }

int RunQuantised(Problem<float>& a, int32_t query_dtype, int32_t format, const char* name) { return Quantised(a, query_dtype, format, name); }
int RunQuantised(Problem<double>& a, int32_t query_dtype, int32_t format, const char* name) { return Quantised(a, query_dtype, format, name); }

int attention(const heed_attention& p) {
  if (p.q.dtype == HEED_FLOAT64) return Dense<double>(p, 8);
  return Dense<float>(p, p.q.dtype == HEED_FLOAT32 ? 4 : 2);
}
}  // namespace heed::HEED_ISA
