#include "attention/prefill_wgmma.cuh"

namespace octavo::cuda {

template Status LaunchWgmmaOf<__half, 128>(const WgmmaParams&, const LaunchShape&);

}  // namespace octavo::cuda
