#include "moe/grouped.cuh"

namespace octavo::cuda {

template Status LaunchGroupedOf<__nv_bfloat16>(GroupedTile, const GroupedParams&,
                                               const DeviceFacts&, cudaStream_t);

}  // namespace octavo::cuda
