// heed_measure_peak: times the peak kernels of the chosen level, all threads at once, and reports the best of several runs.
#include <time.h>

#include "kernel_table.h"
#include "parallel.h"
#include "status.h"

namespace heed {
namespace {
constexpr int64_t kReadBytes = int64_t{256} << 20;  // beyond every L3 this is meant for
constexpr int64_t kReadPiece = int64_t{1} << 20;
constexpr int64_t kFmaRounds = int64_t{1} << 20;  // about 2 ms
constexpr int kRuns = 9;
volatile double sink;  // keeps the sums alive

double Now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}
double OnceFma(int threads) {
  double done[256];
  const double start = Now();
  ParallelFor(threads, [&](int64_t i, int) { done[i] = Table().fma_flops(kFmaRounds); });
  const double seconds = Now() - start;
  double flops = 0;
  for (int i = 0; i < threads; i++) flops += done[i];
  return flops / seconds;
}
double OnceRead(const void* memory) {
  const double start = Now();
  ParallelFor(kReadBytes / kReadPiece, [&](int64_t i, int) {
    sink = Table().read_bytes(static_cast<const char*>(memory) + i * kReadPiece, kReadPiece);
  });
  return static_cast<double>(kReadBytes) / (Now() - start);
}
template <class F> double Best(const F& once) {
  double best = 0;
  for (int run = 0; run < kRuns; run++) {
    const double rate = once();
    best = rate > best ? rate : best;
  }
  return best;
}
}  // namespace
}  // namespace heed

extern "C" int32_t heed_measure_peak(int32_t kind, int32_t threads, double* per_second) {
  using namespace heed;
  if (per_second == nullptr) return Fail(HEED_INVALID, "[measurePeak] nowhere to write the result");
  if (kind != HEED_PEAK_FMA_FLOAT32 && kind != HEED_PEAK_READ) return Fail(HEED_INVALID, "[measurePeak] unknown kind %d", kind);
  const int before = Threads();
  const int32_t status = heed_set_threads(threads);
  if (status != HEED_OK) return status;
  if (kind == HEED_PEAK_FMA_FLOAT32) {
    *per_second = Best([] { return OnceFma(Threads()); });
  } else if (void* memory = heed_alloc(kReadBytes)) {
    // Written first, by the threads that will read it: an untouched page is the zero page, which lies in the cache.
    ParallelFor(kReadBytes / kReadPiece,
                [&](int64_t i, int) { __builtin_memset(static_cast<char*>(memory) + i * kReadPiece, 0, kReadPiece); });
    *per_second = Best([&] { return OnceRead(memory); });
    heed_free(memory, nullptr);
  } else {
    SetThreads(before);
    return Fail(HEED_OUT_OF_MEMORY, "[measurePeak] needs 256 MiB");
  }
  SetThreads(before);
  return HEED_OK;
}
