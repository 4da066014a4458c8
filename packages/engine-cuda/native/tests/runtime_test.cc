// The runtime against the fake driver: what it asks of the driver, in which order, and what it refuses before asking.
#include "fake.h"

using namespace heed::test;

namespace {
const unsigned char kArgs[16] = {0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

void Devices() {
  fake.reset();
  Refused(heed_cuda_open_driver("/nowhere/libcuda.so.1"), HEED_UNSUPPORTED, {"no CUDA driver", "/nowhere/libcuda.so.1", "580"});
  Refused(heed_cuda_open_driver("libm.so.6"), HEED_UNSUPPORTED, {"libm.so.6 has no cuInit", "580"});
  Ok(heed_cuda_open_driver(fake.path), "open the driver");
  int32_t count = 0;
  Ok(heed_cuda_device_count(&count), "count");
  Check(count == 2, "%d devices", count);
  heed_cuda_device info = {};
  Refused(heed_cuda_device_info(1, &info), HEED_INVALID, {"heed_cuda_device of 0 bytes"});
  info.size = sizeof info;
  Ok(heed_cuda_device_info(1, &info), "info");
  Check(std::string(info.name) == "fake 11" && info.major == 9 && info.minor == 0 && info.multiprocessors == 132 &&
            info.shared_per_block == 232448 && info.driver_version == 13000 && info.memory_pools == 1 && info.memory == 1ull << 30,
        "%s %d.%d %d %d %d", info.name, info.major, info.minor, info.multiprocessors, info.shared_per_block, info.driver_version);
  Refused(heed_cuda_device_info(7, &info), HEED_SYSTEM, {"device 7", "(101)"});
  Check(heed_cuda_open_driver(fake.path) == HEED_OK && heed_cuda_abi_version() == HEED_CUDA_ABI_VERSION, "twice is once");
}

void OpenAndClose() {
  fake.reset();
  heed_cuda_context* context = nullptr;
  Ok(heed_cuda_open(1, &context), "open");
  const std::string expected =
      "cuDeviceGet 1\ncuDeviceGetAttribute 97, 11\ncuDevicePrimaryCtxRetain 11\ncuCtxSetCurrent primary\ncuStreamCreate 1\ncuStreamCreate 1\n"
      "cuDeviceGetAttribute 115, 11\ncuMemPoolCreate type 1, handles 0, location 1, device 11, limit 0\n";
  Check(std::string(fake.log()).rfind(expected, 0) == 0, "opening: %s", fake.log());
  Check(fake.Logged(", 4, 18446744073709551615\n") && fake.Logged(", 3, 0\n"), "the pool keeps everything: %s", fake.log());
  Refused(heed_cuda_open_driver("other"), HEED_INVALID, {"while 1 contexts are open"});
  Ok(heed_cuda_close(context), "close");
  Check(fake.live()[0] == 0, "left: %s", fake.live());
  Refused(heed_cuda_close(context), HEED_INVALID, {"closed"});
  uint64_t address = 0;
  Refused(heed_cuda_alloc(context, 1, &address), HEED_INVALID, {"closed"});
  Refused(heed_cuda_open(5, &context), HEED_SYSTEM, {"device 5"});
  Check(fake.live()[0] == 0, "a device that is not there leaves: %s", fake.live());
}

void Allocation() {
  Session session;
  const uint64_t a = session.Alloc(5000);
  Check(fake.Logged("cuMemAllocFromPoolAsync 5120 bytes, pool"), "an eighth of 4096 at most: %s", fake.log());
  Check(session.Memory().in_use == 5120 && session.Memory().blocks == 1, "in use");
  Ok(heed_cuda_free(session.context, a), "free");
  Refused(heed_cuda_free(session.context, a), HEED_INVALID, {"freed before"});
  Check(session.Memory().kept == 5120 && session.Memory().in_use == 0 && !fake.Logged("cuMemFreeAsync"), "kept");
  Check(session.Alloc(4700) == a, "the same block for the same class");
  Check(fake.Count("cuMemAllocFromPoolAsync") == 1, "one allocation by the driver");
  Ok(heed_cuda_free(session.context, a), "free");
  const uint64_t big = session.Alloc(100 << 20);
  Ok(heed_cuda_free(session.context, big), "free");
  Check(fake.Count("cuMemFreeAsync") == 1, "a block above every class goes back to the driver: %s", fake.log());
  Ok(heed_cuda_trim(session.context), "trim");
  Check(fake.Count("cuMemFreeAsync") == 2 && fake.Logged(", 0\n") && session.Memory().kept == 0, "trim: %s", fake.log());
  session.Alloc(0);
  uint64_t address = 77;
  Refused(heed_cuda_alloc(session.context, UINT64_MAX, &address), HEED_OUT_OF_MEMORY, {"18446744073709551615 bytes"});
  Refused(heed_cuda_alloc(session.context, 2ull << 30, &address), HEED_OUT_OF_MEMORY, {"CUDA_ERROR_OUT_OF_MEMORY (2)", "device 1"});
  Check(address == 77, "the address is untouched");
  session.Alloc(1000);
}
void AllocationMakesRoom() {
  Session session;
  fake.memory(64 << 20);
  const uint64_t a = session.Alloc(32 << 20), b = session.Alloc(16 << 20);
  Ok(heed_cuda_free(session.context, a), "free");
  Ok(heed_cuda_free(session.context, b), "free");
  Check(session.Memory().kept == 48u << 20, "kept %llu", static_cast<unsigned long long>(session.Memory().kept));
  session.Alloc(60 << 20);
  Check(session.Memory().kept == 0 && fake.Logged("cuMemPoolTrimTo"), "what was kept made room, in the driver's pool too");
}
void AllocationWithoutPools() {
  fake.reset();
  fake.pools(0);
  heed_cuda_context* context = nullptr;
  Ok(heed_cuda_open(0, &context), "open");
  uint64_t address = 0;
  Ok(heed_cuda_alloc(context, 100 << 20, &address), "alloc");
  Ok(heed_cuda_free(context, address), "free");
  Check(fake.Logged("cuMemAlloc_v2 104857600 bytes") && fake.Logged("cuMemFree_v2") && !fake.Logged("Pool"), "%s", fake.log());
  Ok(heed_cuda_close(context), "close");
  Check(fake.live()[0] == 0, "left: %s", fake.live());
}
// Every size in turn: the class holds it, loses an eighth at most, and the next size up never gets a smaller one.
void SizeClasses() {
  Session session;
  uint64_t last = 0;
  for (uint64_t bytes = 1; bytes <= 64u << 20; bytes += 1 + bytes / 7) {
    const uint64_t address = session.Alloc(bytes), used = session.Memory().in_use;
    Check(used >= bytes && used >= last && (bytes <= 4096 ? used - bytes < 512 : (used - bytes) * 8 < bytes + 8), "%llu bytes take %llu",
          static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(used));
    last = used;
    Ok(heed_cuda_free(session.context, address), "free");
    Ok(heed_cuda_trim(session.context), "trim");
  }
}

void Uploads() {
  Session session;
  const uint64_t bytes = 41 << 20;
  const uint64_t a = session.Alloc(bytes), small = session.Alloc(100);
  std::vector<unsigned char> data(bytes);
  for (uint64_t i = 0; i < bytes; i++) data[i] = static_cast<unsigned char>(i * 2654435761u >> 13);
  unsigned char few[100];
  memset(few, 9, sizeof few);
  Ok(heed_cuda_upload(session.context, small, few, 100), "upload");
  memset(few, 8, sizeof few);  // it may be reused at once
  Ok(heed_cuda_upload(session.context, a, data.data(), bytes), "upload");
  Check(fake.Count("cuMemHostAlloc 4194304 bytes, 0") == 4, "four chunks: %s", fake.log());
  Check(fake.Logged("cuMemcpyHtoDAsync_v2 100 bytes") && fake.Logged("cuMemcpyHtoDAsync_v2 4194176 bytes"), "the first chunk is shared");
  Check(fake.Count("cuEventSynchronize") >= 6, "a chunk is waited for before it is used again: %s", fake.log());
  Check(session.Download(a, bytes) == data, "what was uploaded comes back");
  Check(session.Download(small, 100) == std::vector<unsigned char>(100, 9), "and so does the small one");
  fake.clear();
  Ok(heed_cuda_upload(session.context, a, nullptr, 0), "nothing");
  Check(!fake.Logged("Memcpy"), "nothing is uploaded: %s", fake.log());
  Refused(heed_cuda_upload(session.context, a, nullptr, 1), HEED_INVALID, {"from nowhere"});
  Refused(heed_cuda_upload(session.context, small + 1, few, 100), HEED_INVALID, {"100 bytes at", "one allocation"});
  Refused(heed_cuda_upload(session.context, 16, few, 1), HEED_INVALID, {"one allocation"});
  Refused(heed_cuda_upload(session.context, small + 101, few, 1), HEED_INVALID, {"one allocation"});
  Refused(heed_cuda_upload(session.context, small + 4, few, UINT64_MAX - 2), HEED_INVALID, {"one allocation"});
}
void Downloads() {
  Session session;
  const uint64_t a = session.Alloc(1000);
  Ok(heed_cuda_fill(session.context, a, 7, 1000), "fill");
  heed_cuda_transfer *first = nullptr, *second = nullptr;
  fake.hold(1);
  Ok(heed_cuda_download(session.context, a, 1000, &first), "download");
  Ok(heed_cuda_download(session.context, a + 10, 10, &second), "download");
  unsigned char data[1000] = {};
  Check(heed_cuda_transfer_done(first) == 0, "not yet");
  Refused(heed_cuda_transfer_take(first, data), HEED_INVALID, {"1000 bytes", "under way"});
  Check(heed_cuda_transfer_take(second, nullptr) == HEED_OK, "dropped while under way");
  Check(!fake.Logged("cuMemFreeHost"), "its memory is not given back yet");
  Refused(heed_cuda_transfer_done(second), HEED_INVALID, {"taken"});
  fake.hold(0);
  Check(heed_cuda_transfer_done(first) == 1, "done");
  Ok(heed_cuda_transfer_take(first, data), "take");
  Check(data[0] == 7 && data[999] == 7, "the bytes");
  Refused(heed_cuda_transfer_take(first, data), HEED_INVALID, {"taken"});
  fake.clear();
  session.Download(a, 1000);
  Check(!fake.Logged("cuMemHostAlloc") && !fake.Logged("cuEventCreate"), "memory and event are used again: %s", fake.log());
  Refused(heed_cuda_download(session.context, a, 1001, &first), HEED_INVALID, {"downloading", "1001 bytes"});
  Check(session.Download(a, 0).empty(), "nothing");
  Ok(heed_cuda_download(session.context, a, 1000, &first), "one that the session ends with");
}
void CopiesAndFills() {
  Session session;
  const uint64_t a = session.Alloc(64), b = session.Alloc(64);
  Ok(heed_cuda_fill(session.context, a, 255, 64), "fill");
  Ok(heed_cuda_copy(session.context, b + 32, a, 32), "copy");
  Check(session.Download(b + 32, 32) == std::vector<unsigned char>(32, 255), "copied");
  Refused(heed_cuda_copy(session.context, b + 33, a, 32), HEED_INVALID, {"copying to"});
  Refused(heed_cuda_copy(session.context, b, a + 33, 32), HEED_INVALID, {"copying from"});
  Refused(heed_cuda_fill(session.context, a, 256, 1), HEED_INVALID, {"256"});
  Refused(heed_cuda_fill(session.context, a, 1, 65), HEED_INVALID, {"filling"});
}
void Marks() {
  Session session;
  heed_cuda_event *from = nullptr, *to = nullptr;
  Ok(heed_cuda_mark(session.context, &from), "mark");
  Ok(heed_cuda_mark(session.context, &to), "mark");
  fake.hold(1);
  Check(heed_cuda_event_done(to) == 0, "not yet");
  fake.hold(0);
  Check(heed_cuda_event_done(to) == 1, "done");
  float milliseconds = 0;
  Ok(heed_cuda_elapsed(from, to, &milliseconds), "elapsed");
  Check(milliseconds == 1.5f, "%g", milliseconds);
  Ok(heed_cuda_event_free(from), "free");
  Refused(heed_cuda_event_free(from), HEED_INVALID, {"freed"});
  Refused(heed_cuda_event_done(from), HEED_INVALID, {"freed"});
  Refused(heed_cuda_event_done(reinterpret_cast<heed_cuda_event*>(session.context)), HEED_INVALID, {"never was one"});
  fake.clear();
  Ok(heed_cuda_mark(session.context, &from), "mark");
  Check(!fake.Logged("cuEventCreate"), "an event is used again");
}
void Launches() {
  Session session;
  Check(std::string(heed_cuda_kernels()) == "heed_cuda_first\nheed_cuda_other\nheed_cuda_second", "%s", heed_cuda_kernels());
  const heed_cuda_kernel_info first = session.Kernel("heed_cuda_first"), second = session.Kernel("heed_cuda_second");
  Check(fake.Count("cuModuleLoadData module zero") == 1 && !fake.Logged("module one"), "a module is loaded once, when asked: %s", fake.log());
  Check(first.parameter_bytes == 16 && first.max_threads == 256 && first.registers == 42 && first.local_bytes == 8 &&
            first.shared_bytes == 1024 && first.handle != second.handle && session.Kernel("heed_cuda_first").handle == first.handle,
        "what the driver says of it");
  heed_cuda_kernel_info info = {};
  info.size = sizeof info;
  Refused(heed_cuda_kernel(session.context, "heed_cuda_none", &info), HEED_UNSUPPORTED, {"heed_cuda_none"});
  heed_cuda_launch_info launch = session.Launch(first.handle, kArgs);
  fake.clear();
  Ok(heed_cuda_launch(session.context, &launch), "launch");
  Check(fake.Logged("cuLaunchKernel heed_cuda_first, 3 x 2 x 1, 64 x 1 x 1, 0 bytes, stream") &&
            fake.Logged("deadbeef0102030405060708090a0b0c\n") && !fake.Logged("cuStreamSynchronize"),
        "%s", fake.log());
  const auto refused = [&](auto change, const char* words) {
    heed_cuda_launch_info bad = session.Launch(first.handle, kArgs);
    change(bad);
    fake.clear();
    Refused(heed_cuda_launch(session.context, &bad), HEED_INVALID, {words});
    Check(!fake.Logged("cuLaunchKernel"), "not launched");
  };
  refused([](auto& l) { l.size = 8; }, "heed_cuda_launch_info of 8 bytes");
  refused([](auto& l) { l.kernel = 1; }, "kernel handle 1");
  refused([](auto& l) { l.threads = 0; }, "1 to 256 threads, not 0");
  refused([](auto& l) { l.threads = 257; }, "not 257");
  for (int axis = 0; axis < 3; axis++) refused([=](auto& l) { l.grid[axis] = 0; }, "blocks");
  refused([](auto& l) { l.grid[0] = 1u << 31; }, "2147483648 x 2 x 1");
  refused([](auto& l) { l.grid[1] = 65536; }, "3 x 65536 x 1");
  refused([](auto& l) { l.grid[2] = 65536; }, "3 x 2 x 65536");
  refused([](auto& l) { l.args_bytes = 15; }, "15 bytes, the kernel takes 16");
  refused([](auto& l) { l.shared = 232448 - 1023; }, "232448");
  refused([](auto& l) { l.shared = UINT32_MAX; }, "4294967295");
}
void LaunchesWithSharedMemory() {
  Session session;
  const heed_cuda_kernel_info kernel = session.Kernel("heed_cuda_first");
  heed_cuda_launch_info launch = session.Launch(kernel.handle, kArgs);
  const auto asked = [&](uint32_t bytes) {
    launch.shared = bytes;
    fake.clear();
    Ok(heed_cuda_launch(session.context, &launch), "launch");
    return fake.Count("cuFuncSetAttribute");
  };
  Check(asked(48 * 1024) == 0, "48 KB without asking");
  Check(asked(64 * 1024) == 1 && fake.Logged(", 8, 65536\n"), "more after asking: %s", fake.log());
  Check(asked(50 * 1024) == 0 && asked(64 * 1024) == 0, "asked once");
  Check(asked(232448 - 1024) == 1, "as much as the device has");
  struct {
    heed_cuda_launch_info launch;
    unsigned char args[16];
  } together = {session.Launch(kernel.handle, nullptr), {0xab}};
  Ok(heed_cuda_launch(session.context, &together.launch), "launch with its block behind it");
  Check(fake.Logged("ab000000"), "%s", fake.log());
}
void Debugging() {
  Session session;
  Ok(heed_cuda_debug(session.context, 1), "debug");
  const uint64_t a = session.Alloc(77);
  Check(fake.Logged("cuMemAllocFromPoolAsync 77 bytes") && fake.Logged("cuMemsetD8Async 255, 77 bytes"), "%s", fake.log());
  Check(session.Download(a, 77) == std::vector<unsigned char>(77, 255), "poisoned");
  const heed_cuda_kernel_info kernel = session.Kernel("heed_cuda_first");
  const heed_cuda_launch_info launch = session.Launch(kernel.handle, kArgs);
  fake.clear();
  Ok(heed_cuda_launch(session.context, &launch), "launch");
  Check(fake.Logged("cuStreamSynchronize"), "a launch is waited for");
  Ok(heed_cuda_free(session.context, a), "free");
  Check(fake.Logged("cuMemFreeAsync"), "a block is not kept, so that its next use shows");
}
void Gemm() {
  Session session;
  const uint64_t a = session.Alloc(6 * 4 * 2), b = session.Alloc(4 * 5 * 2 * 4), c = session.Alloc(1000);
  heed_cuda_gemm_info gemm = {};
  gemm.size = sizeof gemm;
  gemm.dtype = HEED_BFLOAT16;
  gemm.transpose_b = 1;
  gemm.m = 3, gemm.n = 5, gemm.k = 4, gemm.batch = 2;
  gemm.a = a, gemm.b = b, gemm.c = c;
  gemm.lda = 4, gemm.ldb = 4, gemm.ldc = 7;
  gemm.stride_a = 12, gemm.stride_b = 20, gemm.stride_c = 21;
  gemm.alpha = 2, gemm.beta = 0.5;
  const uint64_t before = session.Memory().in_use;
  // The third call from here, after the one that makes the context current and the workspace's.
  fake.fail(3, 3);
  Refused(heed_cuda_gemm(session.context, &gemm), HEED_OUT_OF_MEMORY, {"starting cuBLAS", "status 3"});
  Check(session.Memory().in_use == before, "a start that failed gives its workspace back");
  Ok(heed_cuda_gemm(session.context, &gemm), "gemm");
  Check(fake.Logged("op 1 0, 5 3 4, 2, memory") && fake.Logged("type 14 ld 4 stride 20, memory") &&
            fake.Logged("type 14 ld 4 stride 12, 0.5, c type 14 ld 7 stride 21, batch 2, compute 68, algorithm -1"),
        "%s", fake.log());
  Check(fake.Logged("cublasSetMathMode") && fake.Logged(", 16\n") && fake.Logged("33554432 bytes"), "%s", fake.log());
  Check(strstr(heed_cuda_gemm_library(), "version 130000") != nullptr, "%s", heed_cuda_gemm_library());
  gemm.lda = 3;
  Refused(heed_cuda_gemm(session.context, &gemm), HEED_INVALID, {"matrix a", "3 apart that are 4 long"});
  gemm.lda = 5;
  Refused(heed_cuda_gemm(session.context, &gemm), HEED_INVALID, {"a: ", "one allocation"});
  gemm.lda = 4, gemm.m = 0;
  Refused(heed_cuda_gemm(session.context, &gemm), HEED_UNSUPPORTED, {"not 0"});
  gemm.m = 3, gemm.dtype = HEED_INT32;
  Refused(heed_cuda_gemm(session.context, &gemm), HEED_INVALID, {"no float"});
}
void Layouts() {
  Check(std::string(heed_cuda_layout("heed_tensor")) == "144;data=0;shape=8;strides=72;dtype=136;rank=140", "%s", heed_cuda_layout("heed_tensor"));
  Check(std::string(heed_cuda_layout("heed_cuda_launch_info")) ==
            "48;size=0;threads=4;kernel=8;grid=16;shared=28;args=32;args_bytes=40;reserved=44",
        "%s", heed_cuda_layout("heed_cuda_launch_info"));
  Check(heed_cuda_layout("heed_nothing") == nullptr && heed_cuda_layout(nullptr) == nullptr, "an unknown block has no layout");
}
}  // namespace

int main() {
  Devices();
  OpenAndClose();
  Allocation();
  AllocationMakesRoom();
  AllocationWithoutPools();
  SizeClasses();
  Uploads();
  Downloads();
  CopiesAndFills();
  Marks();
  Launches();
  LaunchesWithSharedMemory();
  Debugging();
  Gemm();
  Layouts();
  return Finish();
}
