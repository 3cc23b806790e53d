// A device's queue for the step loop of octavo._core, which takes its address.
#include <cstdint>
#include <memory>
#include <utility>

#include "octavo/cuda_queue.h"
#include "ops_views.h"

namespace octavo::bindings {
namespace {

class Queue {
 public:
  Queue(int device, uintptr_t stream, int slots) {
#ifdef OCTAVO_HAS_CUDA
    auto made = cuda::StreamQueue::Create(device, reinterpret_cast<cuda::Stream>(stream), slots);
    ThrowIfError(made.status());
    queue_ = std::move(*made);
#else
    static_cast<void>(device);
    static_cast<void>(stream);
    static_cast<void>(slots);
    throw std::runtime_error("this build has no CUDA");
#endif
  }

  uintptr_t address() const { return reinterpret_cast<uintptr_t>(&queue_->queue()); }

 private:
  std::unique_ptr<cuda::StreamQueue> queue_;
};

}  // namespace

void BindQueue(nb::module_& m) {
  nb::class_<Queue>(m, "StreamQueue")
      .def(nb::init<int, uintptr_t, int>(), nb::arg("device"), nb::arg("stream"), nb::arg("slots"))
      .def_prop_ro("address", &Queue::address);
}

}  // namespace octavo::bindings
