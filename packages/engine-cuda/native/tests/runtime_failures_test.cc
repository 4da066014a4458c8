// Every call to the driver made to fail, one after another, through the life of a context: the operation that made it fails with the
// right status and the driver's words, works when tried again (or the context is lost, and says so), and nothing is left after close.
#include <functional>

#include "fake.h"

using namespace heed::test;

namespace {
const unsigned char kArgs[16] = {1};
/// What the steps of a life hand on to one another.
struct Life {
  heed_cuda_context* context = nullptr;
  uint64_t a = 0, big = 0;
  heed_cuda_kernel_info kernel = {};
  heed_cuda_transfer* transfer = nullptr;
  heed_cuda_event *from = nullptr, *to = nullptr;
  heed_cuda_graph* graph = nullptr;
  unsigned char data[256] = {};
};
struct Step {
  const char* name;
  std::function<int32_t(Life&)> run;
};

int32_t Record(Life& life) {
  if (int32_t status = heed_cuda_graph_begin(life.context)) return status;
  uint64_t temporary = 0;
  int32_t status = heed_cuda_alloc(life.context, 512, &temporary);
  if (status == HEED_OK) status = heed_cuda_upload(life.context, temporary, life.data, 256);
  if (status == HEED_OK) status = heed_cuda_copy(life.context, life.a, temporary, 256);
  if (temporary != 0) heed_cuda_free(life.context, temporary);
  heed_cuda_graph* graph = nullptr;
  const int32_t ended = heed_cuda_graph_end(life.context, &graph);
  // Where the context could not be made current the recording goes on.
  if (ended != HEED_OK && heed_cuda_graph_end(life.context, &graph) == HEED_OK) heed_cuda_graph_free(graph);
  if (ended == HEED_OK && status != HEED_OK) heed_cuda_graph_free(graph);
  if (status == HEED_OK && ended == HEED_OK) life.graph = graph;
  return status ? status : ended;
}
int32_t Gemm(Life& life) {
  heed_cuda_gemm_info gemm = {};
  gemm.size = sizeof gemm;
  gemm.dtype = HEED_FLOAT32;
  gemm.m = gemm.n = gemm.k = gemm.batch = 1;
  gemm.lda = gemm.ldb = gemm.ldc = 1;
  gemm.a = gemm.b = gemm.c = life.a;
  return heed_cuda_gemm(life.context, &gemm);
}

const std::vector<Step> kLife = {
    {"open", [](Life& l) { return heed_cuda_open(0, &l.context); }},
    {"alloc", [](Life& l) { return heed_cuda_alloc(l.context, 5 << 20, &l.a); }},
    {"alloc a large block", [](Life& l) { return heed_cuda_alloc(l.context, 100 << 20, &l.big); }},
    {"upload", [](Life& l) { return heed_cuda_upload(l.context, l.a, l.data, 256); }},
    {"upload more",
     [](Life& l) {
       const std::vector<unsigned char> data(5 << 20, 1);
       return heed_cuda_upload(l.context, l.a, data.data(), data.size());
     }},
    {"fill", [](Life& l) { return heed_cuda_fill(l.context, l.a, 3, 256); }},
    {"copy", [](Life& l) { return heed_cuda_copy(l.context, l.a, l.big, 256); }},
    {"kernel",
     [](Life& l) {
       l.kernel.size = sizeof l.kernel;
       return heed_cuda_kernel(l.context, "heed_cuda_first", &l.kernel);
     }},
    {"launch",
     [](Life& l) {
       heed_cuda_launch_info launch = {sizeof launch, 64, l.kernel.handle, {1, 1, 1}, 100 * 1024, kArgs, 16, 0};
       return heed_cuda_launch(l.context, &launch);
     }},
    {"mark", [](Life& l) { return heed_cuda_mark(l.context, &l.from); }},
    {"mark again", [](Life& l) { return heed_cuda_mark(l.context, &l.to); }},
    {"done", [](Life& l) { return heed_cuda_event_done(l.to); }},
    {"elapsed",
     [](Life& l) {
       float milliseconds;
       return heed_cuda_elapsed(l.from, l.to, &milliseconds);
     }},
    {"download", [](Life& l) { return heed_cuda_download(l.context, l.a, 256, &l.transfer); }},
    {"transfer done", [](Life& l) { return heed_cuda_transfer_done(l.transfer); }},
    {"take", [](Life& l) { return heed_cuda_transfer_take(l.transfer, l.data); }},
    {"gemm", Gemm},
    {"record", Record},
    {"launch the graph", [](Life& l) { return heed_cuda_graph_launch(l.context, l.graph); }},
    {"memory",
     [](Life& l) {
       heed_cuda_memory_info info = {};
       info.size = sizeof info;
       return heed_cuda_memory(l.context, &info);
     }},
    {"free", [](Life& l) { return heed_cuda_free(l.context, l.a); }},
    {"trim", [](Life& l) { return heed_cuda_trim(l.context); }},
};
/// Calls whose failure no operation reports: they end something, which is gone all the same, or the result is not needed.
const char* const kSilent[] = {"cuEventQuery", "cuMemFreeHost", "cuDriverGetVersion"};

struct Outcome {
  std::string step;  // the one that failed; "" when none did
  bool lost = false;
  bool announced = false;  // cuBLAS does not say that the context is lost, the next call does
};
/// A life in which the n-th call fails with `code`.
Outcome Live(int n, int code) {
  fake.reset();
  fake.fail(n, code);
  Life life;
  Outcome outcome;
  for (const Step& step : kLife) {
    const int32_t status = step.run(life);
    if (status >= 0) continue;
    if (outcome.lost) {
      // Steps whose handle an earlier one did not give have nothing to ask about.
      const std::string told = heed_cuda_last_error();
      const bool nothing = status == HEED_INVALID && told.find("never was one") != std::string::npos;
      const char* const expected = outcome.announced ? "the device context was lost: " : "The device context is lost";
      Check(nothing || (status == HEED_SYSTEM && told.find(expected) != std::string::npos), "%s in a lost context: %d, %s", step.name,
            status, told.c_str());
      outcome.announced |= !nothing;
      continue;
    }
    const std::string words = heed_cuda_last_error();
    Check(outcome.step.empty(), "call %d = %d: %s fails after %s: %s", n, code, step.name, outcome.step.c_str(), words.c_str());
    outcome.step = step.name;
    outcome.lost = code == 700 && life.context != nullptr;
    const int32_t expected = code == 2 ? HEED_OUT_OF_MEMORY : HEED_SYSTEM;
    const bool cublas = words.find("cuBLAS gave status") != std::string::npos;
    Check(cublas || status == expected, "call %d = %d, %s: status %d, %s", n, code, step.name, status, words.c_str());
    if (!cublas && strcmp(step.name, "record") != 0)
      Check(words.find("(" + std::to_string(code) + ")") != std::string::npos, "%s: %s", step.name, words.c_str());
    outcome.announced = words.find(" lost") != std::string::npos;
    if (outcome.lost) continue;
    fake.fail(0, 0);
    if (code == 700) fake.reset();  // opening failed for good; a new driver state stands for another device
    const int32_t again = step.run(life);
    Check(again >= 0, "call %d = %d: %s does not work again: %d, %s", n, code, step.name, again, heed_cuda_last_error());
  }
  Ok(heed_cuda_close(life.context), "close");
  return outcome;
}
/// The n-th line of the log, up to its first space: the call that failed.
std::string CallThatFailed() {
  const std::string log = fake.log();
  const size_t end = log.find(" = ");
  if (end == std::string::npos) return "";
  const size_t start = log.rfind('\n', end) + 1;
  return log.substr(start, log.find(' ', start) - start);
}

void EveryCall(int code) {
  fake.reset();
  Ok(heed_cuda_open_driver(fake.path), "open the driver");
  Live(0, 0);
  const int calls = fake.calls();
  Check(calls > 80, "%d calls in a life", calls);
  int reported = 0;
  for (int n = 1; n <= calls; n++) {
    const Outcome outcome = Live(n, code);
    const std::string call = CallThatFailed();
    Check(fake.live()[0] == 0, "call %d (%s) = %d leaves %s", n, call.c_str(), code, fake.live());
    Check(!fake.Logged("BAD"), "call %d (%s) = %d: %s", n, call.c_str(), code, strstr(fake.log(), "BAD"));
    reported += !outcome.step.empty();
    bool silent = false;
    for (const char* name : kSilent) silent |= call == name;
    // What close calls is not reported: close goes on.
    const bool closing = fake.Logged("cuStreamDestroy_v2") && outcome.step.empty();
    Check(!outcome.step.empty() || silent || closing, "call %d (%s) = %d is not reported", n, call.c_str(), code);
  }
  Check(reported > 50, "%d of %d failures of code %d are reported", reported, calls, code);
}
// The driver itself does not start.
void DriverFailures() {
  fake.reset();
  const char* old = getenv("HEED_FAKE_DRIVER_OLD");
  Check(heed_cuda_open_driver(old) == HEED_OK, "a driver without cuFuncGetParamInfo: %s", heed_cuda_last_error());
  heed_cuda_context* context = nullptr;
  Ok(heed_cuda_open(0, &context), "open");
  heed_cuda_kernel_info kernel = {};
  kernel.size = sizeof kernel;
  Ok(heed_cuda_kernel(context, "heed_cuda_first", &kernel), "kernel");
  Check(kernel.parameter_bytes == 0, "its parameters are unknown");
  heed_cuda_launch_info launch = {sizeof launch, 64, kernel.handle, {1, 1, 1}, 0, kArgs, 16, 0};
  Ok(heed_cuda_launch(context, &launch), "launch");
  launch.args_bytes = 4097;
  Refused(heed_cuda_launch(context, &launch), HEED_INVALID, {"4097 bytes, the kernel takes 4096"});
  Ok(heed_cuda_close(context), "close");
  fake.fail(1, 100);
  Refused(heed_cuda_open_driver(fake.path), HEED_SYSTEM, {"(100)", "nvidia-smi"});
  int32_t count = 0;
  Ok(heed_cuda_device_count(&count), "the driver that was open before still is");
}
}  // namespace

int main() {
  for (const int code : {1, 2, 700}) EveryCall(code);
  DriverFailures();
  return Finish();
}
