#include "memory.h"

#include <utility>

#include "context.h"

namespace heed {
namespace {
constexpr int kSmall = 8;               // classes of 512, 1024, ... 4096 bytes
constexpr int kSteps = 8;               // classes to a doubling, above
constexpr int kDoublings = 14;          // 4 KiB to 64 MiB
constexpr int kClasses = kSmall + kSteps * kDoublings;
constexpr uint64_t kKeepAtMost = 512ull << 20;
constexpr uint64_t kAddressable = 1ull << 47;
}  // namespace

uint64_t BytesOfClass(int size_class) {
  if (size_class < kSmall) return 512ull * (size_class + 1);
  const int above = size_class - kSmall, doubling = above / kSteps, step = above % kSteps + 1;
  return (4096ull << doubling) / kSteps * (kSteps + step);
}
int ClassOf(uint64_t bytes) {
  if (bytes <= 4096) return bytes == 0 ? 0 : static_cast<int>((bytes - 1) / 512);
  if (bytes > (4096ull << kDoublings)) return -1;
  const int doubling = 63 - __builtin_clzll(bytes - 1) - 12;
  const uint64_t step = (4096ull << doubling) / kSteps;
  return kSmall + doubling * kSteps + static_cast<int>((bytes - (4096ull << doubling) - 1) / step);
}

int32_t Memory::Open() {
  kept_.resize(kClasses);
  const Driver& driver = *context_.driver;
  int pools = 0;
  if (int32_t status = context_.Check(
          driver.cuDeviceGetAttribute(&pools, CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, context_.device), "asking for memory pools"))
    return status;
  if (!pools) return HEED_OK;
  CUmemPoolProps properties = {};
  properties.alloc_type = 1;
  properties.location_type = 1;
  properties.location_id = context_.device;
  if (int32_t status = context_.Check(driver.cuMemPoolCreate(&pool_, &properties), "creating a memory pool")) return status;
  // Keep everything: returning memory to the system costs a synchronisation. heed_cuda_trim does it on demand.
  uint64_t threshold = UINT64_MAX;
  if (int32_t status = context_.Check(driver.cuMemPoolSetAttribute(pool_, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold),
                                      "setting the memory pool's threshold"))
    return status;
  // Otherwise an allocation on the side stream might wait for the stream that is recording, which ends the recording.
  int no = 0;
  return context_.Check(driver.cuMemPoolSetAttribute(pool_, CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES, &no),
                        "setting how the memory pool reuses memory");
}

void Memory::Close() {
  EndRecording();
  ReleaseKept();
  for (const auto& [address, block] : blocks_) ToDriver(address);
  for (const CUdeviceptr address : deferred_) ToDriver(address);
  blocks_.clear();
  deferred_.clear();
  if (pool_) context_.driver->cuMemPoolDestroy(pool_);
  pool_ = nullptr;
}

CUresult Memory::AskDriver(uint64_t bytes, CUdeviceptr* address) {
  const Driver& driver = *context_.driver;
  if (pool_ == nullptr) return driver.cuMemAlloc(address, bytes);
  if (!context_.recording) return driver.cuMemAllocFromPoolAsync(address, bytes, pool_, context_.stream);
  // On the recording stream it would become a node of the graph; the graph holds plain memory instead.
  const CUresult code = driver.cuMemAllocFromPoolAsync(address, bytes, pool_, context_.side);
  if (code != CUDA_SUCCESS) return code;
  const CUresult waited = driver.cuStreamSynchronize(context_.side);
  if (waited != CUDA_SUCCESS) driver.cuMemFreeAsync(*address, context_.side);
  return waited;
}

int32_t Memory::FromDriver(uint64_t bytes, CUdeviceptr* address) {
  CUresult code = AskDriver(bytes, address);
  if (code == CUDA_ERROR_OUT_OF_MEMORY && !context_.recording) {
    if (int32_t status = Trim()) return status;
    code = AskDriver(bytes, address);
  }
  return context_.Check(code, "allocating %llu bytes on device %d (%llu are in use)", static_cast<unsigned long long>(bytes),
                        context_.ordinal, static_cast<unsigned long long>(in_use_));
}

int32_t Memory::ToDriver(CUdeviceptr address) {
  const Driver& driver = *context_.driver;
  if (context_.recording) {
    deferred_.push_back(address);
    return HEED_OK;
  }
  const CUresult code = pool_ ? driver.cuMemFreeAsync(address, context_.stream) : driver.cuMemFree(address);
  return context_.Check(code, "freeing device memory");
}

CUdeviceptr Memory::TakeKept(int size_class, uint64_t bytes) {
  if (context_.recording) {
    std::vector<CUdeviceptr>& idle = recorded_idle_[size_class];
    if (!idle.empty()) {
      const CUdeviceptr address = idle.back();
      idle.pop_back();
      return address;
    }
  }
  std::vector<CUdeviceptr>& idle = kept_[size_class];
  if (idle.empty()) return 0;
  const CUdeviceptr address = idle.back();
  idle.pop_back();
  kept_bytes_ -= bytes;
  return address;
}

int32_t Memory::Allocate(uint64_t bytes, CUdeviceptr* address) {
  if (bytes > kAddressable)
    return Fail(HEED_OUT_OF_MEMORY, "%llu bytes are more than any device has", static_cast<unsigned long long>(bytes));
  // In debug mode of no class: the exact size lets the emulation find the first byte beyond it.
  const int size_class = context_.debug ? -1 : ClassOf(bytes);
  const uint64_t rounded = size_class >= 0 ? BytesOfClass(size_class) : bytes == 0 ? 1 : bytes;
  CUdeviceptr found = size_class >= 0 ? TakeKept(size_class, rounded) : 0;
  if (found == 0) {
    if (int32_t status = FromDriver(rounded, &found)) return status;
  }
  const auto entered = blocks_.try_emplace(found, Block{bytes, rounded, size_class, true, 0, false});
  Block& block = entered.first->second;
  block.asked = bytes;
  block.users = true;
  in_use_ += rounded;
  if (context_.recording && entered.second) {
    block.graphs++;
    block.recorded = true;
    context_.recording->blocks.push_back(found);
  }
  if (context_.debug) {
    const CUresult code = context_.driver->cuMemsetD8Async(found, 0xff, rounded, context_.stream);
    if (int32_t status = context_.Check(code, "filling new memory with 0xff")) {
      const std::string words = heed_cuda_last_error();
      Free(found);
      return Fail(status, "%s", words.c_str());
    }
  }
  *address = found;
  return HEED_OK;
}

int32_t Memory::Free(CUdeviceptr address) {
  const auto found = blocks_.find(address);
  if (found == blocks_.end() || !found->second.users)
    return Fail(HEED_INVALID, "%#llx is no address that heed_cuda_alloc gave, or it was freed before", address);
  Block& block = found->second;
  block.users = false;
  in_use_ -= block.bytes;
  if (context_.recording && block.recorded) {
    if (block.size_class >= 0) recorded_idle_[block.size_class].push_back(address);
    return HEED_OK;
  }
  if (context_.recording) {  // what was recorded so far may read it whenever the graph is launched
    block.graphs++;
    context_.recording->blocks.push_back(address);
  }
  return Recycle(found);
}

int32_t Memory::Recycle(std::map<CUdeviceptr, Block>::iterator found) {
  const auto [address, block] = *found;
  if (block.users || block.graphs > 0) return HEED_OK;
  blocks_.erase(found);
  if (block.size_class < 0 || context_.debug || kept_bytes_ + block.bytes > kKeepAtMost) return ToDriver(address);
  kept_[block.size_class].push_back(address);
  kept_bytes_ += block.bytes;
  return HEED_OK;
}

int32_t Memory::CheckRange(CUdeviceptr address, uint64_t bytes, const char* what) const {
  auto next = blocks_.upper_bound(address);
  if (next != blocks_.begin()) {
    const auto& [start, block] = *--next;
    if (address - start <= block.asked && bytes <= block.asked - (address - start)) return HEED_OK;
  }
  return Fail(HEED_INVALID, "%s: %llu bytes at %#llx do not lie in one allocation", what, static_cast<unsigned long long>(bytes), address);
}

int32_t Memory::ReleaseKept() {
  int32_t status = HEED_OK;
  for (std::vector<CUdeviceptr>& idle : kept_) {
    for (const CUdeviceptr address : idle)
      if (const int32_t failed = ToDriver(address)) status = failed;
    idle.clear();
  }
  kept_bytes_ = 0;
  return status;
}

int32_t Memory::Trim() {
  const Driver& driver = *context_.driver;
  if (context_.recording) return Fail(HEED_UNSUPPORTED, "memory cannot be given back to the system while a graph is recorded");
  const int32_t released = ReleaseKept();
  if (released != HEED_OK) return released;
  if (int32_t status = context_.Check(driver.cuStreamSynchronize(context_.stream), "waiting for the device before returning memory"))
    return status;
  return pool_ ? context_.Check(driver.cuMemPoolTrimTo(pool_, 0), "returning memory to the system") : HEED_OK;
}

int32_t Memory::Describe(heed_cuda_memory_info* info) const {
  size_t free = 0, total = 0;
  if (int32_t status = context_.Check(context_.driver->cuMemGetInfo(&free, &total), "asking for free memory")) return status;
  uint32_t live = 0;
  for (const auto& [address, block] : blocks_) live += block.users;
  *info = {sizeof *info, live, in_use_, kept_bytes_, free, total};
  return HEED_OK;
}

void Memory::EndRecording() {
  recorded_idle_.clear();
  for (auto& [address, block] : blocks_) block.recorded = false;
}
void Memory::Release(const std::vector<CUdeviceptr>& blocks) {
  for (const CUdeviceptr address : blocks) {
    const auto found = blocks_.find(address);
    if (found == blocks_.end()) continue;
    found->second.graphs--;
    Recycle(found);
  }
  if (context_.recording) return;
  for (const CUdeviceptr address : std::exchange(deferred_, {})) ToDriver(address);
}
}  // namespace heed

