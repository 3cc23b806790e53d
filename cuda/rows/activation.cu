// silu_mul and gelu_tanh_mul: out = act(gate) * up, gate_up = [gate | up]; clamped_swiglu: the same
// with both clamped and one added to up.
//
// Shapes: out [N, I], gate_up [N, 2I]. Grid: a thread for each 16 bytes of out (one element where
// rows are not aligned). Bound by bytes: 3 * N * I elements. Sources: Shazeer, 2020; Hendrycks and
// Gimpel, 2016 (the tanh form).
#include "base/ops_check.h"
#include "common/element.cuh"
#include "common/launch.h"
#include "common/ptx.cuh"
#include "common/rows.h"
#include "octavo/cuda_layers.h"
#include "octavo/cuda_ops.h"
#include "rows/activation.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

struct GateParams {
  const char* gate_up;
  char* out;
  int64_t gate_up_stride;  // bytes
  int64_t out_stride;
  int64_t units;  // of all rows
  int32_t row_units;
  int32_t n;
  float alpha, limit;  // of clamped_swiglu
};

template <class Gate>
struct Times {
  __device__ static float Of(const GateParams&, float gate, float up) {
    return Gate::Of(gate) * up;
  }
};

struct Clamped {
  // Comparisons, not fminf: a NaN stays one.
  __device__ static float Of(const GateParams& p, float gate, float up) {
    const float g = gate > p.limit ? p.limit : gate;
    const float high = up > p.limit ? p.limit : up, u = high < -p.limit ? -p.limit : high;
    return (u + 1.0f) * (g / (expf(g * -p.alpha) + 1.0f));
  }
};

template <typename T, int kWidth, class Act>
__global__ void __launch_bounds__(kThreads) GateKernel(const __grid_constant__ GateParams p) {
  GridDependencyWait();
  GridDependencyLaunch();
  const int64_t unit = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (unit >= p.units) return;
  // 32 bits suffice almost always, and 64-bit division is slow.
  const int64_t row = p.units <= UINT32_MAX
                          ? static_cast<uint32_t>(unit) / static_cast<uint32_t>(p.row_units)
                          : unit / p.row_units;
  const int64_t at = (unit - row * p.row_units) * kWidth;
  const T* const gate = reinterpret_cast<const T*>(p.gate_up + row * p.gate_up_stride) + at;
  float g[kWidth], u[kWidth];
  LoadElements<T, kWidth>(gate, g);
  LoadElements<T, kWidth>(gate + p.n, u);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) g[i] = Act::Of(p, g[i], u[i]);
  StoreElements<T, kWidth>(reinterpret_cast<T*>(p.out + row * p.out_stride) + at, g);
}

template <typename T, class Act>
Status LaunchGate(GateParams p, int64_t rows, bool wide, cudaStream_t stream) {
  p.row_units = wide ? p.n / kWideElements<T> : p.n;
  p.units = rows * p.row_units;
  const int64_t grid = (p.units + kThreads - 1) / kThreads;
  if (grid > INT32_MAX) return InvalidOp("gated activation", "out is too large: cut it by rows");
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(grid);
  shape.threads = kThreads;
  shape.stream = stream;
  return wide ? LaunchDependent(GateKernel<T, kWideElements<T>, Act>, shape, p)
              : LaunchDependent(GateKernel<T, 1, Act>, shape, p);
}

template <class Act>
Status Gated(const TensorView& out, const TensorView& gate_up, float alpha, float limit,
             cudaStream_t stream) {
  if (out.num_elements() == 0) return Status::Ok();
  if (out.shape[1] > INT32_MAX) return InvalidOp("gated activation", "out has 2^31 columns");
  GateParams p{};
  p.gate_up = gate_up.ptr<char>();
  p.out = out.ptr<char>();
  p.gate_up_stride = StridesOf(gate_up).token;
  p.out_stride = StridesOf(out).token;
  p.n = static_cast<int32_t>(out.shape[1]);
  p.alpha = alpha;
  p.limit = limit;
  const bool wide = WideRows(out, p.n) && WideRows(gate_up, p.n);
  switch (out.dtype) {
    case DType::kF32:
      return LaunchGate<float, Act>(p, out.shape[0], wide, stream);
    case DType::kF16:
      return LaunchGate<__half, Act>(p, out.shape[0], wide, stream);
    default:
      return LaunchGate<__nv_bfloat16, Act>(p, out.shape[0], wide, stream);
  }
}

template <class Act>
Status Gated(const GatedActivationArgs& a, cudaStream_t stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  return Gated<Act>(a.out, a.gate_up, 0.0f, 0.0f, stream);
}

}  // namespace

Status SiluMul(const GatedActivationArgs& a, Stream stream) {
  return Gated<Times<Silu>>(a, stream);
}

Status GeluTanhMul(const GatedActivationArgs& a, Stream stream) {
  return Gated<Times<GeluTanh>>(a, stream);
}

Status ClampedSwiglu(const ClampedSwigluArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  return Gated<Clamped>(a.out, a.gate_up, a.alpha, a.limit, stream);
}

}  // namespace octavo::cuda
