#include "parallel.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#include "../abi/heed_cpu.h"
#include "status.h"

namespace heed {
namespace {
constexpr int kMaxThreads = 256;
constexpr int kSpins = 20000;  // about 50 us of PAUSE: longer than the gap between two kernels of a decode step

struct Pool {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
  int started = 0;        // helper threads that exist; never shrinks, idle ones sleep
  uint32_t generation = 0;
  int sleepers = 0;
  int active = 0;         // helpers that take part in this generation
  int pending = 0;        // helpers that have not finished this generation
  int64_t count = 0;
  int64_t next = 0;
  void (*task)(void*, int64_t, int) = nullptr;
  void* context = nullptr;
};
// Never destroyed: destroying a condition variable with sleepers hangs at exit.
Pool pool;
pthread_mutex_t caller = PTHREAD_MUTEX_INITIALIZER;  // one call at a time owns the pool; another caller works alone
int threads = 0;
thread_local bool inside = false;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}
constexpr int kPatience = 2000;  // spins before the core is offered to others: about 5 us
/// Spins until done(); where processes share the cores, what it waits for may not be running.
template <class F> inline void Wait(const F& done) {
  for (int spins = 0; !done(); spins++) {
    if (spins < kPatience) Pause();
    else sched_yield();
  }
}
void Drain(int worker) {
  inside = true;
  for (int64_t i; (i = __atomic_fetch_add(&pool.next, 1, __ATOMIC_RELAXED)) < pool.count;) pool.task(pool.context, i, worker);
  inside = false;
}
void* Helper(void* argument) {
  const int id = static_cast<int>(reinterpret_cast<intptr_t>(argument) & 0xffff);
  uint32_t seen = static_cast<uint32_t>(reinterpret_cast<intptr_t>(argument) >> 16);
  for (;;) {
    int spins = 0;
    while (__atomic_load_n(&pool.generation, __ATOMIC_ACQUIRE) == seen) {
      if (++spins < kSpins) {
        Pause();
        continue;
      }
      pthread_mutex_lock(&pool.mutex);
      pool.sleepers++;
      while (__atomic_load_n(&pool.generation, __ATOMIC_ACQUIRE) == seen) pthread_cond_wait(&pool.wake, &pool.mutex);
      pool.sleepers--;
      pthread_mutex_unlock(&pool.mutex);
    }
    seen++;
    if (id <= pool.active) Drain(id);
    __atomic_fetch_sub(&pool.pending, 1, __ATOMIC_RELEASE);
  }
  return nullptr;
}
/// Physical cores this process may run on: hyper-threads of one core share its FMA units.
int PhysicalCores() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
  int cores = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    int first = cpu;
    if (FILE* file = fopen(path, "r")) {
      if (fscanf(file, "%d", &first) != 1) first = cpu;
      fclose(file);
    }
    if (first == cpu || first >= CPU_SETSIZE || !CPU_ISSET(first, &allowed)) cores++;
  }
  return cores < 1 ? 1 : cores > kMaxThreads ? kMaxThreads : cores;
}
/// Starts helpers until `wanted` exist; fewer when the system refuses, which costs speed and nothing else.
void Ensure(int wanted) {
  while (pool.started < wanted) {
    const intptr_t argument = (static_cast<intptr_t>(pool.generation) << 16) | (pool.started + 1);
    pthread_t thread;
    if (pthread_create(&thread, nullptr, Helper, reinterpret_cast<void*>(argument)) != 0) return;
    pthread_detach(thread);
    pool.started++;
  }
}
}  // namespace

int Threads() {
  if (threads == 0) threads = PhysicalCores();
  return threads;
}
void SetThreads(int wanted) { threads = wanted; }

void RunTasks(int64_t count, void (*task)(void*, int64_t, int), void* context) {
  const int64_t wanted = (count < Threads() ? count : Threads()) - 1;
  if (inside || wanted < 1 || pthread_mutex_trylock(&caller) != 0) {
    for (int64_t i = 0; i < count; i++) task(context, i, 0);
    return;
  }
  Ensure(static_cast<int>(wanted));
  pool.count = count;
  pool.task = task;
  pool.context = context;
  pool.next = 0;
  pool.active = static_cast<int>(wanted);
  pool.pending = pool.started;
  pthread_mutex_lock(&pool.mutex);
  __atomic_fetch_add(&pool.generation, 1, __ATOMIC_RELEASE);
  const bool asleep = pool.sleepers > 0;
  pthread_mutex_unlock(&pool.mutex);
  if (asleep) pthread_cond_broadcast(&pool.wake);
  Drain(0);
  Wait([] { return __atomic_load_n(&pool.pending, __ATOMIC_ACQUIRE) == 0; });
  pthread_mutex_unlock(&caller);
}
}  // namespace heed

extern "C" int32_t heed_set_threads(int32_t wanted) {
  if (wanted < 0 || wanted > heed::kMaxThreads)
    return heed::Fail(HEED_INVALID, "[threads] must be between 0 and %d, got %d", heed::kMaxThreads, wanted);
  heed::SetThreads(wanted);
  return HEED_OK;
}
extern "C" int32_t heed_threads(void) { return heed::Threads(); }
