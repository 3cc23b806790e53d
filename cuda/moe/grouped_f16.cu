#include "moe/grouped.cuh"

namespace octavo::cuda {

template Status LaunchGroupedOf<__half>(GroupedTile, const GroupedParams&, const DeviceFacts&,
                                        cudaStream_t);

}  // namespace octavo::cuda
