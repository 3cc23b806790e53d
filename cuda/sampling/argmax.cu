// argmax: the id of the largest logit of each row, the lowest among equals; -1 for a row with NaN.
//
// Shapes: logits [S, V] float32, token [S]. Grid: a CTA a row. Bound by bytes: 4 * S * V.
#include "base/ops_check.h"
#include "common/launch.h"
#include "common/rows.h"
#include "octavo/cuda_ops.h"
#include "sampling/row.cuh"

namespace octavo::cuda {
namespace {

struct ArgmaxParams {
  int32_t* token;
  const float* logits;
  int64_t stride;  // elements
  int32_t vocab;
};

template <int kWidth>
__global__ void __launch_bounds__(kRowThreads, 1)
    ArgmaxKernel(const __grid_constant__ ArgmaxParams p) {
  __shared__ unsigned long long keys[kRowWarps];
  GridDependencyWait();
  GridDependencyLaunch();
  const float* const x = p.logits + blockIdx.x * p.stride;
  unsigned long long key = 0;
  bool nan = false;
  ForEach<kWidth, 16>(x, p.vocab, [&](int i, float value) {
    nan = nan || isnan(value);
    const unsigned long long mine = LargestKey(value, i);
    key = mine > key ? mine : key;
  });
  const Largest largest = FindLargest(x, key, nan, keys);
  if (threadIdx.x == 0) p.token[blockIdx.x] = largest.nan ? -1 : largest.id;
}

}  // namespace

Status Argmax(const ArgmaxArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  if (a.logits.shape[0] == 0) return Status::Ok();
  const ArgmaxParams p{a.token.ptr<int32_t>(), a.logits.ptr<float>(), a.logits.stride[0],
                       static_cast<int32_t>(a.logits.shape[1])};
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(a.logits.shape[0]);
  shape.threads = kRowThreads;
  shape.stream = stream;
  return WideRows(a.logits, 0) ? LaunchDependent(ArgmaxKernel<4>, shape, p)
                               : LaunchDependent(ArgmaxKernel<1>, shape, p);
}

}  // namespace octavo::cuda
