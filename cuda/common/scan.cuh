// Sums before each of a list of counts, by one CTA: how kernels cut work whose amounts only the
// device knows.
#pragma once

#include "common/host_device.h"
#include "common/ptx.cuh"

namespace octavo::cuda {

inline constexpr int kMaxScanWarps = 32;  // of a CTA: entries of `scratch`

// prefix[i] = count(0) + ... + count(i - 1) for i in [0, n], in shared memory. Ends with a barrier.
// REQUIRES: every thread of the CTA calls; blockDim.x is a multiple of 32.
template <typename Count>
__device__ __forceinline__ void SumsBefore(int32_t* prefix, int n, int32_t* scratch, Count count) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int each = CeilDiv(n, static_cast<int>(blockDim.x));
  const int begin = Min(static_cast<int>(threadIdx.x) * each, n), end = Min(begin + each, n);
  int32_t mine = 0;
  for (int i = begin; i < end; ++i) mine += count(i);
  int32_t sum = mine;  // of the warp's lanes up to this one
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const int32_t other = __shfl_up_sync(kFullWarp, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == kWarpSize - 1) scratch[warp] = sum;
  __syncthreads();
  int32_t before = sum - mine;
  for (int w = 0; w < warp; ++w) before += scratch[w];
  for (int i = begin; i < end; ++i) {
    prefix[i] = before;
    before += count(i);
  }
  // The last of the threads that own entries, or thread 0 where there are none, knows the total.
  if (end == n && (begin < end || threadIdx.x == 0)) prefix[n] = before;
  __syncthreads();
}

}  // namespace octavo::cuda
