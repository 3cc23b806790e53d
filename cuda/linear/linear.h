// The parameters of the product of few rows, and its launchers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/launch.h"
#include "linear/choice.h"

namespace octavo::cuda {

struct LinearParams {
  const char* weight;
  const char* x;
  char* out;
  const char* bias;                             // or null
  int64_t weight_stride, x_stride, out_stride;  // bytes
  int32_t m, n, k;
  int32_t units;  // of k
  int32_t tiles;  // of n
  int32_t warps;
  int32_t team_warps;
  // Nothing that is still running writes the weight: it is read before the kernel in front has
  // ended.
  bool weight_ready;
};

template <typename T>
Status LaunchLinearOf(const LinearChoice& choice, const LinearParams& p, cudaStream_t stream);
extern template Status LaunchLinearOf<__nv_bfloat16>(const LinearChoice&, const LinearParams&,
                                                     cudaStream_t);
extern template Status LaunchLinearOf<__half>(const LinearChoice&, const LinearParams&,
                                              cudaStream_t);

}  // namespace octavo::cuda
