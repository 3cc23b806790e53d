// Host side of the wgmma prefill kernel: the cache's tensor map and the list of instantiations.
#include "attention/prefill_wgmma.h"
#include "base/ops_check.h"
#include "common/tensor_map.h"

namespace octavo::cuda {
namespace {

template <typename T>
Status ByHeadDim(int head_dim, const WgmmaParams& p, const LaunchShape& launch) {
  switch (head_dim) {
    case 64:
      return LaunchWgmmaOf<T, 64>(p, launch);
    case 128:
      return LaunchWgmmaOf<T, 128>(p, launch);
    default:
      return LaunchWgmmaOf<T, 256>(p, launch);
  }
}

}  // namespace

Status LaunchWgmmaPrefill(int head_dim, bool half, const TensorView& cache, const PrefillParams& p,
                          const LaunchShape& launch) {
  WgmmaParams params{};
  OCTAVO_RETURN_IF_ERROR(EncodeTensorMap(cache, {1, 1, 1, kTileTokens, kBoxDims}, &params.cache));
  params.prefill = p;
  return half ? ByHeadDim<__half>(head_dim, params, launch)
              : ByHeadDim<__nv_bfloat16>(head_dim, params, launch);
}

}  // namespace octavo::cuda
