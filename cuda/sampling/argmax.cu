// argmax: the id of the largest logit of each row, the lowest among equals; -1 for a row with NaN.
//
// Shapes: logits [S, V] float32, bfloat16 or float16, token [S]. Grid: a CTA a row, or a cluster
// where rows are few. Bound by bytes: S * V elements.
#include "base/ops_check.h"
#include "common/launch.h"
#include "common/rows.h"
#include "octavo/cuda_ops.h"
#include "sampling/row.cuh"
#include "sampling/shape.h"

namespace octavo::cuda {
namespace {

struct ArgmaxParams {
  int32_t* token;
  const void* logits;
  int64_t stride;  // elements
  int32_t vocab;
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(kRowThreads, 1)
    ArgmaxKernel(const __grid_constant__ ArgmaxParams p) {
  __shared__ LargestScratch scratch;
  GridDependencyWait();
  GridDependencyLaunch();
  const RowTeam team;
  const int64_t row = blockIdx.x / team.size;
  const T* const x = static_cast<const T*>(p.logits) + row * p.stride;
  LargestOfThread mine;
  ForEach<kWidth, kAheadOfLargest<kWidth>>(team, x, p.vocab,
                                           [&](int i, float value) { mine.Take(i, value); });
  team.Sync();  // all have begun: their shared memory is there
  const Largest largest = FindLargest(team, x, mine, &scratch);
  if (threadIdx.x == 0 && team.rank == 0) p.token[row] = largest.nan ? -1 : largest.id;
  team.Sync();
}

template <typename T>
Status LaunchArgmax(const LaunchShape& shape, const ArgmaxParams& p, bool wide) {
  return wide ? LaunchDependent(ArgmaxKernel<T, kWideElements<T>>, shape, p)
              : LaunchDependent(ArgmaxKernel<T, 1>, shape, p);
}

}  // namespace

Status Argmax(const ArgmaxArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  if (a.logits.shape[0] == 0) return Status::Ok();
  const ArgmaxParams p{a.token.ptr<int32_t>(), a.logits.data, a.logits.stride[0],
                       static_cast<int32_t>(a.logits.shape[1])};
  LaunchShape shape;
  OCTAVO_RETURN_IF_ERROR(ShapeRowTeams(a.logits.shape[0], &shape));
  shape.stream = stream;
  const bool wide = WideRows(a.logits, 0);
  switch (a.logits.dtype) {
    case DType::kF32:
      return LaunchArgmax<float>(shape, p, wide);
    case DType::kF16:
      return LaunchArgmax<__half>(shape, p, wide);
    default:
      return LaunchArgmax<__nv_bfloat16>(shape, p, wide);
  }
}

}  // namespace octavo::cuda
