// What the native tests share: counted checks, arrays of any dtype and stride with poison around them, and a loop over the
// levels this machine has. A test is an executable whose main() ends in `return heed::check::Finish();`.
#pragma once
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <initializer_list>
#pragma GCC diagnostic ignored "-Wrestrict"  // GCC 12 sees an overlap in std::string::operator= (its bug 105329)
#include <string>
#include <vector>

#include "../abi/heed_cpu.h"

namespace heed::check {
inline int passed = 0, failed = 0;
inline std::string isa = "-";

/// Counts one check; prints the words when it fails (the first 40 failures).
__attribute__((format(printf, 2, 3))) inline bool Check(bool holds, const char* format, ...) {
  if (holds) {
    passed++;
    return true;
  }
  if (++failed <= 40) {
    va_list args;
    va_start(args, format);
    printf("FAILED (%s): ", isa.c_str());
    vprintf(format, args);
    printf("\n");
    va_end(args);
  }
  return false;
}
/// A call must succeed.
inline bool Ok(int32_t status, const char* what) {
  return Check(status == HEED_OK, "%s: status %d, %s", what, status, heed_last_error());
}
/// Prints the summary; the exit code of the test.
inline int Finish() {
  printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
/// f() once per level this machine has, worst first, with that level selected.
template <class F> void ForEachIsa(const F& f) {
  std::string rest = heed_available_isas();
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    isa = rest.substr(0, comma);
    rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
    if (Ok(heed_select_isa(isa.c_str()), "select_isa")) f();
  }
  isa = "-";
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers everywhere.
struct Random {
  uint64_t state;
  uint64_t Next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double Uniform(double low, double high) { return low + (high - low) * static_cast<double>(Next() >> 11) * 0x1p-53; }
  /// 0 .. n - 1
  int64_t Below(int64_t n) { return static_cast<int64_t>(Next() % static_cast<uint64_t>(n)); }
};

inline int64_t Bytes(int32_t dtype) {
  constexpr int64_t kBytes[] = {8, 4, 2, 2, 4, 8, 1, 1};
  return kBytes[dtype];
}
inline const char* Name(int32_t dtype) {
  constexpr const char* kNames[] = {"float64", "float32", "float16", "bfloat16", "int32", "int64", "uint8", "bool"};
  return kNames[dtype];
}
/// Unit roundoff of a float dtype; 0 for the others.
inline double Roundoff(int32_t dtype) {
  constexpr double kRoundoff[] = {0x1p-53, 0x1p-24, 0x1p-11, 0x1p-8, 0, 0, 0, 0};
  return kRoundoff[dtype];
}
inline double ReadElement(const void* p, int32_t dtype) {
  switch (dtype) {
    case HEED_FLOAT64: {
      double x;
      memcpy(&x, p, 8);
      return x;
    }
    case HEED_FLOAT32: {
      float x;
      memcpy(&x, p, 4);
      return x;
    }
    case HEED_FLOAT16: {
      _Float16 x;
      memcpy(&x, p, 2);
      return static_cast<double>(x);
    }
    case HEED_BFLOAT16: {
      uint16_t half;
      memcpy(&half, p, 2);
      const uint32_t bits = static_cast<uint32_t>(half) << 16;
      float x;
      memcpy(&x, &bits, 4);
      return x;
    }
    case HEED_INT32: {
      int32_t x;
      memcpy(&x, p, 4);
      return x;
    }
    case HEED_INT64: {
      int64_t x;
      memcpy(&x, p, 8);
      return static_cast<double>(x);
    }
  }
  return *static_cast<const uint8_t*>(p);
}
/// Rounds to nearest even; the value must fit an integer dtype.
inline void WriteElement(void* p, int32_t dtype, double value) {
  switch (dtype) {
    case HEED_FLOAT64: memcpy(p, &value, 8); return;
    case HEED_FLOAT32: {
      const float x = static_cast<float>(value);
      memcpy(p, &x, 4);
      return;
    }
    case HEED_FLOAT16: {
      const _Float16 x = static_cast<_Float16>(value);
      memcpy(p, &x, 2);
      return;
    }
    case HEED_BFLOAT16: {
      const float x = static_cast<float>(value);
      uint32_t u;
      memcpy(&u, &x, 4);
      const uint16_t half = static_cast<uint16_t>(x != x ? (u >> 16) | 0x40 : (u + 0x7fff + ((u >> 16) & 1)) >> 16);
      memcpy(p, &half, 2);
      return;
    }
    case HEED_INT32: {
      const int32_t x = static_cast<int32_t>(value);
      memcpy(p, &x, 4);
      return;
    }
    case HEED_INT64: {
      const int64_t x = static_cast<int64_t>(value);
      memcpy(p, &x, 8);
      return;
    }
  }
  *static_cast<uint8_t*>(p) = static_cast<uint8_t>(value);
}

using Dims = std::vector<int64_t>;
inline Dims RowMajor(const Dims& shape) {
  Dims strides(shape.size());
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0; step *= shape[i]) strides[i] = step;
  return strides;
}
enum class Layout { kContiguous, kPadded, kTransposed, kReversed };
constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kPadded, Layout::kTransposed, Layout::kReversed};

