// A stream of a CUDA device as a step loop uses it.
#pragma once

#include <memory>

#include "octavo/cuda_ops.h"
#include "octavo/executor.h"
#include "octavo/status.h"

namespace octavo::cuda {

// The address of its queue goes to the extension module that holds the engine. Calls may come from
// any thread, those of one slot from one at a time.
class StreamQueue {
 public:
  virtual ~StreamQueue() = default;
  // `slots`: how many marks there are.
  static Result<std::unique_ptr<StreamQueue>> Create(int device, Stream stream, int slots);

  // Graphs are cudaGraphExec_t, of whichever copy of the runtime.
  const DeviceQueue& queue() const { return queue_; }

 protected:
  DeviceQueue queue_;
};

}  // namespace octavo::cuda
