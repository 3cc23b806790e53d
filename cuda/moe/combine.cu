// moe_combine: out[n] = the sum over j of weights[n, j] * rows[place[n, j]], in the order of j.
//
// Shapes: out [N, H], rows [P, H], place [N, k] int32, weights [N, k] float32. Grid: a thread for
// each 16 bytes of out (one element where rows are not aligned). Bound by bytes: (k + 1) * N * H
// elements. A place out of range adds nothing.
#include "base/ops_check.h"
#include "common/element.cuh"
#include "common/launch.h"
#include "common/ptx.cuh"
#include "common/rows.h"
#include "octavo/cuda_layers.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

struct CombineParams {
  const char* rows;
  char* out;
  const int32_t* place;
  const float* weights;
  int64_t rows_stride, out_stride;       // bytes
  int64_t place_stride, weights_stride;  // elements
  int64_t units;                         // of all rows of out
  int64_t num_rows;                      // P
  int64_t row_units;
  int32_t k;
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) CombineKernel(const __grid_constant__ CombineParams p) {
  GridDependencyWait();
  GridDependencyLaunch();
  const int64_t unit = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (unit >= p.units) return;
  // 32 bits suffice almost always, and 64-bit division is slow.
  const int64_t n = p.units <= UINT32_MAX
                        ? static_cast<uint32_t>(unit) / static_cast<uint32_t>(p.row_units)
                        : unit / p.row_units;
  const int64_t at = (unit - n * p.row_units) * kWidth;
  const int32_t* const place = p.place + n * p.place_stride;
  const float* const weights = p.weights + n * p.weights_stride;
  float sum[kWidth] = {};
  for (int j = 0; j < p.k; ++j) {
    const int64_t row = place[j];
    if (row < 0 || row >= p.num_rows) continue;
    const float weight = weights[j];
    float x[kWidth];
    LoadElements<T, kWidth>(reinterpret_cast<const T*>(p.rows + row * p.rows_stride) + at, x);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum[i] = fmaf(x[i], weight, sum[i]);
  }
  StoreElements<T, kWidth>(reinterpret_cast<T*>(p.out + n * p.out_stride) + at, sum);
}

template <typename T>
Status LaunchCombine(CombineParams p, int64_t tokens, int64_t columns, bool wide,
                     cudaStream_t stream) {
  p.row_units = wide ? columns / kWideElements<T> : columns;
  p.units = tokens * p.row_units;
  const int64_t grid = (p.units + kThreads - 1) / kThreads;
  if (grid > INT32_MAX || p.row_units > INT32_MAX) {
    return InvalidOp("moe_combine", "out is too large: cut it by rows");
  }
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(grid);
  shape.threads = kThreads;
  shape.stream = stream;
  return wide ? LaunchDependent(CombineKernel<T, kWideElements<T>>, shape, p)
              : LaunchDependent(CombineKernel<T, 1>, shape, p);
}

}  // namespace

Status MoeCombine(const MoeCombineArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  if (a.out.num_elements() == 0) return Status::Ok();
  if (a.place.shape[1] > INT32_MAX) return InvalidOp("moe_combine", "place has 2^31 columns");
  CombineParams p{};
  p.rows = a.rows.ptr<char>();
  p.out = a.out.ptr<char>();
  p.place = a.place.ptr<int32_t>();
  p.weights = a.weights.ptr<float>();
  p.rows_stride = StridesOf(a.rows).token;
  p.out_stride = StridesOf(a.out).token;
  p.place_stride = a.place.stride[0];
  p.weights_stride = a.weights.stride[0];
  p.num_rows = a.rows.shape[0];
  p.k = static_cast<int32_t>(a.place.shape[1]);
  const int64_t tokens = a.out.shape[0], columns = a.out.shape[1];
  const bool wide = WideRows(a.out, columns) && WideRows(a.rows, columns);
  switch (a.out.dtype) {
    case DType::kF32:
      return LaunchCombine<float>(p, tokens, columns, wide, stream);
    case DType::kF16:
      return LaunchCombine<__half>(p, tokens, columns, wide, stream);
    default:
      return LaunchCombine<__nv_bfloat16>(p, tokens, columns, wide, stream);
  }
}

}  // namespace octavo::cuda
