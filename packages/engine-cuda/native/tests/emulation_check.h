// What the tests of the emulation share: counted checks, random numbers, launches. A test's main() ends in `return Finish();`.
#pragma once
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include <initializer_list>
#include <string>
#include <vector>

#include "../device/device.h"
#include "../emulation/launch.h"
#include "../emulation/memory.h"

#pragma GCC diagnostic ignored "-Wunused-parameter"  // tiny kernels that need no arguments

namespace heed::test {
inline int passed = 0, failed = 0;

/// Counts one check; prints the words when it fails (the first 40 failures).
__attribute__((format(printf, 2, 3))) inline bool Check(bool holds, const char* format, ...) {
  if (holds) {
    passed++;
    return true;
  }
  if (++failed > 40) return false;
  va_list args;
  va_start(args, format);
  printf("FAILED: ");
  vprintf(format, args);
  printf("\n");
  va_end(args);
  return false;
}
/// Prints the summary; the exit code of the test.
inline int Finish() {
  printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}

/// A number in [-1, 1) with 20 bits.
inline float Uniform(emulation::Random& random) { return static_cast<float>(random.Next() >> 44) / 524288.0f - 1.0f; }

struct Shape {
  int64_t blocks = 1, threads = 32, shared = 0;
};
template <typename Args>
std::string Try(const char* kernel, Shape shape, const Args& args, const emulation::Options& options = {}) {
  const emulation::Registration* found = emulation::Find(kernel);
  if (!found) return std::string("no kernel ") + kernel;
  emulation::Launch launch;
  launch.grid[0] = shape.blocks;
  launch.threads = shape.threads;
  launch.shared = shape.shared;
  launch.args = &args;
  launch.args_bytes = sizeof args;
  return emulation::Run(*found, launch, options);
}
/// The launch must succeed.
template <typename Args> bool Ok(const char* kernel, Shape shape, const Args& args, const emulation::Options& options = {}) {
  const std::string words = Try(kernel, shape, args, options);
  return Check(words.empty(), "%s", words.c_str());
}
/// The launch must fail, in words that name the kernel and hold all of `parts`.
template <typename Args>
bool Refused(const char* kernel, Shape shape, const Args& args, std::initializer_list<const char*> parts,
             const emulation::Options& options = {}) {
  const std::string words = Try(kernel, shape, args, options);
  bool all = words.rfind(std::string(kernel) + ": ", 0) == 0;
  for (const char* part : parts) all = all && words.find(part) != std::string::npos;
  return Check(all, "%s: expected other words than '%s'", kernel, words.c_str());
}

}  // namespace heed::test
