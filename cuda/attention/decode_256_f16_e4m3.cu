#include "attention/decode_instance.cuh"

namespace octavo::cuda {

template Status LaunchDecodeOf<__half, 256, E4m3>(const DecodeChoice&, const DecodeParams&,
                                                  const LaunchShape&);

}  // namespace octavo::cuda
