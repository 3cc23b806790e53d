// gated_rms_norm: y = x * silu(gate); out = y / rms(y) * weight, the mean over each of G groups.
//
// Shapes: out, x, gate [N, I], weight [I]. Grid: a CTA a row and group. A thread computes its
// products twice rather than keep them: they come from L1 the second time. Bound by bytes: 3 * N *
// I elements.
#include "base/ops_check.h"
#include "common/element.cuh"
#include "common/launch.h"
#include "common/reduce.cuh"
#include "common/rows.h"
#include "octavo/cuda_layers.h"
#include "rows/norm.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

struct GatedNormParams {
  const char* x;
  const char* gate;
  char* out;
  const char* weight;
  int64_t x_stride, gate_stride, out_stride;  // bytes
  int32_t groups;
  int32_t n;  // columns of a group
  float eps;
};

template <typename T, int kWidth>
__device__ __forceinline__ void Products(const T* x, const T* gate, float (&y)[kWidth]) {
  float g[kWidth];
  LoadElements<T, kWidth>(x, y);
  LoadElements<T, kWidth>(gate, g);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) y[i] *= g[i] / (1.0f + expf(-g[i]));
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    GatedNormKernel(const __grid_constant__ GatedNormParams p) {
  __shared__ float scratch[kThreads / kWarpSize];
  GridDependencyWait();
  GridDependencyLaunch();
  const int64_t row = blockIdx.x / p.groups;
  const int64_t first = int64_t{blockIdx.x - row * p.groups} * p.n;
  const T* const x = reinterpret_cast<const T*>(p.x + row * p.x_stride) + first;
  const T* const gate = reinterpret_cast<const T*>(p.gate + row * p.gate_stride) + first;
  const T* const weight = reinterpret_cast<const T*>(p.weight) + first;
  T* const out = reinterpret_cast<T*>(p.out + row * p.out_stride) + first;
  float sum = 0.0f, y[kWidth];
  for (int i = threadIdx.x * kWidth; i < p.n; i += kThreads * kWidth) {
    Products<T, kWidth>(x + i, gate + i, y);
    sum = AddSquares(sum, y);
  }
  const float inverse = InverseRms(SumOfCta(sum, scratch), p.n, p.eps);
  for (int i = threadIdx.x * kWidth; i < p.n; i += kThreads * kWidth) {
    float w[kWidth];
    Products<T, kWidth>(x + i, gate + i, y);
    LoadElements<T, kWidth>(weight + i, w);
    ScaleByWeight(y, w, inverse, 0.0f);
    StoreElements<T, kWidth>(out + i, y);
  }
}

template <typename T>
Status LaunchNorm(const GatedNormParams& p, int64_t ctas, bool wide, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(ctas);
  shape.threads = kThreads;
  shape.stream = stream;
  return wide ? LaunchDependent(GatedNormKernel<T, kWideElements<T>>, shape, p)
              : LaunchDependent(GatedNormKernel<T, 1>, shape, p);
}

}  // namespace

Status GatedRmsNorm(const GatedRmsNormArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  const int64_t ctas = a.x.shape[0] * a.groups;
  if (ctas == 0) return Status::Ok();
  if (ctas > INT32_MAX || a.x.shape[1] > INT32_MAX / 2) {
    return InvalidOp("gated_rms_norm", "x has 2^31 groups or 2^30 columns: cut it");
  }
  GatedNormParams p{};
  p.x = a.x.ptr<char>();
  p.gate = a.gate.ptr<char>();
  p.out = a.out.ptr<char>();
  p.weight = a.weight.ptr<char>();
  p.x_stride = StridesOf(a.x).token;
  p.gate_stride = StridesOf(a.gate).token;
  p.out_stride = StridesOf(a.out).token;
  p.groups = static_cast<int32_t>(a.groups);
  p.n = static_cast<int32_t>(a.x.shape[1] / a.groups);
  p.eps = a.eps;
  const bool wide = WideRows(a.x, p.n) && WideRows(a.gate, p.n) && WideRows(a.out, p.n) &&
                    WideRows(a.weight, p.n);
  switch (a.x.dtype) {
    case DType::kF32:
      return LaunchNorm<float>(p, ctas, wide, stream);
    case DType::kF16:
      return LaunchNorm<__half>(p, ctas, wide, stream);
    default:
      return LaunchNorm<__nv_bfloat16>(p, ctas, wide, stream);
  }
}

}  // namespace octavo::cuda
