// Host side of grouped_linear, and the plain kernel for what tensor cores do not take: float32, and
// rows that do not begin on 16 bytes.
//
// The plain kernel: a warp an element of out, its lanes share k. Bound by L1: right, not fast.
#include <string>

#include "attention/schedule.h"
#include "base/ops_check.h"
#include "common/element.cuh"
#include "common/reduce.cuh"
#include "common/rows.h"
#include "moe/grouped.h"
#include "octavo/cuda_layers.h"

namespace octavo::cuda {
namespace {

constexpr const char* kOp = "grouped_linear";
constexpr int kWarps = 8;
constexpr int kPlainCtas = 32;  // a multiprocessor; more elements take turns
constexpr int64_t kMaxExtent = INT64_C(1) << 30;
constexpr int64_t kSmallestTile = 64 * 16;  // elements of out

template <typename T>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    PlainKernel(const __grid_constant__ GroupedParams p) {
  GridDependencyWait();
  GridDependencyLaunch();
  const int lane = threadIdx.x % kWarpSize;
  const int64_t warps = int64_t{gridDim.x} * kWarps;
  const int64_t elements = int64_t{p.places} * p.m;
  for (int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize; i < elements;
       i += warps) {
    const int place = static_cast<int>(i / p.m), row = static_cast<int>(i - int64_t{place} * p.m);
    const int e = FindOwner(p.start, p.experts, place);
    if (place < p.start[e] || place >= p.start[e + 1]) continue;
    const T* const x = reinterpret_cast<const T*>(p.x + place * p.x_stride);
    const T* const w =
        reinterpret_cast<const T*>(p.weight + e * p.expert_stride + row * p.weight_stride);
    float sum = 0.0f;
    for (int k = lane; k < p.k; k += kWarpSize) sum = fmaf(ToFloat(w[k]), ToFloat(x[k]), sum);
    sum = SumOfWarp(sum);
    if (lane != 0) continue;
    if (p.bias != nullptr) {
      sum += ToFloat(reinterpret_cast<const T*>(p.bias + e * p.bias_stride)[row]);
    }
    Store(reinterpret_cast<T*>(p.out + place * p.out_stride) + row, sum);
  }
}

Status LaunchPlain(DType dtype, const GroupedParams& p, const DeviceFacts& facts,
                   cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(Min<int64_t>(CeilDiv(int64_t{p.places} * p.m, int64_t{kWarps}),
                                                  int64_t{facts.multiprocessors} * kPlainCtas));
  shape.threads = kWarps * kWarpSize;
  shape.stream = stream;
  if (dtype == DType::kF32) return LaunchDependent(PlainKernel<float>, shape, p);
  if (dtype == DType::kF16) return LaunchDependent(PlainKernel<__half>, shape, p);
  return LaunchDependent(PlainKernel<__nv_bfloat16>, shape, p);
}

Status CheckFits(const GroupedLinearArgs& a) {
  const int64_t experts = a.weight.shape[0], places = a.x.shape[0], m = a.weight.shape[1];
  if (experts > kMaxGroupedExperts) {
    return InvalidOp(
        kOp, "weight has " + std::to_string(experts) + " experts, need at most 1024 on CUDA");
  }
  if (places > kMaxExtent || m > kMaxExtent || a.x.shape[1] > kMaxExtent) {
    return InvalidOp(kOp, "x or weight has an extent above 2^30");
  }
  // Tiles are counted in 32 bits.
  if (CeilDiv(m, kSmallestTile / 16) * (places / 16 + experts) > INT32_MAX) {
    return InvalidOp(kOp, "out has " + std::to_string(places) + " rows of " + std::to_string(m) +
                              ", need fewer than 2^41 elements: cut it by rows");
  }
  return Status::Ok();
}

}  // namespace

Status GroupedLinear(const GroupedLinearArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(CheckFits(a));
  if (a.out.num_elements() == 0) return Status::Ok();
  const Result<DeviceFacts> facts = CurrentDeviceFacts();
  if (!facts.ok()) return facts.status();
  const int64_t size = DTypeSize(a.x.dtype);
  GroupedParams p{};
  p.weight = a.weight.ptr<char>();
  p.x = a.x.ptr<char>();
  p.out = a.out.ptr<char>();
  p.bias = a.bias.has_value() ? a.bias->ptr<char>() : nullptr;
  p.start = a.start.ptr<int32_t>();
  p.expert_stride = a.weight.stride[0] * size;
  p.weight_stride = a.weight.stride[1] * size;
  p.x_stride = a.x.stride[0] * size;
  p.out_stride = a.out.stride[0] * size;
  p.bias_stride = a.bias.has_value() ? a.bias->stride[0] * size : 0;
  p.experts = static_cast<int32_t>(a.weight.shape[0]);
  p.places = static_cast<int32_t>(a.x.shape[0]);
  p.m = static_cast<int32_t>(a.weight.shape[1]);
  p.k = static_cast<int32_t>(a.x.shape[1]);
  const bool tensor_cores =
      a.x.dtype != DType::kF32 && p.k > 0 && WideRows(a.x, p.k) && WideRows(a.weight, p.k);
  if (!tensor_cores) return LaunchPlain(a.x.dtype, p, facts.value(), stream);
  const GroupedTile tile = ChooseGroupedTile(p.places, p.experts);
  return a.x.dtype == DType::kF16 ? LaunchGroupedOf<__half>(tile, p, facts.value(), stream)
                                  : LaunchGroupedOf<__nv_bfloat16>(tile, p, facts.value(), stream);
}

}  // namespace octavo::cuda
