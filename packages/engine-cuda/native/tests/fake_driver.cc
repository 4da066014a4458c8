// A CUDA driver for tests, built as a shared library that heed_cuda_open_driver loads: it writes every call down as a line of text,
// counts the objects that live, keeps "device" memory in host memory, and fails the n-th call on request. Strict where a driver is
// forgiving: a call with another context current, an unknown object or a range outside an allocation fails, and the log says BAD.
// It has the functions of cuBLAS too. With -DHEED_FAKE_OLD it lacks what drivers before CUDA 12.4 lack.
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace {
using Result = int;
constexpr int kParameterBytes = 16;
struct Object {
  std::string kind;
  int id = 0;
  size_t bytes = 0;                                 // of memory
  std::vector<std::function<void()>> steps;         // of a graph
  Object* recording = nullptr;                      // of a stream
  std::string name;                                 // of a function
};
std::map<void*, Object*> objects;                   // by handle; memory by address
std::map<std::string, int> ids;
std::string log_text, last_call;
int calls = 0, fail_at = 0, fail_code = 0, retained = 0;
bool held = false, pools = true, dead = false;
uint64_t memory_limit = 1ull << 30, memory_used = 0;
thread_local void* current = nullptr;

std::string Name(const void* handle) {
  const auto found = objects.find(const_cast<void*>(handle));
  if (found == objects.end()) return handle ? "unknown" : "null";
  return found->second->kind + std::to_string(found->second->id);
}
/// Counts the call, writes it down and says whether it is to fail.
__attribute__((format(printf, 2, 3))) Result Call(const char* name, const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  log_text += std::string(name) + (text[0] ? " " : "") + text;
  last_call = name;
  calls++;
  Result code = dead ? fail_code : 0;
  if (fail_at > 0 && --fail_at == 0) {
    code = fail_code;
    dead = code >= 700 && code < 720;
  }
  log_text += code ? " = " + std::to_string(code) + "\n" : "\n";
  return code;
}
Result Bad(const char* why) {
  log_text += std::string("BAD ") + last_call + ": " + why + "\n";
  return 400;
}
void* Make(const char* kind, size_t bytes = 0) {
  auto* object = new Object;
  object->kind = kind;
  object->id = ++ids[kind];
  object->bytes = bytes;
  void* handle = bytes ? aligned_alloc(256, (bytes + 255) / 256 * 256) : object;
  objects[handle] = object;
  return handle;
}
Object* Find(const void* handle, const char* kind) {
  const auto found = objects.find(const_cast<void*>(handle));
  return found != objects.end() && found->second->kind == kind ? found->second : nullptr;
}
/// Ends an object. It is gone whether or not the call that ends it is one that fails.
Result End(Result code, const void* handle, const char* kind) {
  Object* object = Find(handle, kind);
  if (object == nullptr) return Bad("no such object");
  objects.erase(const_cast<void*>(handle));
  if (object->kind == "memory") memory_used -= object->bytes;
  if (object->bytes) free(const_cast<void*>(handle));
  delete object;
  return code;
}
bool Inside(uint64_t address, size_t bytes) {
  const auto next = objects.upper_bound(reinterpret_cast<void*>(address));
  if (next == objects.begin()) return false;
  const auto& [start, object] = *std::prev(next);
  const uint64_t offset = address - reinterpret_cast<uint64_t>(start);
  return (object->kind == "memory" || object->kind == "pinned") && offset + bytes <= object->bytes;
}
Object* Stream(const void* stream) { return Find(stream, "stream"); }
/// Now, or at each launch of the graph that the stream records.
void Do(Object* stream, std::function<void()> step) {
  if (stream->recording) stream->recording->steps.push_back(std::move(step));
  else step();
}
Result Move(const char* name, uint64_t to, uint64_t from, size_t bytes, void* stream) {
  if (Result code = Call(name, "%zu bytes, %s", bytes, Name(stream).c_str())) return code;
  if (current == nullptr) return Bad("no context");
  if (Stream(stream) == nullptr || !Inside(to, bytes) || !Inside(from, bytes)) return Bad("outside an allocation");
  Do(Stream(stream), [=] { memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
  return 0;
}
Result Allocate(const char* name, uint64_t* address, size_t bytes, const std::string& where) {
  if (Result code = Call(name, "%zu bytes%s", bytes, where.c_str())) return code;
  if (current == nullptr) return Bad("no context");
  if (bytes == 0 || bytes > memory_limit - memory_used) return bytes ? 2 : 1;
  memory_used += bytes;
  *address = reinterpret_cast<uint64_t>(Make("memory", bytes));
  return 0;
}
}  // namespace

#define API extern "C" __attribute__((visibility("default")))
#define CALL(...) \
  if (const Result code = Call(__func__, __VA_ARGS__)) return code
#define NEED(holds, why) \
  if (!(holds)) return Bad(why)

API void heed_fake_reset() {
  log_text.clear();
  calls = fail_at = fail_code = 0;
  held = dead = false;
  pools = true;
  memory_limit = 1ull << 30;
}
API const char* heed_fake_log() { return log_text.c_str(); }
API int heed_fake_calls() { return calls; }
API void heed_fake_clear() { log_text.clear(); }
API void heed_fake_fail(int n, int code) { fail_at = n, fail_code = code; }
API void heed_fake_hold(int on) { held = on; }
API void heed_fake_pools(int on) { pools = on; }
API void heed_fake_memory(uint64_t bytes) { memory_limit = bytes; }
API const char* heed_fake_live() {
  static std::string text;
  std::map<std::string, int> counts;
  for (const auto& [handle, object] : objects)
    if (object->kind != "function") counts[object->kind]++;
  if (retained) counts["primary"] = retained;
  text.clear();
  for (const auto& [kind, count] : counts) text += (text.empty() ? "" : ", ") + std::to_string(count) + " " + kind;
  return text.c_str();
}

API Result cuInit(unsigned flags) { return Call(__func__, "%u", flags); }
API Result cuDriverGetVersion(int* version) {
  CALL("%s", "");
  *version = 13000;
  return 0;
}
API Result cuGetErrorName(Result code, const char** text) {
  *text = code == 1 ? "CUDA_ERROR_INVALID_VALUE" : code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : nullptr;
  return *text ? 0 : 1;
}
API Result cuGetErrorString(Result code, const char** text) {
  *text = code == 1 ? "invalid argument" : code == 2 ? "out of memory" : code == 700 ? "an illegal memory access" : nullptr;
  return *text ? 0 : 1;
}
API Result cuDeviceGetCount(int* count) {
  CALL("%s", "");
  *count = 2;
  return 0;
}
API Result cuDeviceGet(int* device, int ordinal) {
  CALL("%d", ordinal);
  if (ordinal < 0 || ordinal > 1) return 101;
  *device = ordinal + 10;
  return 0;
}
API Result cuDeviceGetName(char* name, int length, int device) {
  CALL("%d", device);
  snprintf(name, length, "fake %d", device);
  return 0;
}
API Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  CALL("%d, %d", attribute, device);
  switch (attribute) {
    case 16: *value = 132; break;
    case 38: *value = 50 << 20; break;
    case 75: *value = 9; break;
    case 76: *value = 0; break;
    case 97: *value = 232448; break;
    case 115: *value = pools; break;
    default: return 1;
  }
  return 0;
}
API Result cuDeviceTotalMem_v2(size_t* bytes, int device) {
  CALL("%d", device);
  *bytes = memory_limit;
  return 0;
}
API Result cuDevicePrimaryCtxRetain(void** context, int device) {
  CALL("%d", device);
  retained++;
  static char contexts[64];
  *context = contexts + device;
  return 0;
}
API Result cuDevicePrimaryCtxRelease_v2(int device) {
  const Result code = Call(__func__, "%d", device);
  if (--retained == 0) dead = false;
  return code;
}
API Result cuCtxSetCurrent(void* context) {
  CALL("%s", context ? "primary" : "null");
  current = context;
  return 0;
}
API Result cuStreamCreate(void** stream, unsigned flags) {
  CALL("%u", flags);
  NEED(current, "no context");
  *stream = Make("stream");
  return 0;
}
API Result cuStreamDestroy_v2(void* stream) { return End(Call(__func__, "%s", Name(stream).c_str()), stream, "stream"); }
API Result cuStreamSynchronize(void* stream) {
  CALL("%s", Name(stream).c_str());
  NEED(Stream(stream) && !Stream(stream)->recording, "a stream that records, or none");
  return 0;
}
API Result cuStreamBeginCapture_v2(void* stream, int mode) {
  CALL("%s, mode %d", Name(stream).c_str(), mode);
  NEED(Stream(stream) && !Stream(stream)->recording, "a stream that records, or none");
  Stream(stream)->recording = static_cast<Object*>(Make("graph"));
  return 0;
}
API Result cuStreamEndCapture(void* stream, void** graph) {
  const Result code = Call(__func__, "%s", Name(stream).c_str());
  NEED(Stream(stream) && Stream(stream)->recording, "a stream that does not record");
  Object* recorded = std::exchange(Stream(stream)->recording, nullptr);
  if (code) End(code, recorded, "graph"), recorded = nullptr;
  *graph = recorded;
  return code;
}
API Result cuGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long flags) {
  CALL("%s, %llu", Name(graph).c_str(), flags);
  NEED(Find(graph, "graph"), "no graph");
  auto* made = static_cast<Object*>(Make("exec"));
  made->steps = Find(graph, "graph")->steps;
  *exec = made;
  return 0;
}
API Result cuGraphDestroy(void* graph) { return End(Call(__func__, "%s", Name(graph).c_str()), graph, "graph"); }
API Result cuGraphLaunch(void* exec, void* stream) {
  CALL("%s, %s", Name(exec).c_str(), Name(stream).c_str());
  NEED(Find(exec, "exec") && Stream(stream) && !Stream(stream)->recording, "no graph, or a stream that records");
  for (const auto& step : Find(exec, "exec")->steps) step();
  return 0;
}
API Result cuGraphExecDestroy(void* exec) { return End(Call(__func__, "%s", Name(exec).c_str()), exec, "exec"); }
API Result cuEventCreate(void** event, unsigned flags) {
  CALL("%u", flags);
  NEED(current, "no context");
  *event = Make("event");
  return 0;
}
API Result cuEventDestroy_v2(void* event) { return End(Call(__func__, "%s", Name(event).c_str()), event, "event"); }
API Result cuEventRecord(void* event, void* stream) {
  CALL("%s, %s", Name(event).c_str(), Name(stream).c_str());
  NEED(Find(event, "event") && Stream(stream) && !Stream(stream)->recording, "no event, or a stream that records");
  return 0;
}
API Result cuEventQuery(void* event) {
  CALL("%s", Name(event).c_str());
  NEED(Find(event, "event"), "no event");
  return held ? 600 : 0;
}
API Result cuEventSynchronize(void* event) {
  CALL("%s", Name(event).c_str());
  NEED(Find(event, "event"), "no event");
  return 0;
}
API Result cuEventElapsedTime(float* milliseconds, void* from, void* to) {
  CALL("%s, %s", Name(from).c_str(), Name(to).c_str());
  *milliseconds = 1.5f;
  return 0;
}
API Result cuMemGetInfo_v2(size_t* free, size_t* total) {
  CALL("%s", "");
  *free = memory_limit - memory_used, *total = memory_limit;
  return 0;
}
API Result cuMemAlloc_v2(uint64_t* address, size_t bytes) { return Allocate(__func__, address, bytes, ""); }
API Result cuMemFree_v2(uint64_t address) {
  const void* memory = reinterpret_cast<void*>(address);
  return End(Call(__func__, "%s", Name(memory).c_str()), memory, "memory");
}
API Result cuMemAllocFromPoolAsync(uint64_t* address, size_t bytes, void* pool, void* stream) {
  if (Stream(stream) && Stream(stream)->recording) return Bad("an allocation in a graph");
  return Allocate(__func__, address, bytes, ", " + Name(pool) + ", " + Name(stream));
}
API Result cuMemFreeAsync(uint64_t address, void* stream) {
  const void* memory = reinterpret_cast<void*>(address);
  const Result code = Call(__func__, "%s, %s", Name(memory).c_str(), Name(stream).c_str());
  if (Stream(stream) == nullptr || Stream(stream)->recording) return Bad("a free in a graph");
  return End(code, memory, "memory");
}
struct PoolProperties {
  int type, handles, location, device;
  void* security;
  size_t limit;
};
API Result cuMemPoolCreate(void** pool, const PoolProperties* p) {
  CALL("type %d, handles %d, location %d, device %d, limit %zu", p->type, p->handles, p->location, p->device, p->limit);
  *pool = Make("pool");
  return 0;
}
API Result cuMemPoolDestroy(void* pool) { return End(Call(__func__, "%s", Name(pool).c_str()), pool, "pool"); }
API Result cuMemPoolSetAttribute(void* pool, int attribute, void* value) {
  CALL("%s, %d, %llu", Name(pool).c_str(), attribute,
       attribute == 4 ? *static_cast<unsigned long long*>(value) : static_cast<unsigned long long>(*static_cast<int*>(value)));
  return 0;
}
API Result cuMemPoolTrimTo(void* pool, size_t bytes) {
  CALL("%s, %zu", Name(pool).c_str(), bytes);
  NEED(Find(pool, "pool"), "no pool");
  return 0;
}
API Result cuMemHostAlloc(void** memory, size_t bytes, unsigned flags) {
  CALL("%zu bytes, %u", bytes, flags);
  NEED(current, "no context");
  *memory = Make("pinned", bytes);
  return 0;
}
API Result cuMemFreeHost(void* memory) { return End(Call(__func__, "%s", Name(memory).c_str()), memory, "pinned"); }
API Result cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
  return Move(__func__, to, reinterpret_cast<uint64_t>(from), bytes, stream);
}
API Result cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
  return Move(__func__, reinterpret_cast<uint64_t>(to), from, bytes, stream);
}
API Result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) { return Move(__func__, to, from, bytes, stream); }
API Result cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
  CALL("%d, %zu bytes, %s", value, bytes, Name(stream).c_str());
  NEED(Stream(stream) && Inside(to, bytes), "outside an allocation");
  Do(Stream(stream), [=] { memset(reinterpret_cast<void*>(to), value, bytes); });
  return 0;
}
API Result cuModuleLoadData(void** module, const void* image) {
  CALL("%s", static_cast<const char*>(image));
  NEED(current, "no context");
  *module = Make("module");
  return 0;
}
API Result cuModuleUnload(void* module) { return End(Call(__func__, "%s", Name(module).c_str()), module, "module"); }
API Result cuModuleGetFunction(void** function, void* module, const char* name) {
  CALL("%s, %s", Name(module).c_str(), name);
  NEED(Find(module, "module"), "no module");
  auto* made = static_cast<Object*>(Make("function"));
  made->name = name;
  *function = made;
  return 0;
}
API Result cuFuncGetAttribute(int* value, int attribute, void* function) {
  CALL("%d, %s", attribute, Name(function).c_str());
  *value = attribute == 0 ? 256 : attribute == 1 ? 1024 : attribute == 3 ? 8 : attribute == 4 ? 42 : -1;
  return 0;
}
API Result cuFuncSetAttribute(void* function, int attribute, int value) {
  CALL("%s, %d, %d", Name(function).c_str(), attribute, value);
  return 0;
}
#ifndef HEED_FAKE_OLD
API Result cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* bytes) {
  CALL("%s, %zu", Name(function).c_str(), index);
  *offset = 0, *bytes = kParameterBytes;
  return 0;
}
#endif
API Result cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned tx, unsigned ty, unsigned tz, unsigned shared,
                          void* stream, void** parameters, void** extra) {
  NEED(Find(function, "function"), "no function");
  std::string args;
  for (int i = 0; i < kParameterBytes; i++) {
    char digits[3];
    snprintf(digits, sizeof digits, "%02x", static_cast<unsigned char*>(parameters[0])[i]);
    args += digits;
  }
  CALL("%s, %u x %u x %u, %u x %u x %u, %u bytes, %s, %s%s", Find(function, "function")->name.c_str(), gx, gy, gz, tx, ty, tz, shared,
       Name(stream).c_str(), args.c_str(), extra ? ", extra" : "");
  NEED(Stream(stream), "no stream");
  return 0;
}

