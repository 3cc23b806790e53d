#include "attention/prefill.cuh"

namespace octavo::cuda {

template Status LaunchPrefillOf<__half, 256>(const PrefillParams&, const LaunchShape&);

}  // namespace octavo::cuda
