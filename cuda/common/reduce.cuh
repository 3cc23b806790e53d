// Sums over a warp and over a CTA, in an order that depends on the shape alone.
#pragma once

#include "common/ptx.cuh"

namespace octavo::cuda {

__device__ __forceinline__ float SumOfWarp(float x) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) x += __shfl_xor_sync(kFullWarp, x, step);
  return x;
}

// The sum over the CTA, in every thread. `scratch` has an entry a warp; a second call needs a
// barrier in between or other scratch. REQUIRES: blockDim.x is a multiple of 32.
__device__ __forceinline__ float SumOfCta(float x, float* scratch) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int warps = blockDim.x / kWarpSize;
  x = SumOfWarp(x);
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  return SumOfWarp(lane < warps ? scratch[lane] : 0.0f);
}

}  // namespace octavo::cuda
