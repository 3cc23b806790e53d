#include "linear/linear_wgmma.cuh"

namespace octavo::cuda {

template Status LaunchWideOf<__nv_bfloat16>(const WideChoice&, const WideParams&, cudaStream_t);

}  // namespace octavo::cuda
