// Host side of linear: checks, picks a shape, launches.
#include "base/ops_check.h"
#include "common/rows.h"
#include "linear/linear.h"
#include "linear/linear_wgmma.h"
#include "octavo/cuda_ops.h"

namespace octavo::cuda {
namespace {

constexpr int64_t kUnitElements = kLinearUnit;
constexpr int64_t kMaxExtent = INT64_C(1) << 30;

Status CheckFits(const LinearArgs& a) {
  const char* op = "linear";
  const int64_t k = a.x.shape[1];
  if (a.x.dtype == DType::kF32) {
    return InvalidOp(op, "x is float32, need bfloat16 or float16 on CUDA: use torch");
  }
  if (a.x.shape[0] > kMaxWideTokens) {
    return InvalidOp(op, "x has " + std::to_string(a.x.shape[0]) +
                             " rows, need at most 512 on CUDA: a BLAS is as fast from there on");
  }
  if (!WideRows(a.x, k) || !WideRows(a.weight, k)) {
    return InvalidOp(op,
                     "x and weight need rows that begin on 16 bytes and are a multiple of them");
  }
  if (a.norm.has_value() && !WideRows(*a.norm, k)) {
    return InvalidOp(op, "norm begins between two times 16 bytes");
  }
  if (k > kMaxExtent || a.weight.shape[0] > kMaxExtent) {
    return InvalidOp(op, "weight has an extent above 2^30");
  }
  return Status::Ok();
}

LinearKind KindOf(const LinearArgs& a) {
  const bool gated = a.gate != Gate::kNone;
  if (a.norm.has_value()) return gated ? LinearKind::kNormedGated : LinearKind::kNormed;
  return gated ? LinearKind::kGated : LinearKind::kPlain;
}

LinearParams ParamsOf(const LinearArgs& a) {
  LinearParams p{};
  p.weight = a.weight.ptr<char>();
  p.x = a.x.ptr<char>();
  p.out = a.out.ptr<char>();
  p.bias = a.bias.has_value() ? a.bias->ptr<char>() : nullptr;
  p.weight_stride = StridesOf(a.weight).token;
  p.x_stride = StridesOf(a.x).token;
  p.out_stride = StridesOf(a.out).token;
  p.m = static_cast<int32_t>(a.x.shape[0]);
  p.n = static_cast<int32_t>(a.out.shape[1]);
  p.k = static_cast<int32_t>(a.x.shape[1]);
  p.units = static_cast<int32_t>(CeilDiv(a.x.shape[1], kUnitElements));
  p.weight_ready = a.weight_ready;
  p.add = a.add;
  p.gate = a.gate;
  p.norm = a.norm.has_value() ? a.norm->ptr<char>() : nullptr;
  p.eps = a.eps;
  p.norm_offset = a.norm_offset;
  return p;
}

template <typename T>
Status LaunchKind(LinearKind kind, const LinearChoice& choice, const LinearParams& p,
                  cudaStream_t stream) {
  switch (kind) {
    case LinearKind::kPlain:
      return LaunchLinearOf<T, LinearKind::kPlain>(choice, p, stream);
    case LinearKind::kNormed:
      return LaunchLinearOf<T, LinearKind::kNormed>(choice, p, stream);
    case LinearKind::kGated:
      return LaunchLinearOf<T, LinearKind::kGated>(choice, p, stream);
    default:
      return LaunchLinearOf<T, LinearKind::kNormedGated>(choice, p, stream);
  }
}

// From 17 rows on.
Status LinearOfManyRows(const LinearArgs& a, const DeviceFacts& facts, Stream stream) {
  const std::string rows = "x has " + std::to_string(a.x.shape[0]) + " rows, ";
  if (!facts.wgmma) {
    return InvalidOp("linear", rows +
                                   "need at most 16 on a GPU that is not of compute "
                                   "capability 9.0: use torch");
  }
  if (!TakesWide(a)) {
    return InvalidOp("linear", rows +
                                   "from 17 on CUDA needs columns in multiples of 64, rows of "
                                   "the weight in multiples of 16, out and bias that begin on "
                                   "16 bytes, squares, scaled and their norm too, and no norm of "
                                   "x: use torch");
  }
  const bool half_norms = a.squares.has_value() || a.leaves.has_value();
  const WideProblem problem{a.x.shape[0], a.weight.shape[0], a.x.shape[1], a.gate != Gate::kNone,
                            half_norms};
  const int shared = facts.shared_per_block - (a.squares.has_value() ? kWideScaleBytes : 0);
  return LaunchWide(a, ChooseWide(problem, facts.multiprocessors, shared), stream);
}

}  // namespace

Status Linear(const LinearArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(CheckFits(a));
  if (a.out.num_elements() == 0) return Status::Ok();
  const Result<DeviceFacts> facts = CurrentDeviceFacts();
  if (!facts.ok()) return facts.status();
  if (a.x.shape[0] > kMaxLinearTokens) return LinearOfManyRows(a, facts.value(), stream);
  if (a.squares.has_value() || a.leaves.has_value()) {
    return InvalidOp("linear", "x has " + std::to_string(a.x.shape[0]) +
                                   " rows, from 17 on squares and leaves are taken: give norm");
  }
  LinearParams p = ParamsOf(a);
  const LinearKind kind = KindOf(a);
  const LinearChoice choice =
      ChooseLinear({p.m, p.n, p.units, HasNorm(kind), HasGate(kind)}, facts.value().multiprocessors,
                   facts.value().shared_per_block);
  if (choice.shared_bytes() > facts.value().shared_per_block) {
    return InvalidOp("linear", "x has " + std::to_string(p.k) +
                                   " columns, more than shared memory holds a norm's weight of: "
                                   "norm x before");
  }
  p.tiles = choice.tiles;
  p.warps = choice.warps;
  p.team_warps = choice.team_warps;
  p.ring_bytes = choice.ring_bytes();
  p.stage_bytes = LinearStageBytes(choice.groups, choice.staged_tokens);
  return a.x.dtype == DType::kF16 ? LaunchKind<__half>(kind, choice, p, stream)
                                  : LaunchKind<__nv_bfloat16>(kind, choice, p, stream);
}

}  // namespace octavo::cuda
