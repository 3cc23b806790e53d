// The parameters of the product of any number of rows, and its launchers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/launch.h"
#include "gemm/choice.h"

namespace octavo::cuda {

struct GemmParams {
  const char* x;
  const char* weight;
  const char* bias;  // or null
  char* out;
  int64_t x_stride, weight_stride, out_stride;  // bytes
  int32_t m, n, k;
  int32_t row_tiles, column_tiles;
  bool pairs;  // two neighbours of out are one aligned word
};

// Fills in the tiles of `p`. One instantiation each, in gemm_<dtype>.cu.
template <typename T>
Status LaunchGemmOf(GemmTile tile, GemmParams p, cudaStream_t stream);
extern template Status LaunchGemmOf<__nv_bfloat16>(GemmTile, GemmParams, cudaStream_t);
extern template Status LaunchGemmOf<__half>(GemmTile, GemmParams, cudaStream_t);

}  // namespace octavo::cuda
