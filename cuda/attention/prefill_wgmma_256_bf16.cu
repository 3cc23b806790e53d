#include "attention/prefill_wgmma.cuh"

namespace octavo::cuda {

template Status LaunchWgmmaOf<__nv_bfloat16, 256>(const WgmmaParams&, const LaunchShape&);

}  // namespace octavo::cuda
