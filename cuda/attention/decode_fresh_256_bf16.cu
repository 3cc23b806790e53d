#include "attention/decode_fresh.cuh"

namespace octavo::cuda {

template Status LaunchFreshDecodeOf<__nv_bfloat16, 256>(const FreshDecodeParams&,
                                                        const LaunchShape&);

}  // namespace octavo::cuda
