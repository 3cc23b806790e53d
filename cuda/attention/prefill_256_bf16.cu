#include "attention/prefill.cuh"

namespace octavo::cuda {

template Status LaunchPrefillOf<__nv_bfloat16, 256>(const PrefillParams&, const LaunchShape&);

}  // namespace octavo::cuda
