#include "context.h"

#include <stdarg.h>
#include <stdio.h>

namespace heed {
// None of these is ever destroyed: a thread may be inside a call while the process ends.
uint64_t NextHandle() {
  static uint64_t last = 0;
  return ++last;
}
std::mutex& Lock() {
  static std::mutex* lock = new std::mutex;
  return *lock;
}
Handles<Context>& Contexts() {
  static auto* all = new Handles<Context>;
  return *all;
}
Handles<Transfer>& Transfers() {
  static auto* all = new Handles<Transfer>;
  return *all;
}
Handles<Event>& Events() {
  static auto* all = new Handles<Event>;
  return *all;
}
Handles<Graph>& Graphs() {
  static auto* all = new Handles<Graph>;
  return *all;
}

int32_t Context::Check(CUresult code, const char* format, ...) {
  if (code == CUDA_SUCCESS) return HEED_OK;
  char what[512];
  va_list args;
  va_start(args, format);
  vsnprintf(what, sizeof what, format, args);
  va_end(args);
  const std::string words = std::string(what) + ": " + Describe(*driver, code);
  if (!IsSticky(code)) return Fail(StatusOf(code), "%s", words.c_str());
  lost = words;
  return Fail(HEED_SYSTEM, "%s. The device context is lost with everything in it: open a new engine", words.c_str());
}

int32_t Context::RecordEvent(CUevent* event) {
  CUevent found = nullptr;
  if (!idle_events.empty()) {
    found = idle_events.back();
    idle_events.pop_back();
  } else if (const int32_t status = Check(driver->cuEventCreate(&found, CU_EVENT_DEFAULT), "creating an event")) {
    return status;
  }
  if (const int32_t status = Check(driver->cuEventRecord(found, stream), "recording an event")) {
    idle_events.push_back(found);
    return status;
  }
  *event = found;
  return HEED_OK;
}

int32_t Context::EventDone(CUevent event) {
  const CUresult code = driver->cuEventQuery(event);
  if (code == CUDA_ERROR_NOT_READY) return 0;
  const int32_t status = Check(code, "asking whether the device is done");
  return status == HEED_OK ? 1 : status;
}

int32_t Enter(Context& context) {
  if (!context.lost.empty())
    return Fail(HEED_SYSTEM, "the device context was lost: %s. Open a new engine", context.lost.c_str());
  return context.Check(context.driver->cuCtxSetCurrent(context.primary), "making the device context current");
}
Entered::Entered(const heed_cuda_context* handle) {
  Context* found = Contexts().Find(handle);
  status = found ? Enter(*found) : Fail(HEED_INVALID, "this device context is closed, or never was one");
  if (status == HEED_OK) context = found;
}

static int32_t Start(Context& context) {
  const Driver& driver = *context.driver;
  if (int32_t status = context.Check(driver.cuDeviceGet(&context.device, context.ordinal), "finding device %d", context.ordinal))
    return status;
  if (int32_t status = context.Check(driver.cuDeviceGetAttribute(&context.shared_per_block,
                                                                 CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, context.device),
                                     "asking for the shared memory of device %d", context.ordinal))
    return status;
  if (int32_t status = context.Check(driver.cuDevicePrimaryCtxRetain(&context.primary, context.device), "opening device %d", context.ordinal))
    return status;
  if (int32_t status = Enter(context)) return status;
  if (int32_t status = context.Check(driver.cuStreamCreate(&context.stream, CU_STREAM_NON_BLOCKING), "creating a stream")) return status;
  if (int32_t status = context.Check(driver.cuStreamCreate(&context.side, CU_STREAM_NON_BLOCKING), "creating a stream")) return status;
  return context.memory.Open();
}

template <class T, class Drop>
static void DropAll(Handles<T>& handles, const Context& context, const Drop& drop) {
  for (const uint64_t handle : handles.Select([&](const T& object) { return object.context == &context; })) drop(*handles.Remove(handle));
}

// Errors are not looked at: each step is tried, and releasing the primary context ends whatever a lost one still holds.
static void Stop(Context& context) {
  const Driver& driver = *context.driver;
  if (context.primary == nullptr) return;
  driver.cuCtxSetCurrent(context.primary);
  if (context.recording) AbandonRecording(context);
  if (context.stream) driver.cuStreamSynchronize(context.stream);
  DropAll(Transfers(), context, [&](Transfer& transfer) {
    context.staging.Return(transfer.memory);
    context.ReturnEvent(transfer.event);
  });
  DropAll(Events(), context, [&](Event& event) { context.ReturnEvent(event.event); });
  DropAll(Graphs(), context, [&](Graph& graph) {
    driver.cuGraphExecDestroy(graph.exec);
    Release(context, *graph.kept);
  });
  context.gemm.Close();
  context.staging.Close();
  for (CUevent event : context.idle_events) driver.cuEventDestroy(event);
  context.kernels.Close();
  context.memory.Close();
  if (context.side) driver.cuStreamDestroy(context.side);
  if (context.stream) driver.cuStreamDestroy(context.stream);
  driver.cuCtxSetCurrent(nullptr);
  driver.cuDevicePrimaryCtxRelease(context.device);
}
}  // namespace heed

using namespace heed;

extern "C" int32_t heed_cuda_open(int32_t device, heed_cuda_context** context) {
  const std::lock_guard<std::mutex> guard(Lock());
  if (context == nullptr) return Fail(HEED_INVALID, "nowhere to put the context");
  const Driver* driver = LoadedDriver();
  if (driver == nullptr) return Fail(HEED_INVALID, "no driver is open: heed_cuda_open_driver comes first");
  auto opened = std::make_unique<Context>();
  opened->driver = driver;
  opened->ordinal = device;
  opened->debug = kEmulated;
  if (const int32_t status = Start(*opened)) {
    Stop(*opened);
    return status;
  }
  Context& kept = *opened;
  kept.handle = Contexts().Add(std::move(opened));
  *context = reinterpret_cast<heed_cuda_context*>(kept.handle);
  return HEED_OK;
}

extern "C" int32_t heed_cuda_close(heed_cuda_context* context) {
  const std::lock_guard<std::mutex> guard(Lock());
  const std::unique_ptr<Context> closed = Contexts().Remove(context);
  if (closed == nullptr) return Fail(HEED_INVALID, "this device context is closed, or never was one");
  Stop(*closed);
  return HEED_OK;
}

extern "C" int32_t heed_cuda_debug(heed_cuda_context* context, int32_t on) {
  const std::lock_guard<std::mutex> guard(Lock());
  const Entered found(context);
  if (found) found->debug = on != 0;
  return found.status;
}
