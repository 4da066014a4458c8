// Graphs against the fake driver: what is recorded, what a graph keeps alive, and what is refused meanwhile.
#include "fake.h"

using namespace heed::test;

namespace {
const unsigned char kArgs[16] = {1};

void RecordAndLaunch() {
  Session session;
  const uint64_t a = session.Alloc(256), b = session.Alloc(256);
  const heed_cuda_kernel_info kernel = session.Kernel("heed_cuda_first");
  const heed_cuda_launch_info launch = session.Launch(kernel.handle, kArgs);
  unsigned char data[256];
  memset(data, 5, sizeof data);
  Ok(heed_cuda_fill(session.context, a, 1, 256), "fill");
  fake.clear();
  Ok(heed_cuda_graph_begin(session.context), "begin");
  Check(fake.Logged("mode 2"), "relaxed, so that memory can be allocated meanwhile: %s", fake.log());
  Ok(heed_cuda_upload(session.context, a, data, 256), "upload");
  memset(data, 6, sizeof data);
  Ok(heed_cuda_copy(session.context, b, a, 256), "copy");
  Ok(heed_cuda_launch(session.context, &launch), "launch");
  heed_cuda_graph* graph = nullptr;
  Ok(heed_cuda_graph_end(session.context, &graph), "end");
  Check(session.Download(a, 256)[0] == 1, "nothing is done while recording");
  Ok(heed_cuda_graph_launch(session.context, graph), "launch the graph");
  Check(session.Download(b, 256)[255] == 5, "the bytes as they were when recorded");
  Ok(heed_cuda_fill(session.context, a, 1, 256), "fill");
  Ok(heed_cuda_graph_launch(session.context, graph), "launch it again");
  Check(session.Download(a, 256)[0] == 5, "the upload is done again");
  Ok(heed_cuda_graph_free(graph), "free");
  Refused(heed_cuda_graph_launch(session.context, graph), HEED_INVALID, {"freed"});
  Refused(heed_cuda_graph_free(graph), HEED_INVALID, {"freed"});
}

// Memory of the recording: used again within it, the graph's afterwards, nobody else's while the graph lives.
void MemoryOfAGraph() {
  Session session;
  const uint64_t before = session.Alloc(1000);
  Ok(heed_cuda_graph_begin(session.context), "begin");
  const uint64_t temporary = session.Alloc(2000);
  Check(fake.Count("cuMemAllocFromPoolAsync") == 2 && fake.Logged("cuStreamSynchronize"), "on the side stream, and waited for: %s", fake.log());
  Ok(heed_cuda_free(session.context, temporary), "free");
  Check(session.Alloc(1990) == temporary, "used again within the recording");
  unsigned char data[2000] = {};
  Refused(heed_cuda_upload(session.context, temporary, data, 2000), HEED_INVALID, {"one allocation"});
  Ok(heed_cuda_free(session.context, temporary), "free");
  const uint64_t result = session.Alloc(3000);
  Ok(heed_cuda_free(session.context, before), "free what is older than the recording");
  Check(session.Alloc(1000) != before, "it is not used again: what is recorded may read it");
  heed_cuda_graph* graph = nullptr;
  Ok(heed_cuda_graph_end(session.context, &graph), "end");
  const uint64_t others[] = {session.Alloc(2000), session.Alloc(1000)};
  Check(others[0] != temporary && others[1] != before, "the graph's memory stays its own");
  Ok(heed_cuda_graph_free(graph), "free");
  Check(session.Alloc(2000) == temporary && session.Alloc(1000) == before, "and is free with the graph");
  Ok(heed_cuda_fill(session.context, result, 1, 3000), "what is still held by others outlives the graph");
  Ok(heed_cuda_free(session.context, result), "free");
  Check(session.Alloc(3000) == result, "until they free it");
}

// What one recording freed or allocated is nothing that the next one may use.
void TwoRecordings() {
  Session session;
  heed_cuda_graph *first = nullptr, *second = nullptr;
  Ok(heed_cuda_graph_begin(session.context), "begin");
  const uint64_t temporary = session.Alloc(2000), result = session.Alloc(3000);
  Ok(heed_cuda_free(session.context, temporary), "free");
  Ok(heed_cuda_graph_end(session.context, &first), "end");
  Ok(heed_cuda_graph_begin(session.context), "begin");
  Check(session.Alloc(2000) != temporary, "the first graph's memory");
  Ok(heed_cuda_free(session.context, result), "free the first graph's result");
  Check(session.Alloc(3000) != result, "the first graph still writes it");
  Ok(heed_cuda_graph_end(session.context, &second), "end");
}
void WhileRecording() {
  Session session;
  const uint64_t a = session.Alloc(256), big = session.Alloc(100 << 20);
  Refused([&] { heed_cuda_graph* none; return heed_cuda_graph_end(session.context, &none); }(), HEED_INVALID, {"no graph"});
  Ok(heed_cuda_graph_begin(session.context), "begin");
  heed_cuda_transfer* transfer = nullptr;
  heed_cuda_event* event = nullptr;
  Refused(heed_cuda_download(session.context, a, 1, &transfer), HEED_UNSUPPORTED, {"download", "graph"});
  Refused(heed_cuda_mark(session.context, &event), HEED_UNSUPPORTED, {"event", "graph"});
  Refused(heed_cuda_trim(session.context), HEED_UNSUPPORTED, {"graph"});
  Refused(heed_cuda_graph_begin(session.context), HEED_INVALID, {"already"});
  fake.clear();
  Ok(heed_cuda_free(session.context, big), "free");
  Check(!fake.Logged("cuMemFreeAsync"), "nothing is freed in the stream");
  Ok(heed_cuda_upload(session.context, a, kArgs, 16), "upload");
  heed_cuda_graph *graph = nullptr, *other = nullptr;
  Ok(heed_cuda_graph_end(session.context, &graph), "end");
  Ok(heed_cuda_graph_begin(session.context), "begin");
  Refused(heed_cuda_graph_launch(session.context, graph), HEED_UNSUPPORTED, {"part of another"});
  fake.clear();
  Ok(heed_cuda_graph_free(graph), "a graph is freed while another is recorded");
  Check(!fake.Logged("cuStreamSynchronize") && !fake.Logged("cuMemFreeAsync"), "which leaves the stream alone: %s", fake.log());
  Ok(heed_cuda_graph_end(session.context, &other), "end");
  Check(session.Memory().blocks == 1, "one block");
}
// A graph that is freed while a launch of it is under way keeps its uploads until that is over.
void FreedWhileUnderWay() {
  Session session;
  const uint64_t a = session.Alloc(64);
  unsigned char data[64] = {3};
  Ok(heed_cuda_graph_begin(session.context), "begin");
  Ok(heed_cuda_upload(session.context, a, data, 64), "upload");
  heed_cuda_graph* graph = nullptr;
  Ok(heed_cuda_graph_end(session.context, &graph), "end");
  Ok(heed_cuda_graph_launch(session.context, graph), "launch");
  fake.hold(1);
  Ok(heed_cuda_graph_free(graph), "free");
  fake.clear();
  heed_cuda_transfer* transfer = nullptr;
  Ok(heed_cuda_download(session.context, a, 64, &transfer), "download");
  Check(fake.Logged("cuMemHostAlloc"), "its memory is not used for something else: %s", fake.log());
  fake.hold(0);
  Ok(heed_cuda_transfer_take(transfer, data), "take");
  fake.clear();
  session.Download(a, 64);
  Check(!fake.Logged("cuMemHostAlloc"), "until it is over");
}
void ClosedWhileRecording() {
  Session session;
  Ok(heed_cuda_graph_begin(session.context), "begin");
  session.Alloc(100);
  const uint64_t a = session.Alloc(100);
  Ok(heed_cuda_upload(session.context, a, kArgs, 16), "upload");
}
// In debug mode no block is of a class; the recording still keeps them.
void DebugWhileRecording() {
  Session session;
  Ok(heed_cuda_debug(session.context, 1), "debug");
  const heed_cuda_kernel_info kernel = session.Kernel("heed_cuda_first");
  const heed_cuda_launch_info launch = session.Launch(kernel.handle, kArgs);
  Ok(heed_cuda_graph_begin(session.context), "begin");
  const uint64_t a = session.Alloc(100);
  fake.clear();
  Ok(heed_cuda_launch(session.context, &launch), "launch");
  Check(!fake.Logged("cuStreamSynchronize"), "a stream that records is not waited for");
  Ok(heed_cuda_free(session.context, a), "free");
  heed_cuda_graph* graph = nullptr;
  Ok(heed_cuda_graph_end(session.context, &graph), "end");
  Check(!fake.Logged("cuMemFreeAsync"), "the graph has it");
  fake.clear();
  Ok(heed_cuda_graph_launch(session.context, graph), "launch");
  Check(fake.Logged("cuStreamSynchronize"), "a graph is waited for");
  Ok(heed_cuda_graph_free(graph), "free");
  Check(fake.Count("cuMemFreeAsync") == 1, "and gives it back: %s", fake.log());
}
}  // namespace

int main() {
  RecordAndLaunch();
  MemoryOfAGraph();
  TwoRecordings();
  WhileRecording();
  FreedWhileUnderWay();
  ClosedWhileRecording();
  DebugWhileRecording();
  return Finish();
}
