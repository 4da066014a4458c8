// Marks in the stream that a caller polls.
#include "context.h"

using namespace heed;

static int32_t NoEvent() { return Fail(HEED_INVALID, "this event was freed or its context closed, or it never was one"); }

extern "C" int32_t heed_cuda_mark(heed_cuda_context* handle, heed_cuda_event** event) {
  const std::lock_guard<std::mutex> guard(Lock());
  if (event == nullptr) return Fail(HEED_INVALID, "nowhere to put the event");
  const Entered context(handle);
  if (!context) return context.status;
  if (context->recording) return Fail(HEED_UNSUPPORTED, "an event cannot be part of a graph: mark the stream after a launch");
  auto marked = std::make_unique<Event>(Event{&*context, nullptr});
  if (const int32_t status = context->RecordEvent(&marked->event)) return status;
  *event = reinterpret_cast<heed_cuda_event*>(Events().Add(std::move(marked)));
  return HEED_OK;
}

extern "C" int32_t heed_cuda_event_done(heed_cuda_event* handle) {
  const std::lock_guard<std::mutex> guard(Lock());
  const Event* event = Events().Find(handle);
  if (event == nullptr) return NoEvent();
  if (const int32_t status = Enter(*event->context)) return status;
  return event->context->EventDone(event->event);
}

extern "C" int32_t heed_cuda_event_free(heed_cuda_event* handle) {
  const std::lock_guard<std::mutex> guard(Lock());
  const std::unique_ptr<Event> event = Events().Remove(handle);
  if (event == nullptr) return NoEvent();
  event->context->ReturnEvent(event->event);
  return HEED_OK;
}

extern "C" int32_t heed_cuda_elapsed(heed_cuda_event* from, heed_cuda_event* to, float* milliseconds) {
  const std::lock_guard<std::mutex> guard(Lock());
  if (milliseconds == nullptr) return Fail(HEED_INVALID, "nowhere to put the time");
  const Event *first = Events().Find(from), *last = Events().Find(to);
  if (first == nullptr || last == nullptr) return NoEvent();
  if (first->context != last->context) return Fail(HEED_INVALID, "the two events are of different contexts");
  Context& context = *first->context;
  if (const int32_t status = Enter(context)) return status;
  return context.Check(context.driver->cuEventElapsedTime(milliseconds, first->event, last->event), "measuring the time between two events");
}
