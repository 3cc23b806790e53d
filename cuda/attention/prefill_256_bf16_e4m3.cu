#include "attention/prefill.cuh"

namespace octavo::cuda {

template Status LaunchPrefillOf<__nv_bfloat16, 256, E4m3>(const PrefillParams&, const LaunchShape&);

}  // namespace octavo::cuda
