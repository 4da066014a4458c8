// Graphs: the stream's work between begin and end, recorded by the driver and launched as one.
#include "context.h"

namespace heed {
void Release(Context& context, Kept& kept) {
  for (const Pinned& memory : kept.uploads) context.staging.Return(memory);
  context.memory.Release(kept.blocks);
}

// Ends the driver's recording; the graph may be null when something in it failed.
static CUresult EndCapture(Context& context, CUgraph* graph) {
  const CUresult code = context.driver->cuStreamEndCapture(context.stream, graph);
  context.memory.EndRecording();
  return code;
}

void AbandonRecording(Context& context) {
  CUgraph graph = nullptr;
  EndCapture(context, &graph);
  if (graph != nullptr) context.driver->cuGraphDestroy(graph);
  const std::unique_ptr<Kept> kept = std::move(context.recording);
  Release(context, *kept);
}
}  // namespace heed

using namespace heed;

// A launch of the graph may be under way and read its uploads. (Its blocks are reused in the stream's order.)
static void KeepUploads(Context& context, std::vector<Pinned>& uploads) {
  for (const Pinned& memory : uploads) {
    CUevent event = nullptr;
    if (context.recording) {
      context.recording->uploads.push_back(memory);
    } else if (context.RecordEvent(&event) == HEED_OK) {
      context.staging.ReturnLater(memory, event);
    } else {
      context.driver->cuStreamSynchronize(context.stream);
      context.staging.Return(memory);
    }
  }
  uploads.clear();
}
static int32_t NoGraph() { return Fail(HEED_INVALID, "this graph was freed or its context closed, or it never was one"); }

extern "C" int32_t heed_cuda_graph_begin(heed_cuda_context* handle) {
  const std::lock_guard<std::mutex> guard(Lock());
  const Entered context(handle);
  if (!context) return context.status;
  if (context->recording) return Fail(HEED_INVALID, "a graph is being recorded already");
  const CUresult code = context->driver->cuStreamBeginCapture(context->stream, CU_STREAM_CAPTURE_MODE_RELAXED);
  if (const int32_t status = context->Check(code, "starting to record a graph")) return status;
  context->recording = std::make_unique<Kept>();
  return HEED_OK;
}

extern "C" int32_t heed_cuda_graph_end(heed_cuda_context* handle, heed_cuda_graph** graph) {
  const std::lock_guard<std::mutex> guard(Lock());
  if (graph == nullptr) return Fail(HEED_INVALID, "nowhere to put the graph");
  const Entered context(handle);
  if (!context) return context.status;
  if (!context->recording) return Fail(HEED_INVALID, "no graph is being recorded");
  const Driver& driver = *context->driver;
  CUgraph recorded = nullptr;
  CUgraphExec exec = nullptr;
  int32_t status = context->Check(EndCapture(*context, &recorded), "recording a graph");
  std::unique_ptr<Kept> kept = std::move(context->recording);
  if (status == HEED_OK)
    status = context->Check(driver.cuGraphInstantiateWithFlags(&exec, recorded, 0), "preparing a recorded graph");
  if (recorded != nullptr) driver.cuGraphDestroy(recorded);
  if (status != HEED_OK) {
    Release(*context, *kept);
    return status;
  }
  auto made = std::make_unique<Graph>(Graph{&*context, exec, std::move(kept)});
  *graph = reinterpret_cast<heed_cuda_graph*>(Graphs().Add(std::move(made)));
  return HEED_OK;
}

extern "C" int32_t heed_cuda_graph_launch(heed_cuda_context* handle, heed_cuda_graph* graph) {
  const std::lock_guard<std::mutex> guard(Lock());
  const Entered context(handle);
  if (!context) return context.status;
  const Graph* found = Graphs().Find(graph);
  if (found == nullptr) return NoGraph();
  if (found->context != &*context) return Fail(HEED_INVALID, "the graph was recorded in another context");
  if (context->recording) return Fail(HEED_UNSUPPORTED, "a graph cannot be part of another");
  CUresult code = context->driver->cuGraphLaunch(found->exec, context->stream);
  if (code == CUDA_SUCCESS && context->debug) code = context->driver->cuStreamSynchronize(context->stream);
  return context->Check(code, "launching a graph");
}

extern "C" int32_t heed_cuda_graph_free(heed_cuda_graph* handle) {
  const std::lock_guard<std::mutex> guard(Lock());
  Graph* graph = Graphs().Find(handle);
  if (graph == nullptr) return NoGraph();
  Context& context = *graph->context;
  const std::unique_ptr<Graph> freed = Graphs().Remove(handle);
  context.driver->cuCtxSetCurrent(context.primary);
  KeepUploads(context, freed->kept->uploads);
  const CUresult code = context.driver->cuGraphExecDestroy(freed->exec);
  Release(context, *freed->kept);
  return context.lost.empty() ? context.Check(code, "freeing a graph") : HEED_OK;
}
