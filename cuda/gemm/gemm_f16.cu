#include "gemm/gemm.cuh"

namespace octavo::cuda {

template Status LaunchGemmOf<__half>(GemmTile, GemmParams, cudaStream_t);

}  // namespace octavo::cuda
