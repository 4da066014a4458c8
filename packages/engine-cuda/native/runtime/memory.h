// Device memory: the driver's stream-ordered pool, and on top of it freed blocks kept by size class. A call to the pool takes about a
// microsecond and a decode step makes hundreds of allocations of the same sizes; a kept block is handed out without the driver.
#pragma once
#include <stdint.h>

#include <map>
#include <unordered_map>
#include <vector>

#include "driver.h"

namespace heed {
struct Context;
struct Kept;

class Memory {
 public:
  explicit Memory(Context& context) : context_(context) {}
  int32_t Open();
  void Close();

  int32_t Allocate(uint64_t bytes, CUdeviceptr* address);
  int32_t Free(CUdeviceptr address);
  /// HEED_OK when all of [address, address + bytes) lies in one allocation.
  int32_t CheckRange(CUdeviceptr address, uint64_t bytes, const char* what) const;
  /// Gives what is kept for reuse back to the system; waits for the stream.
  int32_t Trim();
  int32_t Describe(heed_cuda_memory_info* info) const;
  /// A recording ends: what was freed in it is no longer at hand.
  void EndRecording();
  /// A graph or recording lets go of the blocks it kept.
  void Release(const std::vector<CUdeviceptr>& blocks);

 private:
  struct Block {
    uint64_t asked, bytes;
    int size_class;          // -1: of no class, given back to the driver when freed
    bool users;              // the caller holds it
    uint32_t graphs;         // graphs and recordings that hold it
    bool recorded;           // allocated by the recording under way, which may use it again
  };
  int32_t FromDriver(uint64_t bytes, CUdeviceptr* address);
  CUresult AskDriver(uint64_t bytes, CUdeviceptr* address);
  int32_t ToDriver(CUdeviceptr address);
  int32_t Recycle(std::map<CUdeviceptr, Block>::iterator block);
  int32_t ReleaseKept();
  CUdeviceptr TakeKept(int size_class, uint64_t bytes);

  Context& context_;
  CUmemoryPool pool_ = nullptr;                         // null: the device has none
  std::map<CUdeviceptr, Block> blocks_;                 // by address, so that a range finds its block
  std::vector<std::vector<CUdeviceptr>> kept_;          // by size class
  std::unordered_map<int, std::vector<CUdeviceptr>> recorded_idle_;  // freed within the recording under way
  std::vector<CUdeviceptr> deferred_;                   // to be freed once the recording is over
  uint64_t in_use_ = 0, kept_bytes_ = 0;
};

/// Bytes of a size class: eight to the doubling from 4 KB on, so that at most an eighth is lost; multiples of 512 below.
uint64_t BytesOfClass(int size_class);
/// The smallest class that holds `bytes`, or -1 above the largest (64 MiB), where the driver's pool is asked each time.
int ClassOf(uint64_t bytes);
}  // namespace heed
