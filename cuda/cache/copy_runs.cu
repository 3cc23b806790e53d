// Copies between the KV pool and host memory, one to a run.
//
// Shapes: pool and memory are bytes, runs [n, 3] int64 in host memory. No kernel: a run is a block
// of all layers or several, hundreds of kilobytes and more, which a copy engine moves at the speed
// of the bus without taking a multiprocessor from the step beside it. Bound by the bus; asking for
// a run takes the host about as long as the bus takes for 100 KB.
#include <cuda_runtime.h>

#include "base/ops_check.h"
#include "common/launch.h"
#include "octavo/ops_tables.h"

namespace octavo::cuda {

Status CopyRuns(const CopyRunsArgs& a, CUstream_st* stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  const cudaMemcpyKind kind = a.to_pool ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
  for (int64_t i = 0; i < a.runs.shape[0]; ++i) {
    const int64_t* run = a.runs.ptr<int64_t>() + i * a.runs.stride[0];
    uint8_t* pool = a.pool.ptr<uint8_t>() + run[0];
    uint8_t* memory = a.memory.ptr<uint8_t>() + run[1];
    OCTAVO_RETURN_IF_ERROR(
        ToStatus(cudaMemcpyAsync(a.to_pool ? pool : memory, a.to_pool ? memory : pool,
                                 static_cast<size_t>(run[2]), kind, stream),
                 "copy_runs"));
  }
  return Status::Ok();
}

}  // namespace octavo::cuda
