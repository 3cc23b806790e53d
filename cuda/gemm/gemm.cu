// Host side of gemm: checks, picks a tile, launches.
#include "base/ops_check.h"
#include "common/rows.h"
#include "gemm/call.h"
#include "gemm/gemm.h"
#include "octavo/cuda_ops.h"

namespace octavo::cuda {
namespace {

constexpr int64_t kMaxExtent = INT64_C(1) << 30;
constexpr int64_t kMaxGrid = INT64_C(1) << 31;
constexpr int64_t kWordBytes = 4;

Status CheckFits(const GemmArgs& a) {
  const char* op = "gemm";
  const int64_t m = a.x.shape[0], k = a.x.shape[1], n = a.weight.shape[0];
  if (a.x.dtype == DType::kF32) {
    return InvalidOp(op, "x is float32, need bfloat16 or float16 on CUDA");
  }
  if (!WideRows(a.x, k) || !WideRows(a.weight, k)) {
    return InvalidOp(op,
                     "x and weight need rows that begin on 16 bytes and are a multiple of them");
  }
  if (k > kMaxExtent || n > kMaxExtent || m > kMaxExtent ||
      TilesOf(GemmTile::kLow, m, n) >= kMaxGrid) {
    return InvalidOp(op, "x or weight has an extent above 2^30, or out 2^40 elements: cut it");
  }
  return Status::Ok();
}

}  // namespace

Status EnqueueGemm(const GemmArgs& a, GemmTile tile, Stream stream) {
  GemmParams p{};
  p.x = a.x.ptr<char>();
  p.weight = a.weight.ptr<char>();
  p.bias = a.bias.has_value() ? a.bias->ptr<char>() : nullptr;
  p.out = a.out.ptr<char>();
  p.x_stride = StridesOf(a.x).token;
  p.weight_stride = StridesOf(a.weight).token;
  p.out_stride = StridesOf(a.out).token;
  p.m = static_cast<int32_t>(a.x.shape[0]);
  p.n = static_cast<int32_t>(a.weight.shape[0]);
  p.k = static_cast<int32_t>(a.x.shape[1]);
  p.pairs = (reinterpret_cast<uintptr_t>(a.out.data) | static_cast<uintptr_t>(p.out_stride)) %
                kWordBytes ==
            0;
  return a.x.dtype == DType::kF16 ? LaunchGemmOf<__half>(tile, p, stream)
                                  : LaunchGemmOf<__nv_bfloat16>(tile, p, stream);
}

Status Gemm(const GemmArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(CheckFits(a));
  if (a.out.num_elements() == 0) return Status::Ok();
  const Result<DeviceFacts> facts = CurrentDeviceFacts();
  if (!facts.ok()) return facts.status();
  const GemmTile tile =
      ChooseGemmTile(a.x.shape[0], a.weight.shape[0], facts.value().multiprocessors);
  return EnqueueGemm(a, tile, stream);
}

}  // namespace octavo::cuda
