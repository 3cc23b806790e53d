#include "attention/decode_instance.cuh"

namespace octavo::cuda {

template Status LaunchDecodeOf<__half, 128>(const DecodeChoice&, const DecodeParams&,
                                            const LaunchShape&);

}  // namespace octavo::cuda
