// rms_norm and add_rms_norm: out = x / rms(x) * (weight + offset), after residual += x in the
// second.
//
// Shapes: x, out, residual [N, H] or [N, heads, H]; weight [H]. Grid: rows of up to kWarpRow
// elements take a warp each, eight a CTA; longer ones a CTA with a thread for each 16 bytes, at
// most 1024. A thread keeps its first piece in registers and reads the others again (from L1).
// Bound by bytes: 2 * N * H elements, 4 * N * H with the residual. Source: Zhang and Sennrich,
// 2019.
#include "base/ops_check.h"
#include "common/launch.h"
#include "common/rows.h"
#include "octavo/cuda_ops.h"
#include "rows/norm.cuh"

namespace octavo::cuda {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kWarpsOfWarpRows = 8;
// Pieces of its row that a thread keeps in registers, and with a residual pieces of that as well.
template <bool kAdd>
constexpr int kKeptOf = kAdd ? 2 : 4;
// From this many rows on memory is full of loads anyway: fewer threads a row then wait less for
// each other. Below, a row's latency counts.
constexpr int64_t kManyRows = 1024;

struct NormParams {
  const char* x;
  char* out;
  char* residual;  // null in rms_norm
  const char* weight;
  RowStrides x_stride, out_stride, residual_stride;
  int64_t rows;  // N * heads
  int32_t heads;
  int32_t n;
  int32_t row_threads;
  float eps;
  float offset;
  bool invariant;  // the threads of a row do not depend on the number of rows
};

// residual += a, rounded; gives what the residual then holds.
template <typename T, int kWidth>
__device__ __forceinline__ ElementPack<T, kWidth> AddToResidual(const ElementPack<T, kWidth>& a,
                                                                const ElementPack<T, kWidth>& was,
                                                                T* residual) {
  float x[kWidth], r[kWidth];
  ToFloats(was, r);
  ToFloats(a, x);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) x[j] += r[j];
  const ElementPack<T, kWidth> sum = PackOf<T>(x);
  StorePack(residual, sum);
  return sum;
}

template <typename T, int kWidth, bool kAdd>
__global__ void __launch_bounds__(kMaxThreads, 1) NormKernel(const __grid_constant__ NormParams p) {
  __shared__ float scratch[kMaxThreads / kWarpSize];
  GridDependencyWait();
  GridDependencyLaunch();
  const int in_cta = threadIdx.x / p.row_threads;
  const int64_t row = int64_t{blockIdx.x} * (blockDim.x / p.row_threads) + in_cta;
  if (row >= p.rows) return;  // whole warps; a CTA of one row is never here
  const int64_t token = p.heads == 1 ? row : row / p.heads;
  const int64_t head = row - token * p.heads;
  const T* const x =
      reinterpret_cast<const T*>(p.x + token * p.x_stride.token + head * p.x_stride.head);
  T* const residual = reinterpret_cast<T*>(p.residual + token * p.residual_stride.token);
  T* const out =
      reinterpret_cast<T*>(p.out + token * p.out_stride.token + head * p.out_stride.head);
  const T* const weight = reinterpret_cast<const T*>(p.weight);

  using Pack = ElementPack<T, kWidth>;
  constexpr int kKept = kKeptOf<kAdd>;
  const int first = (threadIdx.x - in_cta * p.row_threads) * kWidth;
  const int step = p.row_threads * kWidth;
  Pack kept[kKept], before[kAdd ? kKept : 1];
  float sum = 0.0f;
#pragma unroll
  for (int v = 0; v < kKept; ++v) {
    if (first + v * step >= p.n) continue;
    kept[v] = LoadPack<T, kWidth>(x + first + v * step);
    if constexpr (kAdd) before[v] = LoadPack<T, kWidth>(residual + first + v * step);
  }
#pragma unroll
  for (int v = 0; v < kKept; ++v) {
    const int i = first + v * step;
    if (i >= p.n) continue;
    if constexpr (kAdd) kept[v] = AddToResidual<T, kWidth>(kept[v], before[v], residual + i);
    float a[kWidth];
    ToFloats(kept[v], a);
    sum = AddSquares(sum, a);
  }
#pragma unroll 1
  for (int i = first + kKept * step; i < p.n; i += step) {
    Pack a = LoadPack<T, kWidth>(x + i);
    if constexpr (kAdd) {
      a = AddToResidual<T, kWidth>(a, LoadPack<T, kWidth>(residual + i), residual + i);
    }
    float b[kWidth];
    ToFloats(a, b);
    sum = AddSquares(sum, b);
  }
  sum = p.row_threads == kWarpSize ? SumOfWarp(sum) : SumOfCta(sum, scratch);
  const float inverse = InverseRms(sum, p.n, p.eps);
  const auto store = [&](const Pack& pack, int i) {
    float a[kWidth], w[kWidth];
    ToFloats(pack, a);
    LoadElements<T, kWidth>(weight + i, w);
    ScaleByWeight(a, w, inverse, p.offset);
    StoreElements<T, kWidth>(out + i, a);
  };
#pragma unroll
  for (int v = 0; v < kKept; ++v) {
    if (first + v * step < p.n) store(kept[v], first + v * step);
  }
#pragma unroll 1
  for (int i = first + kKept * step; i < p.n; i += step) {
    store(LoadPack<T, kWidth>((kAdd ? residual : x) + i), i);
  }
}

