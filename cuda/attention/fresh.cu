// Host side of norm_rope_attention: whether one kernel does it, or the two that it stands for.
#include "attention/call.h"
#include "attention/fresh.h"
#include "base/ops_check.h"
#include "base/ops_parts.h"
#include "octavo/cuda_attention.h"

namespace octavo::cuda {
namespace {

// Whether the plan's decode CTAs are of the shape that the kernel is compiled for, and it is all of
// the step. At head dim 256 there is one shape.
bool FitsFresh(const PagedAttentionArgs& a, const AttentionOptions& options,
               const AttentionCall& call) {
  const DecodeChoice& c = call.choice;
  return call.tensor_cores && !c.fp8 && options.max_queries == 1 && options.decode_queries > 0 &&
         call.shape.group <= kColumnsOfMma && c.column_tiles == 1 &&
         (c.pair || c.head_dim == 256) && a.q.shape[0] <= kMaxFreshTokens;
}

template <typename T>
Status LaunchByHeadDim(int head_dim, const FreshDecodeParams& p, const LaunchShape& launch) {
  switch (head_dim) {
    case 64:
      return LaunchFreshDecodeOf<T, 64>(p, launch);
    case 128:
      return LaunchFreshDecodeOf<T, 128>(p, launch);
    default:
      return LaunchFreshDecodeOf<T, 256>(p, launch);
  }
}

}  // namespace

Status NormRopeAttention(const NormRopeAttentionArgs& a, const AttentionPlan& plan, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  AttentionCall call;
  OCTAVO_RETURN_IF_ERROR(ResolveCall(a.attention, plan, &call));
  const NormRopeCacheArgs rows = NormRopeCacheOf(a);
  if (FitsFresh(a.attention, plan.options, call)) {
    const FreshDecodeParams p{DecodeParamsOf(a.attention, call, plan.memory), QkvParamsOf(rows)};
    if (FitsPairs(rows, p.rows)) {
      if (IsEmpty(a.attention)) return Status::Ok();
      const LaunchShape launch = DecodeLaunch(call, stream);
      return call.choice.half ? LaunchByHeadDim<__half>(call.choice.head_dim, p, launch)
                              : LaunchByHeadDim<__nv_bfloat16>(call.choice.head_dim, p, launch);
    }
  }
  OCTAVO_RETURN_IF_ERROR(NormRopeCache(rows, stream));
  return EnqueueLayer(a.attention, call, plan.memory, stream);
}

Status NormRopeAttention(const NormRopeAttentionArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(NormRopeCache(NormRopeCacheOf(a), stream));
  return PagedAttention(a.attention, stream);
}

}  // namespace octavo::cuda
