// Host side of the wgmma prefill kernel: its tensor maps and the list of instantiations.
#include "attention/prefill_wgmma.h"
#include "base/ops_check.h"
#include "common/tensor_map.h"

namespace octavo::cuda {
namespace {

template <typename T>
Status ByHeadDim(int64_t head_dim, const WgmmaParams& p, const LaunchShape& launch) {
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

TensorView MappedQueries(const TensorView& q) {
  TensorView v = TensorView::Dense(q.data, q.dtype, {1, 1, q.shape[0], q.shape[1], q.shape[2]});
  for (int i = 0; i < 3; ++i) v.stride[i + 2] = q.stride[i];
  return v;
}

Status LaunchWgmmaPrefill(const TensorView& q, const TensorView& cache, const PrefillParams& p,
                          const LaunchShape& launch) {
  const auto group = static_cast<uint32_t>(p.layer.group);
  WgmmaParams params{};
  OCTAVO_RETURN_IF_ERROR(EncodeTensorMap(cache, {1, 1, 1, kTileTokens, kBoxDims}, &params.cache));
  OCTAVO_RETURN_IF_ERROR(EncodeTensorMap(
      MappedQueries(q), {1, 1, kWgmmaRows / group, group, kBoxDims}, &params.queries));
  params.prefill = p;
  return q.dtype == DType::kF16 ? ByHeadDim<__half>(q.shape[2], params, launch)
                                : ByHeadDim<__nv_bfloat16>(q.shape[2], params, launch);
}

}  // namespace octavo::cuda
