#include "linear/linear_wgmma.cuh"

namespace octavo::cuda {

template Status LaunchWideOf<__half>(const WideChoice&, const WideParams&, cudaStream_t);

}  // namespace octavo::cuda
