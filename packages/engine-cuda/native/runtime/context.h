// A context: one device's primary context, one stream, and everything that was made in it.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "driver.h"
#include "gemm.h"
#include "handles.h"
#include "kernels.h"
#include "memory.h"
#include "staging.h"

namespace heed {
/// What a graph under recording, and later the graph, keeps alive.
struct Kept {
  std::vector<CUdeviceptr> blocks;
  std::vector<Pinned> uploads;
};

struct Context {
  uint64_t handle = 0;
  const Driver* driver = nullptr;
  CUdevice device = 0;
  int32_t ordinal = 0;
  int32_t shared_per_block = 0;  // bytes that a block may opt into
  CUcontext primary = nullptr;
  CUstream stream = nullptr;
  CUstream side = nullptr;       // allocates while `stream` records a graph
  bool debug = false;
  std::string lost;              // the words of the error that ended it; empty while it works
  std::unique_ptr<Kept> recording;
  Memory memory{*this};
  Staging staging{*this};
  Kernels kernels{*this};
  Gemm gemm{*this};
  std::vector<CUevent> idle_events;

  /// HEED_OK, or the status of `code` with words: what was done, the driver's name of the error and its own words. A sticky error
  /// marks the context lost.
  int32_t Check(CUresult code, const char* format, ...) __attribute__((format(printf, 3, 4)));
  /// An event, recorded in the stream; reused from those given back.
  int32_t RecordEvent(CUevent* event);
  void ReturnEvent(CUevent event) { idle_events.push_back(event); }
  /// 1 when what the event marks is done, 0 when not yet, else a status.
  int32_t EventDone(CUevent event);
};

struct Transfer {
  Context* context;
  Pinned memory;
  uint64_t bytes;
  CUevent event;
};
struct Event {
  Context* context;
  CUevent event;
};
struct Graph {
  Context* context;
  CUgraphExec exec;
  std::unique_ptr<Kept> kept;
};

/// Held for the length of every call: handles may be used from any thread. Calls take microseconds.
std::mutex& Lock();
Handles<Context>& Contexts();
Handles<Transfer>& Transfers();
Handles<Event>& Events();
Handles<Graph>& Graphs();

/// Makes `context` current in this thread; HEED_SYSTEM with words when it is lost.
int32_t Enter(Context& context);
/// The context behind a handle, current in this thread; false, with status and words, when it is closed or lost.
struct Entered {
  explicit Entered(const heed_cuda_context* handle);
  explicit operator bool() const { return context != nullptr; }
  Context* operator->() const { return context; }
  Context& operator*() const { return *context; }

  Context* context = nullptr;
  int32_t status = HEED_OK;
};
/// Ends a recording that is under way and drops what it recorded.
void AbandonRecording(Context& context);
/// Gives back what a graph or a recording kept.
void Release(Context& context, Kept& kept);
}  // namespace heed
