#include "attention/decode_instance.cuh"

namespace octavo::cuda {

template Status LaunchDecodeOf<__nv_bfloat16, 256, E4m3>(const DecodeChoice&, const DecodeParams&,
                                                         const LaunchShape&);

}  // namespace octavo::cuda
