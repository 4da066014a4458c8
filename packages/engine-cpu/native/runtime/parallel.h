// Threads of one call. Tasks are numbered; which thread runs a task never changes a result, so results do not depend on the
// number of threads as long as a kernel cuts its work by shape alone.
#pragma once
#include <stdint.h>
namespace heed {
int Threads();
void SetThreads(int threads);
/// Runs task(context, index, worker) for every index in [0, count), the caller included; returns when all are done.
/// worker < Threads(). A call from inside a task runs inline.
void RunTasks(int64_t count, void (*task)(void* context, int64_t index, int worker), void* context);

/// RunTasks for a callable f(int64_t index, int worker).
template <class F>
static inline void ParallelFor(int64_t count, const F& f) {
  if (count <= 1 || Threads() == 1) {
    for (int64_t i = 0; i < count; i++) f(i, 0);
    return;
  }
  RunTasks(count, [](void* c, int64_t i, int w) { (*static_cast<const F*>(c))(i, w); }, const_cast<F*>(&f));
}
/// f(begin, end, worker) over [0, n) in pieces of `grain` (the last may be shorter).
template <class F>
static inline void ParallelRange(int64_t n, int64_t grain, const F& f) {
  const int64_t pieces = (n + grain - 1) / grain;
  ParallelFor(pieces, [&](int64_t i, int w) { f(i * grain, (i + 1) * grain < n ? (i + 1) * grain : n, w); });
}
}  // namespace heed
