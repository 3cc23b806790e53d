#include "linear/linear.cuh"

namespace octavo::cuda {

template Status LaunchLinearOf<__half, LinearKind::kGated>(const LinearChoice&, const LinearParams&,
                                                           cudaStream_t);

}  // namespace octavo::cuda
