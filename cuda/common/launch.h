// Launches and device facts, as Status. Nothing here allocates device memory or synchronises, so
// everything may run while a stream is being captured.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "octavo/status.h"

namespace octavo::cuda {

inline Status ToStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return Status::Ok();
  return Status::Internal(std::string(what) + ": " + cudaGetErrorString(error));
}

// What launchers ask about the current device. Read once per device and process.
struct DeviceFacts {
  int multiprocessors = 0;
  int shared_per_block = 0;  // bytes that a block may opt in to
  int shared_per_multiprocessor = 0;
  bool clusters = false;          // thread block clusters: compute capability 9.0 on
  bool wgmma = false;             // warpgroup products (sm_90a): compute capability 9.0 alone
  bool dependent_launch = false;  // programmatic dependent launch: compute capability 9.0 on
};

Result<DeviceFacts> CurrentDeviceFacts();

// Raises a kernel's limit of dynamic shared memory and asks for the largest carve-out. Idempotent.
Status AllowSharedMemory(const void* kernel, int bytes);

struct LaunchShape {
  unsigned grid = 1;
  unsigned grid_y = 1;
  unsigned cluster = 1;  // CTAs that share their shared memory; divides the grid
  unsigned threads = 1;  // of a row of threads
  unsigned threads_y = 1;
  int shared_bytes = 0;
  bool dependent = false;  // may start before the stream's previous kernel has ended
  cudaStream_t stream = nullptr;
};

Status LaunchKernel(const void* kernel, const LaunchShape& shape, void** args);

}  // namespace octavo::cuda

#include "common/invoke.h"

namespace octavo::cuda {

// Launch, beginning before the stream's previous kernel has ended where the device can: the
// kernel calls GridDependencyWait first.
template <typename Params>
Status LaunchDependent(void (*kernel)(Params), LaunchShape shape, const Params& params) {
  const Result<DeviceFacts> facts = CurrentDeviceFacts();
  if (!facts.ok()) return facts.status();
  shape.dependent = facts.value().dependent_launch;
  return Launch(kernel, shape, params);
}

}  // namespace octavo::cuda
