// Root-mean-square norm of one row, by the threads that share it.
#pragma once

#include "common/element.cuh"
#include "common/reduce.cuh"

namespace octavo::cuda {

// Rows of up to this many elements belong to one warp, longer ones to a CTA. The fused op counts on
// it: a head's sum then has one order of additions.
inline constexpr int kWarpRow = 512;

__device__ __forceinline__ float InverseRms(float sum_of_squares, int n, float eps) {
  return 1.0f / sqrtf(sum_of_squares / static_cast<float>(n) + eps);
}

template <int kWidth>
__device__ __forceinline__ float AddSquares(float sum, const float (&x)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sum = fmaf(x[i], x[i], sum);
  return sum;
}

template <int kWidth>
__device__ __forceinline__ void ScaleByWeight(float (&x)[kWidth], const float (&weight)[kWidth],
                                              float inverse, float offset) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) x[i] = x[i] * inverse * (weight[i] + offset);
}

}  // namespace octavo::cuda
