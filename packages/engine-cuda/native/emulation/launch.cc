#include "launch.h"

#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <shared_mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "block.h"
#include "memory.h"

namespace heed::emulation {
namespace {

constexpr size_t kMaxArgs = 4096;  // bytes of a kernel's parameters
constexpr int64_t kMaxGrid[3] = {2147483647, 65535, 65535};
// The calling thread runs alone until it has spent this long: waking others costs about as much.
constexpr std::chrono::microseconds kAlone{30};

// Blocks to run, taken one by one in an order that visits all of them: number i is (i * step + start) % count.
struct Job {
  Grid grid;
  uint64_t count, step, start;
  std::atomic<uint64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::string words;
};

// Blocks wait here between launches: their stacks and shared memory are used again.
class Blocks {
 public:
  std::unique_ptr<Block> Take() {
    std::lock_guard lock(mutex_);
    if (idle_.empty()) return std::make_unique<Block>();
    std::unique_ptr<Block> block = std::move(idle_.back());
    idle_.pop_back();
    return block;
  }
  void Give(std::unique_ptr<Block> block) {
    std::lock_guard lock(mutex_);
    idle_.push_back(std::move(block));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Block>> idle_;
};
Blocks& IdleBlocks() {
  static Blocks* blocks = new Blocks;  // never destroyed: threads may run when the process ends
  return *blocks;
}

void Fail(Job& job, std::string words) {
  std::lock_guard lock(job.mutex);
  if (!job.failed.exchange(true)) job.words = std::move(words);
}

bool RunNext(Job& job, Block& block) {
  const uint64_t i = job.next.fetch_add(1, std::memory_order_relaxed);
  if (i >= job.count || job.failed.load(std::memory_order_relaxed)) return false;
  uint64_t number = static_cast<uint64_t>((static_cast<unsigned __int128>(i) * job.step + job.start) % job.count);
  const int x = static_cast<int>(number % job.grid.size[0]);
  number /= job.grid.size[0];
  std::string words = block.Run(x, static_cast<int>(number % job.grid.size[1]), static_cast<int>(number / job.grid.size[1]));
  if (!words.empty()) Fail(job, std::move(words));
  return true;
}

// Threads that help with one launch at a time. They sleep between launches and are never joined.
class Helpers {
 public:
  /// Wakes up to `wanted` of them for the job, unless they help with another. True: call Finish.
  bool Start(Job& job, int wanted) {
    std::lock_guard lock(mutex_);
    if (job_) return false;
    try {
      for (; made_ < wanted; made_++) std::thread([this] { Sleep(); }).detach();
    } catch (const std::system_error&) {  // no more threads: fewer help
    }
    job_ = &job;
    wanted_ = wanted;
    wake_.notify_all();
    return true;
  }
  /// Waits until none is in the job.
  void Finish() {
    std::unique_lock lock(mutex_);
    job_ = nullptr;
    done_.wait(lock, [this] { return inside_ == 0; });
  }

 private:
  void Sleep() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return job_ && inside_ < wanted_; });
      Job& job = *job_;
      inside_++;
      lock.unlock();
      Help(job);
      lock.lock();
      if (job_ == &job) job_ = nullptr;  // no block is left
      if (--inside_ == 0) done_.notify_all();
    }
  }
  static void Help(Job& job) {
    try {
      std::unique_ptr<Block> block = IdleBlocks().Take();
      block->Begin(job.grid);
      while (RunNext(job, *block)) {
      }
      IdleBlocks().Give(std::move(block));
    } catch (const std::bad_alloc&) {  // the calling thread runs the rest
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int made_ = 0, wanted_ = 0, inside_ = 0;
};
Helpers& AllHelpers() {
  static Helpers* helpers = new Helpers;
  return *helpers;
}

void RunAll(Job& job, int host_threads) {
  std::unique_ptr<Block> block = IdleBlocks().Take();
  block->Begin(job.grid);
  // Helpers hold the job: they must be out of it before it ends, whatever happens here.
  struct Help {
    bool running = false;
    ~Help() {
      if (running) AllHelpers().Finish();
    }
  } help;
  bool tried = host_threads <= 1;
  const auto start = std::chrono::steady_clock::now();
  while (RunNext(job, *block)) {
    if (tried || std::chrono::steady_clock::now() - start < kAlone) continue;
    tried = true;
    if (job.next.load(std::memory_order_relaxed) < job.count) help.running = AllHelpers().Start(job, host_threads - 1);
  }
  IdleBlocks().Give(std::move(block));
}

std::string Check(const Registration& kernel, const Launch& launch) {
  const auto number = [](int64_t n) { return std::to_string(n); };
  for (int axis = 0; axis < 3; axis++)
    if (launch.grid[axis] < 1 || launch.grid[axis] > kMaxGrid[axis])
      return "grid size " + number(launch.grid[axis]) + " of axis " + number(axis) + " is not in 1 to " + number(kMaxGrid[axis]);
  const int64_t most = kernel.max_threads < kMaxThreads ? kernel.max_threads : kMaxThreads;
  if (launch.threads < 1 || launch.threads > most)
    return number(launch.threads) + " threads: a block of this kernel has 1 to " + number(most);
  if (launch.shared < 0 || launch.shared > kMaxShared)
    return number(launch.shared) + " bytes of shared memory: a block has at most " + number(kMaxShared);
  if (launch.args_bytes != kernel.args_bytes || kernel.args_bytes > kMaxArgs)
    return number(static_cast<int64_t>(launch.args_bytes)) + " bytes of arguments: this kernel takes " +
           number(static_cast<int64_t>(kernel.args_bytes));
  if (!launch.args) return "no arguments";
  return {};
}

}  // namespace

std::string Run(const Registration& kernel, const Launch& launch, const Options& options) {
  const std::string name = std::string(kernel.name) + ": ";
  if (std::string words = Check(kernel, launch); !words.empty()) return name + words;
  alignas(64) unsigned char args[kMaxArgs];
  memcpy(args, launch.args, launch.args_bytes);
  Job job;
  job.grid.kernel = &kernel;
  job.grid.args = args;
  for (int axis = 0; axis < 3; axis++) job.grid.size[axis] = static_cast<int>(launch.grid[axis]);
  job.grid.threads = static_cast<int>(launch.threads);
  job.grid.shared = static_cast<uint32_t>(launch.shared);
  job.grid.seed = options.seed;
  job.grid.races = options.races;
  job.grid.memory = options.memory;
  job.count = static_cast<uint64_t>(launch.grid[0]) * launch.grid[1] * launch.grid[2];
  Random random = {options.seed};
  job.start = random.Next() % job.count;
  do job.step = random.Next() % job.count;
  while (std::gcd(job.step, job.count) != 1);
  const int machine = static_cast<int>(std::thread::hardware_concurrency());
  try {
    std::shared_lock<std::shared_mutex> lock;
    if (options.memory) lock = std::shared_lock(options.memory->mutex);
    RunAll(job, options.host_threads > 0 ? options.host_threads : machine);
  } catch (const std::bad_alloc&) {
    return name + "no memory left for the emulation";
  }
  if (job.failed) return name + job.words + " (seed " + std::to_string(options.seed) + ")";
  if (options.memory)
    if (std::string words = options.memory->CheckEnds(); !words.empty()) return name + words;
  return {};
}

}  // namespace heed::emulation
