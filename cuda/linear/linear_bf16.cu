#include "linear/linear.cuh"

namespace octavo::cuda {

template Status LaunchLinearOf<__nv_bfloat16, LinearKind::kPlain>(const LinearChoice&,
                                                                  const LinearParams&,
                                                                  cudaStream_t);

}  // namespace octavo::cuda