template <typename T, bool kAdd>
Status LaunchNorm(NormParams p, bool wide, cudaStream_t stream) {
  const int width = wide ? kWideElements<T> : 1;
  const int units = static_cast<int>((p.n + width - 1) / width);
  LaunchShape shape;
  shape.stream = stream;
  if (p.n <= kWarpRow) {
    p.row_threads = kWarpSize;
    shape.threads = kWarpsOfWarpRows * kWarpSize;
    shape.grid = static_cast<unsigned>((p.rows + kWarpsOfWarpRows - 1) / kWarpsOfWarpRows);
  } else {
    const int each = p.rows >= kManyRows && !p.invariant ? kKeptOf<kAdd> : 1;
    const int threads = (units + each * kWarpSize - 1) / (each * kWarpSize) * kWarpSize;
    p.row_threads =
        threads < 2 * kWarpSize ? 2 * kWarpSize : (threads > kMaxThreads ? kMaxThreads : threads);
    shape.threads = static_cast<unsigned>(p.row_threads);
    shape.grid = static_cast<unsigned>(p.rows);
  }
  return wide ? LaunchDependent(NormKernel<T, kWideElements<T>, kAdd>, shape, p)
              : LaunchDependent(NormKernel<T, 1, kAdd>, shape, p);
}

template <bool kAdd>
Status LaunchNormOf(DType dtype, const NormParams& p, bool wide, cudaStream_t stream) {
  if (p.rows == 0) return Status::Ok();
  if (p.rows > INT32_MAX) return InvalidOp("rms_norm", "x has 2^31 rows or more: cut it");
  switch (dtype) {
    case DType::kF32:
      return LaunchNorm<float, kAdd>(p, wide, stream);
    case DType::kF16:
      return LaunchNorm<__half, kAdd>(p, wide, stream);
    default:
      return LaunchNorm<__nv_bfloat16, kAdd>(p, wide, stream);
  }
}

template <typename Args>
NormParams MakeParams(const Args& a) {
  NormParams p{};
  p.x = a.x.template ptr<char>();
  p.out = a.out.template ptr<char>();
  p.weight = a.weight.template ptr<char>();
  p.x_stride = StridesOf(a.x);
  p.out_stride = StridesOf(a.out);
  p.heads = a.x.rank == 3 ? static_cast<int32_t>(a.x.shape[1]) : 1;
  p.rows = a.x.shape[0] * p.heads;
  p.n = static_cast<int32_t>(a.x.shape[a.x.rank - 1]);
  p.eps = a.eps;
  p.offset = a.weight_offset;
  p.invariant = a.invariant;
  return p;
}

template <typename Args>
bool Wide(const Args& a) {
  const int64_t n = a.x.shape[a.x.rank - 1];
  return WideRows(a.x, n) && WideRows(a.out, n) && WideRows(a.weight, n);
}

}  // namespace

Status RmsNorm(const RmsNormArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  return LaunchNormOf<false>(a.x.dtype, MakeParams(a), Wide(a), stream);
}

Status AddRmsNorm(const AddRmsNormArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  NormParams p = MakeParams(a);
  p.residual = a.residual.ptr<char>();
  p.residual_stride = StridesOf(a.residual);
  return LaunchNormOf<true>(a.x.dtype, p, Wide(a) && WideRows(a.residual, a.x.shape[1]), stream);
}

}  // namespace octavo::cuda
