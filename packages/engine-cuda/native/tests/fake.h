// What the runtime's tests share: counted checks, the fake driver's controls, and a context with what a test needs in it.
#pragma once
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>
#include <vector>

#include "../abi/heed_cuda.h"

namespace heed::test {
inline int passed = 0, failed = 0;

/// Counts one check; prints the words when it fails.
__attribute__((format(printf, 2, 3))) inline bool Check(bool holds, const char* format, ...) {
  if (holds) return ++passed, true;
  failed++;
  va_list args;
  va_start(args, format);
  printf("FAILED: ");
  vprintf(format, args);
  printf("\n");
  va_end(args);
  return false;
}
inline bool Ok(int32_t status, const char* what) {
  return Check(status == HEED_OK, "%s: status %d, %s", what, status, heed_cuda_last_error());
}
/// The call failed with that status, and the words have each of `parts`.
inline void Refused(int32_t status, int32_t expected, const std::vector<std::string>& parts) {
  Check(status == expected, "status %d, not %d: %s", status, expected, heed_cuda_last_error());
  for (const std::string& part : parts)
    Check(strstr(heed_cuda_last_error(), part.c_str()) != nullptr, "\"%s\" is not in \"%s\"", part.c_str(), heed_cuda_last_error());
}
inline int Finish() {
  printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}

/// The fake driver at $HEED_FAKE_DRIVER, of which the runtime under test has the same copy open.
struct Fake {
  Fake() : path(getenv("HEED_FAKE_DRIVER")) {
    void* library = path ? dlopen(path, RTLD_NOW) : nullptr;
    if (library == nullptr) {
      printf("HEED_FAKE_DRIVER is not the path of the fake driver\n0 passed, 1 failed\n");
      exit(1);
    }
    const auto find = [&](auto& function, const char* name) { *reinterpret_cast<void**>(&function) = dlsym(library, name); };
    find(reset, "heed_fake_reset");
    find(log, "heed_fake_log");
    find(calls, "heed_fake_calls");
    find(clear, "heed_fake_clear");
    find(fail, "heed_fake_fail");
    find(hold, "heed_fake_hold");
    find(pools, "heed_fake_pools");
    find(memory, "heed_fake_memory");
    find(live, "heed_fake_live");
    setenv("HEED_CUBLAS", path, 1);
  }
  const char* path;
  void (*reset)();
  const char* (*log)();
  int (*calls)();
  void (*clear)();
  void (*fail)(int n, int code);
  void (*hold)(int on);
  void (*pools)(int on);
  void (*memory)(uint64_t bytes);
  const char* (*live)();
  /// Whether the log has that text.
  bool Logged(const std::string& text) const { return strstr(log(), text.c_str()) != nullptr; }
  /// How often it has.
  int Count(const std::string& text) const {
    int count = 0;
    for (const char* at = log(); (at = strstr(at, text.c_str())); at += text.size()) count++;
    return count;
  }
};
inline Fake fake;

/// A context that is open for a test and leaves nothing behind.
struct Session {
  Session() {
    fake.reset();
    Ok(heed_cuda_open_driver(fake.path), "open the driver");
    Ok(heed_cuda_open(1, &context), "open a context");
    fake.clear();
  }
  ~Session() {
    fake.hold(0);
    if (context) Ok(heed_cuda_close(context), "close");
    Check(fake.live()[0] == 0, "left: %s", fake.live());
    Check(!fake.Logged("BAD"), "%s", fake.log());
  }
  uint64_t Alloc(uint64_t bytes) {
    uint64_t address = 0;
    Ok(heed_cuda_alloc(context, bytes, &address), "alloc");
    return address;
  }
  heed_cuda_memory_info Memory() {
    heed_cuda_memory_info info = {};
    info.size = sizeof info;
    Ok(heed_cuda_memory(context, &info), "memory");
    return info;
  }
  heed_cuda_kernel_info Kernel(const char* name) {
    heed_cuda_kernel_info info = {};
    info.size = sizeof info;
    Ok(heed_cuda_kernel(context, name, &info), name);
    return info;
  }
  /// The launch of a kernel: 3 x 2 x 1 blocks of 64 threads with an argument block of 16 bytes.
  heed_cuda_launch_info Launch(uint64_t kernel, const void* args) {
    heed_cuda_launch_info launch = {};
    launch.size = sizeof launch;
    launch.kernel = kernel;
    launch.grid[0] = 3, launch.grid[1] = 2, launch.grid[2] = 1;
    launch.threads = 64;
    launch.args = args;
    launch.args_bytes = 16;
    return launch;
  }
  std::vector<unsigned char> Download(uint64_t from, uint64_t bytes) {
    heed_cuda_transfer* transfer = nullptr;
    std::vector<unsigned char> data(bytes);
    Ok(heed_cuda_download(context, from, bytes, &transfer), "download");
    Check(heed_cuda_transfer_done(transfer) == 1, "done: %s", heed_cuda_last_error());
    Ok(heed_cuda_transfer_take(transfer, data.data()), "take");
    return data;
  }
  heed_cuda_context* context = nullptr;
};
}  // namespace heed::test