/// A strided view that owns its memory. Everything around and between its elements is poison (all bits set: NaN in every float
/// dtype); Intact() says whether it still is. Elements are numbered in row-major order of the shape.
class Array {
 public:
  Array() = default;  // the absent operand
  Array(int32_t dtype, const Dims& shape) : Array(dtype, shape, RowMajor(shape)) {}
  Array(int32_t dtype, const Dims& shape, const Dims& strides) : dtype_(dtype), shape_(shape), strides_(strides) { Allocate(); }
  Array(int32_t dtype, const Dims& shape, Layout layout) : dtype_(dtype), shape_(shape), strides_(RowMajor(shape)) {
    const size_t rank = shape.size();
    if (layout == Layout::kPadded) {  // rows and everything above have room between them, elements two apart
      int64_t step = 2;
      for (size_t i = rank; i-- > 0; step = step * shape[i] + 3) strides_[i] = step;
    } else if (layout == Layout::kTransposed) {  // the first axis is the dense one
      int64_t step = 1;
      for (size_t i = 0; i < rank; step *= shape[i++]) strides_[i] = step;
    } else if (layout == Layout::kReversed) {
      for (int64_t& s : strides_) s = -s;
    }
    Allocate();
  }
  int64_t Size() const { return size_; }
  int32_t DType() const { return dtype_; }
  const Dims& Shape() const { return shape_; }
  double operator[](int64_t i) const { return ReadElement(Address(i), dtype_); }
  void Set(int64_t i, double value) { WriteElement(const_cast<uint8_t*>(Address(i)), dtype_, value); }
  Array& Fill(double value) {
    for (int64_t i = 0; i < size_; i++) Set(i, value);
    return *this;
  }
  Array& FillUniform(Random& random, double low, double high) {
    for (int64_t i = 0; i < size_; i++) Set(i, random.Uniform(low, high));
    return *this;
  }
  /// All values, exactly as stored.
  std::vector<double> Values() const {
    std::vector<double> values(size_);
    for (int64_t i = 0; i < size_; i++) values[i] = (*this)[i];
    return values;
  }
  /// The element at a full index.
  int64_t Index(std::initializer_list<int64_t> index) const {
    int64_t i = 0;
    size_t axis = 0;
    for (int64_t x : index) i = i * shape_[axis++] + x;
    return i;
  }
  heed_tensor View() const {
    heed_tensor t = {};
    if (memory_.empty()) return t;
    t.data = const_cast<uint8_t*>(memory_.data() + origin_);
    t.dtype = dtype_;
    t.rank = static_cast<int32_t>(shape_.size());
    for (size_t i = 0; i < shape_.size(); i++) t.shape[i] = shape_[i], t.strides[i] = strides_[i];
    return t;
  }
  /// Whether no byte outside the view's elements has changed.
  bool Intact() const {
    std::vector<bool> mine(memory_.size());
    for (int64_t i = 0; i < size_; i++)
      for (int64_t b = 0; b < Bytes(dtype_); b++) mine[Address(i) - memory_.data() + b] = true;
    for (size_t i = 0; i < memory_.size(); i++)
      if (!mine[i] && memory_[i] != 0xff) return false;
    return true;
  }

