#include "staging.h"

#include <string.h>

#include <algorithm>

#include "context.h"

namespace heed {
int32_t Staging::Take(uint64_t bytes, Pinned* memory) {
  Sweep();
  size_t best = kept_.size();
  for (size_t i = 0; i < kept_.size(); i++)
    if (kept_[i].bytes >= bytes && (best == kept_.size() || kept_[i].bytes < kept_[best].bytes)) best = i;
  // Small blocks serve anything; a large one more than four times the size would pin memory that a large download needs.
  if (best < kept_.size() && (kept_[best].bytes <= 64 * 1024 || kept_[best].bytes / 4 <= bytes)) {
    *memory = kept_[best];
    kept_bytes_ -= memory->bytes;
    kept_.erase(kept_.begin() + best);
    return HEED_OK;
  }
  const uint64_t rounded = (bytes + 4095) / 4096 * 4096 + (bytes == 0 ? 4096 : 0);
  void* data = nullptr;
  const CUresult code = context_.driver->cuMemHostAlloc(&data, rounded, 0);
  if (int32_t status = context_.Check(code, "allocating %llu bytes of pinned host memory", static_cast<unsigned long long>(rounded)))
    return status;
  *memory = {data, rounded};
  return HEED_OK;
}

void Staging::Return(Pinned memory) {
  if (memory.data == nullptr) return;
  if (kept_bytes_ + memory.bytes > kKeepAtMost) {
    context_.driver->cuMemFreeHost(memory.data);
    return;
  }
  kept_.push_back(memory);
  kept_bytes_ += memory.bytes;
}

void Staging::ReturnLater(Pinned memory, CUevent event) {
  later_.push_back({memory, event});
  Sweep();
}
void Staging::Sweep() {
  for (size_t i = later_.size(); i-- > 0;) {
    if (context_.driver->cuEventQuery(later_[i].event) == CUDA_ERROR_NOT_READY) continue;
    Return(later_[i].memory);
    context_.ReturnEvent(later_[i].event);
    later_.erase(later_.begin() + i);
  }
}

void Staging::Trim() {
  Sweep();
  for (const Pinned& memory : kept_) context_.driver->cuMemFreeHost(memory.data);
  kept_.clear();
  kept_bytes_ = 0;
}

void Staging::Close() {
  for (const Later& later : later_) {
    context_.driver->cuMemFreeHost(later.memory.data);
    context_.ReturnEvent(later.event);
  }
  later_.clear();
  Trim();
  for (Chunk& chunk : chunks_) {
    if (chunk.memory.data) context_.driver->cuMemFreeHost(chunk.memory.data);
    if (chunk.event) context_.ReturnEvent(chunk.event);
    chunk = {};
  }
}

// The chunk with room in it; waits for the oldest one where all are under way.
int32_t Staging::Room(Chunk** found) {
  const Driver& driver = *context_.driver;
  if (Chunk& full = chunks_[current_]; full.used == kChunkBytes && !full.sent) {
    if (full.event == nullptr) {
      if (int32_t status = context_.Check(driver.cuEventCreate(&full.event, CU_EVENT_DEFAULT), "creating an event")) return status;
    }
    if (int32_t status = context_.Check(driver.cuEventRecord(full.event, context_.stream), "recording an event")) return status;
    full.sent = true;
    current_ = (current_ + 1) % kChunks;
  }
  Chunk& chunk = chunks_[current_];
  if (chunk.memory.data == nullptr) {
    if (int32_t status = Take(kChunkBytes, &chunk.memory)) return status;
  }
  if (chunk.sent) {
    if (int32_t status = context_.Check(driver.cuEventSynchronize(chunk.event), "waiting for an upload")) return status;
    chunk.sent = false;
    chunk.used = 0;
  }
  *found = &chunk;
  return HEED_OK;
}

int32_t Staging::Upload(CUdeviceptr to, const void* from, uint64_t bytes) {
  const Driver& driver = *context_.driver;
  if (context_.recording) {  // the graph uploads the same bytes each time it is launched, so it keeps them
    Pinned memory;
    if (int32_t status = Take(bytes, &memory)) return status;
    context_.recording->uploads.push_back(memory);
    memcpy(memory.data, from, bytes);
    return context_.Check(driver.cuMemcpyHtoDAsync(to, memory.data, bytes, context_.stream), "uploading %llu bytes",
                          static_cast<unsigned long long>(bytes));
  }
  for (uint64_t done = 0; done < bytes;) {
    Chunk* chunk = nullptr;
    if (int32_t status = Room(&chunk)) return status;
    const uint64_t part = std::min(bytes - done, kChunkBytes - chunk->used);
    char* const at = static_cast<char*>(chunk->memory.data) + chunk->used;
    memcpy(at, static_cast<const char*>(from) + done, part);
    if (int32_t status = context_.Check(driver.cuMemcpyHtoDAsync(to + done, at, part, context_.stream), "uploading %llu bytes",
                                        static_cast<unsigned long long>(bytes)))
      return status;
    chunk->used = std::min(kChunkBytes, (chunk->used + part + 63) / 64 * 64);
    done += part;
  }
  return HEED_OK;
}
}  // namespace heed
