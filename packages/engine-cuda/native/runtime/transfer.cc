// Uploads, downloads, copies and fills.
#include <string.h>

#include "context.h"

using namespace heed;

namespace {
using ull = unsigned long long;
int32_t NoTransfer() { return Fail(HEED_INVALID, "this transfer was taken or its context closed, or it never was one"); }

int32_t StartDownload(Context& context, CUdeviceptr from, uint64_t bytes, Transfer* transfer) {
  if (int32_t status = context.staging.Take(bytes, &transfer->memory)) return status;
  const CUresult code =
      bytes == 0 ? CUDA_SUCCESS : context.driver->cuMemcpyDtoHAsync(transfer->memory.data, from, bytes, context.stream);
  int32_t status = context.Check(code, "downloading %llu bytes", static_cast<ull>(bytes));
  if (status == HEED_OK) {
    status = context.RecordEvent(&transfer->event);
    if (status != HEED_OK) context.driver->cuStreamSynchronize(context.stream);  // the copy is under way, into memory that is given back
  }
  if (status != HEED_OK) context.staging.Return(transfer->memory);
  return status;
}
}  // namespace

extern "C" int32_t heed_cuda_upload(heed_cuda_context* handle, uint64_t to, const void* from, uint64_t bytes) {
  const std::lock_guard<std::mutex> guard(Lock());
  const Entered context(handle);
  if (!context) return context.status;
  if (bytes == 0) return HEED_OK;
  if (from == nullptr) return Fail(HEED_INVALID, "uploading from nowhere");
  if (const int32_t status = context->memory.CheckRange(to, bytes, "uploading")) return status;
  return context->staging.Upload(to, from, bytes);
}

extern "C" int32_t heed_cuda_download(heed_cuda_context* handle, uint64_t from, uint64_t bytes, heed_cuda_transfer** transfer) {
  const std::lock_guard<std::mutex> guard(Lock());
  if (transfer == nullptr) return Fail(HEED_INVALID, "nowhere to put the transfer");
  const Entered context(handle);
  if (!context) return context.status;
  if (context->recording) return Fail(HEED_UNSUPPORTED, "a download cannot be part of a graph: read the result after a launch");
  if (bytes > 0) {
    if (const int32_t status = context->memory.CheckRange(from, bytes, "downloading")) return status;
  }
  auto started = std::make_unique<Transfer>(Transfer{&*context, {}, bytes, nullptr});
  if (const int32_t status = StartDownload(*context, from, bytes, started.get())) return status;
  *transfer = reinterpret_cast<heed_cuda_transfer*>(Transfers().Add(std::move(started)));
  return HEED_OK;
}

extern "C" int32_t heed_cuda_transfer_done(heed_cuda_transfer* handle) {
  const std::lock_guard<std::mutex> guard(Lock());
  const Transfer* transfer = Transfers().Find(handle);
  if (transfer == nullptr) return NoTransfer();
  if (const int32_t status = Enter(*transfer->context)) return status;
  return transfer->context->EventDone(transfer->event);
}

extern "C" int32_t heed_cuda_transfer_take(heed_cuda_transfer* handle, void* to) {
  const std::lock_guard<std::mutex> guard(Lock());
  Transfer* transfer = Transfers().Find(handle);
  if (transfer == nullptr) return NoTransfer();
  Context& context = *transfer->context;
  if (to != nullptr) {
    if (const int32_t status = Enter(context)) return status;
    const int32_t done = context.EventDone(transfer->event);
    if (done < 0) return done;
    if (done == 0) return Fail(HEED_INVALID, "the transfer of %llu bytes is still under way", static_cast<ull>(transfer->bytes));
    memcpy(to, transfer->memory.data, transfer->bytes);
  } else {
    context.driver->cuCtxSetCurrent(context.primary);
  }
  context.staging.ReturnLater(transfer->memory, transfer->event);
  Transfers().Remove(handle);
  return HEED_OK;
}

extern "C" int32_t heed_cuda_copy(heed_cuda_context* handle, uint64_t to, uint64_t from, uint64_t bytes) {
  const std::lock_guard<std::mutex> guard(Lock());
  const Entered context(handle);
  if (!context) return context.status;
  if (bytes == 0) return HEED_OK;
  if (const int32_t status = context->memory.CheckRange(to, bytes, "copying to")) return status;
  if (const int32_t status = context->memory.CheckRange(from, bytes, "copying from")) return status;
  return context->Check(context->driver->cuMemcpyDtoDAsync(to, from, bytes, context->stream), "copying %llu bytes on the device",
                        static_cast<ull>(bytes));
}

extern "C" int32_t heed_cuda_fill(heed_cuda_context* handle, uint64_t to, int32_t byte, uint64_t bytes) {
  const std::lock_guard<std::mutex> guard(Lock());
  const Entered context(handle);
  if (!context) return context.status;
  if (byte < 0 || byte > 255) return Fail(HEED_INVALID, "%d is no byte", byte);
  if (bytes == 0) return HEED_OK;
  if (const int32_t status = context->memory.CheckRange(to, bytes, "filling")) return status;
  return context->Check(context->driver->cuMemsetD8Async(to, static_cast<unsigned char>(byte), bytes, context->stream),
                        "filling %llu bytes", static_cast<ull>(bytes));
}