 private:
  void Allocate() {
    constexpr int64_t kGuard = 67;  // elements on both sides; odd, so that the data is not aligned to a vector
    int64_t low = 0, high = 0;
    for (size_t i = 0; i < shape_.size(); i++) {
      size_ *= shape_[i];
      const int64_t reach = shape_[i] > 0 ? (shape_[i] - 1) * strides_[i] : 0;
      (reach < 0 ? low : high) += reach;
    }
    memory_.assign((high - low + 1 + 2 * kGuard) * Bytes(dtype_), 0xff);
    origin_ = (kGuard - low) * Bytes(dtype_);
  }
  const uint8_t* Address(int64_t i) const {
    int64_t offset = 0;
    for (size_t axis = shape_.size(); axis-- > 0; i /= shape_[axis]) offset += i % shape_[axis] * strides_[axis];
    return memory_.data() + origin_ + offset * Bytes(dtype_);
  }
  int32_t dtype_ = HEED_FLOAT32;
  Dims shape_, strides_;
  int64_t size_ = 1, origin_ = 0;
  std::vector<uint8_t> memory_;
};

/// The words of Philox4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405), one multiplication at a time.
inline void Philox(const uint32_t (&counter)[4], uint64_t key, uint32_t (&x)[4]) {
  memcpy(x, counter, sizeof x);
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; round++, k0 += 0x9e3779b9, k1 += 0xbb67ae85) {
    const uint64_t p = uint64_t{0xd2511f53} * x[0], r = uint64_t{0xcd9e8d57} * x[2];
    x[0] = static_cast<uint32_t>(r >> 32) ^ x[1] ^ k0;
    x[1] = static_cast<uint32_t>(r);
    x[2] = static_cast<uint32_t>(p >> 32) ^ x[3] ^ k1;
    x[3] = static_cast<uint32_t>(p);
  }
}
/// What dropout multiplies a weight by: 0, or 1 / (1 - probability).
inline double KeepFactor(double probability, uint64_t seed, int64_t b, int64_t h, int64_t i, int64_t j) {
  if (probability == 0) return 1;
  uint32_t words[4];
  Philox({static_cast<uint32_t>(j / 4), static_cast<uint32_t>(i), static_cast<uint32_t>(h), static_cast<uint32_t>(b)}, seed, words);
  return words[j % 4] >= static_cast<uint32_t>(probability * 0x1p32) ? 1 / (1 - probability) : 0;
}
inline void SetDropout(heed_scores& scores, double probability, uint64_t seed) {
  if (probability == 0) return;
  scores.dropout_threshold = static_cast<uint32_t>(probability * 0x1p32);
  scores.dropout_factor = 1 / (1 - probability);
  scores.dropout_seed = seed;
}

/// Whether got is want to within `tolerance`; NaN equals NaN, an infinity equals itself only.
inline bool Close(double got, double want, double tolerance) {
  if (isnan(want) || isnan(got)) return isnan(want) && isnan(got);
  if (isinf(want) || isinf(got)) return want == got;
  return fabs(got - want) <= tolerance;
}
/// One check for the whole array: every element within relative * |want| + absolute. Reports the worst one.
inline bool Compare(const Array& got, const std::vector<double>& want, double relative, double absolute, const char* what) {
  int64_t worst = -1;
  double excess = -1;
  for (int64_t i = 0; i < got.Size(); i++) {
    const double tolerance = relative * fabs(want[i]) + absolute;
    if (Close(got[i], want[i], tolerance)) continue;
    const double error = fabs(got[i] - want[i]) - tolerance, mine = isnan(error) ? INFINITY : error;
    if (mine > excess) worst = i, excess = mine;
  }
  return Check(worst < 0, "%s %s: element %ld is %.17g, should be %.17g (relative %.2g, absolute %.2g)", what,
               Name(got.DType()), static_cast<long>(worst), worst < 0 ? 0 : got[worst], worst < 0 ? 0 : want[worst], relative,
               absolute);
}
}  // namespace heed::check
