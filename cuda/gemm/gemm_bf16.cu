#include "gemm/gemm.cuh"

namespace octavo::cuda {

template Status LaunchGemmOf<__nv_bfloat16>(GemmTile, GemmParams, cudaStream_t);

}  // namespace octavo::cuda