API int cublasCreate_v2(void** handle) {
  CALL("%s", "");
  *handle = Make("cublas");
  return 0;
}
API int cublasDestroy_v2(void* handle) { return End(Call(__func__, "%s", Name(handle).c_str()), handle, "cublas"); }
API int cublasSetStream_v2(void* handle, void* stream) {
  CALL("%s, %s", Name(handle).c_str(), Name(stream).c_str());
  return 0;
}
API int cublasSetWorkspace_v2(void* handle, void* workspace, size_t bytes) {
  CALL("%s, %zu bytes", Name(handle).c_str(), bytes);
  NEED(Inside(reinterpret_cast<uint64_t>(workspace), bytes), "outside an allocation");
  return 0;
}
API int cublasSetMathMode(void* handle, int mode) {
  CALL("%s, %d", Name(handle).c_str(), mode);
  return 0;
}
API int cublasGetVersion_v2(void* handle, int* version) {
  CALL("%s", Name(handle).c_str());
  *version = 130000;
  return 0;
}
API int cublasGemmStridedBatchedEx(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a, int type_a, int lda,
                                   long long stride_a, const void* b, int type_b, int ldb, long long stride_b, const void* beta, void*,
                                   int type_c, int ldc, long long stride_c, int batch, int compute, int algorithm) {
  const auto scalar = [&](const void* p) { return compute == 70 ? *static_cast<const double*>(p) : *static_cast<const float*>(p); };
  CALL("%s, op %d %d, %d %d %d, %g, %s type %d ld %d stride %lld, %s type %d ld %d stride %lld, %g, c type %d ld %d stride %lld, batch %d, "
       "compute %d, algorithm %d",
       Name(handle).c_str(), op_a, op_b, m, n, k, scalar(alpha), Name(a).c_str(), type_a, lda, stride_a, Name(b).c_str(), type_b, ldb, stride_b,
       scalar(beta), type_c, ldc, stride_c, batch, compute, algorithm);
  return 0;
}
