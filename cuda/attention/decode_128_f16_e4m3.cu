#include "attention/decode_instance.cuh"

namespace octavo::cuda {

template Status LaunchDecodeOf<__half, 128, E4m3>(const DecodeChoice&, const DecodeParams&,
                                                  const LaunchShape&);

}  // namespace octavo::cuda
