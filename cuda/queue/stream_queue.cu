// The functions of a DeviceQueue over a stream: copies, graphs, and events as marks.
#include <cuda_runtime.h>

#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "base/ops_check.h"
#include "common/launch.h"
#include "octavo/cuda_queue.h"

namespace octavo::cuda {
namespace {

// A step that ends within this time is seen at once. For a longer one the thread sleeps: waking up
// takes tens of microseconds.
constexpr std::chrono::milliseconds kSpin{10};

class EventQueue final : public StreamQueue {
 public:
  EventQueue(int device, Stream stream) : device_(device), stream_(stream) {
    queue_ = {this, &Copy, &Launch, &Mark, &Wait, &Explain};
  }
  ~EventQueue() override {
    const DeviceScope scope(device_);
    for (const cudaEvent_t event : events_) cudaEventDestroy(event);
  }

  Status MakeEvents(int slots) {
    const DeviceScope scope(device_);
    OCTAVO_RETURN_IF_ERROR(scope.status());
    for (int i = 0; i < slots; ++i) {
      cudaEvent_t event = nullptr;
      OCTAVO_RETURN_IF_ERROR(
          ToStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync),
                   "making an event"));
      events_.push_back(event);
    }
    return Status::Ok();
  }

 private:
  static EventQueue& Of(void* context) { return *static_cast<EventQueue*>(context); }

  static int Copy(void* context, void* target, const void* source, size_t bytes) {
    const EventQueue& queue = Of(context);
    const DeviceScope scope(queue.device_);
    return cudaMemcpyAsync(target, source, bytes, cudaMemcpyHostToDevice, queue.stream_);
  }
  static int Launch(void* context, void* graph) {
    const EventQueue& queue = Of(context);
    const DeviceScope scope(queue.device_);
    return cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), queue.stream_);
  }
  static int Mark(void* context, int slot) {
    const EventQueue& queue = Of(context);
    const DeviceScope scope(queue.device_);
    return cudaEventRecord(queue.events_[static_cast<size_t>(slot)], queue.stream_);
  }
  static int Wait(void* context, int slot) {
    const EventQueue& queue = Of(context);
    const DeviceScope scope(queue.device_);
    const cudaEvent_t event = queue.events_[static_cast<size_t>(slot)];
    const auto end = std::chrono::steady_clock::now() + kSpin;
    while (std::chrono::steady_clock::now() < end) {
      const cudaError_t error = cudaEventQuery(event);
      if (error != cudaErrorNotReady) return error;
      std::this_thread::yield();
    }
    return cudaEventSynchronize(event);
  }
  static const char* Explain(void*, int error) {
    return cudaGetErrorString(static_cast<cudaError_t>(error));
  }

  int device_;
  Stream stream_;
  std::vector<cudaEvent_t> events_;
};

}  // namespace

Result<std::unique_ptr<StreamQueue>> StreamQueue::Create(int device, Stream stream, int slots) {
  auto queue = std::make_unique<EventQueue>(device, stream);
  if (Status s = queue->MakeEvents(slots); !s.ok()) return s;
  return std::unique_ptr<StreamQueue>(std::move(queue));
}

}  // namespace octavo::cuda
