#include "attention/decode_fresh.cuh"

namespace octavo::cuda {

template Status LaunchFreshDecodeOf<__half, 64>(const FreshDecodeParams&, const LaunchShape&);

}  // namespace octavo::cuda
