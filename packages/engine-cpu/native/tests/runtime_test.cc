// Level selection, layouts in words, threads, memory and the peak measurement.
#include <pthread.h>
#include <stddef.h>

#include "check.h"

using namespace heed::check;
namespace {
void Levels() {
  const std::string available = heed_available_isas();
  Check(available.rfind("v2", 0) == 0, "available levels are \"%s\"", available.c_str());
  Check(heed_select_isa(nullptr) == HEED_OK, "the best level");
  Check(available.size() >= 2 && available.substr(available.size() - 2) == heed_isa(), "the best level is in use, not %s",
        heed_isa());
  Check(heed_select_isa("v9") == HEED_INVALID && strstr(heed_last_error(), "v9") != nullptr, "an unknown level: %s",
        heed_last_error());
  Check(heed_select_isa("") == HEED_INVALID, "an empty name");
  for (const char* level : {"v2", "v3", "v4"}) {
    const bool has = available.find(level) != std::string::npos;
    Check(heed_select_isa(level) == (has ? HEED_OK : HEED_UNSUPPORTED), "level %s", level);
  }
  heed_select_isa(nullptr);
}
void Layouts() {
  Check(std::string(heed_layout("heed_tensor")) == "144;data=0;shape=8;strides=72;dtype=136;rank=140", "heed_tensor: %s",
        heed_layout("heed_tensor"));
  Check(heed_layout("heed_nothing") == nullptr && heed_layout(nullptr) == nullptr, "an unknown block has no layout");
  const std::string end = ";d_sinks=" + std::to_string(offsetof(heed_attention_backward, d_sinks)),
                    layout = heed_layout("heed_attention_backward");
  Check(layout.size() > end.size() && layout.substr(layout.size() - end.size()) == end, "%s", layout.c_str());
  Check(heed_abi_version() == HEED_ABI_VERSION, "ABI version");
}
void Threads() {
  for (int bad : {-1, 257, INT32_MIN, INT32_MAX}) Check(heed_set_threads(bad) == HEED_INVALID, "%d threads", bad);
  Ok(heed_set_threads(5), "set_threads");
  Check(heed_threads() == 5, "threads() is %d", heed_threads());
  Ok(heed_set_threads(0), "set_threads");
  Check(heed_threads() >= 1, "threads() is %d", heed_threads());
}
void Memory() {
  for (uint64_t bytes : {uint64_t{0}, uint64_t{1}, uint64_t{100}, uint64_t{5} << 20}) {
    void* p = heed_alloc(bytes);
    Check(p != nullptr && reinterpret_cast<uintptr_t>(p) % (bytes < (uint64_t{4} << 20) ? 64 : uint64_t{2} << 20) == 0,
          "alloc %lu", static_cast<unsigned long>(bytes));
    if (p) memset(p, 1, bytes);
    heed_free(p, nullptr);
  }
  Check(heed_alloc(UINT64_MAX) == nullptr, "an absurd size");
  Array x(HEED_FLOAT32, {300000}), out(HEED_FLOAT32, {1});
  x.Fill(1);
  heed_reduce p = {sizeof p, HEED_REDUCE_SUM, x.View(), out.View()};
  Ok(heed_reduce_run(&p), "reduce");
  Check(heed_scratch_bytes() > 0, "a large reduction keeps scratch");
  heed_scratch_release();
  Check(heed_scratch_bytes() == 0, "%lu bytes after a release", static_cast<unsigned long>(heed_scratch_bytes()));
  Ok(heed_reduce_run(&p), "reduce after a release");
  Check(out[0] == 300000, "sum %g", out[0]);
}
/// Calls from several threads at once: one has the pool, the others work alone; all are right.
void Callers() {
  heed_set_threads(3);
  const auto work = [](void*) -> void* {
    Array x(HEED_FLOAT32, {200000}), out(HEED_FLOAT32, {1});
    x.Fill(2);
    intptr_t wrong = 0;
    for (int i = 0; i < 50; i++) {
      heed_reduce p = {sizeof p, HEED_REDUCE_SUM, x.View(), out.View()};
      wrong += heed_reduce_run(&p) != HEED_OK || out[0] != 400000;
    }
    return reinterpret_cast<void*>(wrong);
  };
  pthread_t threads[4];
  for (pthread_t& t : threads) pthread_create(&t, nullptr, work, nullptr);
  for (pthread_t& t : threads) {
    void* wrong = nullptr;
    pthread_join(t, &wrong);
    Check(wrong == nullptr, "%ld wrong sums", static_cast<long>(reinterpret_cast<intptr_t>(wrong)));
  }
  heed_set_threads(0);
}
/// A failed call leaves its words for the thread that made it.
void Errors() {
  heed_reduce p = {};
  Check(heed_reduce_run(&p) == HEED_INVALID && strstr(heed_last_error(), "[reduce]") != nullptr, "words: %s",
        heed_last_error());
  Check(heed_reduce_run(nullptr) == HEED_INVALID, "a null block");
  double rate = -1;
  Check(heed_measure_peak(7, 1, &rate) == HEED_INVALID && heed_measure_peak(0, 1, nullptr) == HEED_INVALID, "an unknown peak");
  Check(heed_measure_peak(0, -3, &rate) == HEED_INVALID, "a negative number of threads");
  Ok(heed_measure_peak(HEED_PEAK_FMA_FLOAT32, 1, &rate), "measure_peak");
  Check(rate > 1e8, "%g FLOP/s", rate);
}
}  // namespace

int main(int count, char**) {
  if (count > 1) return puts(heed_available_isas()) < 0;  // any argument: print the levels, for tools/check-native.ts
  Levels();
  Layouts();
  Threads();
  Memory();
  ForEachIsa([] { Errors(); });
  Callers();
  return Finish();
}