using namespace heed;

extern "C" int32_t heed_cuda_alloc(heed_cuda_context* handle, uint64_t bytes, uint64_t* address) {
  const std::lock_guard<std::mutex> guard(Lock());
  if (address == nullptr) return Fail(HEED_INVALID, "nowhere to put the address");
  const Entered context(handle);
  if (!context) return context.status;
  CUdeviceptr found = 0;
  const int32_t status = context->memory.Allocate(bytes, &found);
  if (status == HEED_OK) *address = found;
  return status;
}
extern "C" int32_t heed_cuda_free(heed_cuda_context* handle, uint64_t address) {
  const std::lock_guard<std::mutex> guard(Lock());
  const Entered context(handle);
  return context ? context->memory.Free(address) : context.status;
}
extern "C" int32_t heed_cuda_memory(heed_cuda_context* handle, heed_cuda_memory_info* info) {
  const std::lock_guard<std::mutex> guard(Lock());
  if (const int32_t status = CheckBlock(info, "heed_cuda_memory_info")) return status;
  const Entered context(handle);
  return context ? context->memory.Describe(info) : context.status;
}
extern "C" int32_t heed_cuda_trim(heed_cuda_context* handle) {
  const std::lock_guard<std::mutex> guard(Lock());
  const Entered context(handle);
  if (!context) return context.status;
  const int32_t status = context->memory.Trim();
  context->staging.Trim();
  return status;
}
