// norm_rope_cache and decode attention in one kernel, for steps of few rows of one query.
//
// Shapes as NormRopeAttentionArgs; bfloat16 or float16, a cache of the same; D = 64, 128, 256, all
// of it turned, halves against each other; up to 8 query heads of a KV head. Grid, shared memory
// and plan are those of DecodeKernel with one column tile and a pair of CTAs on a multiprocessor,
// and so are the bits: this is the same walk over segments, with other queries (fresh_rows.cuh).
//
// What it saves is a boundary between two kernels. Where the plan is older than the kernel in
// front, which writes nothing but q, k and v, a CTA also has its first tiles copied to shared
// memory while that kernel runs: all keys but the newest were stored by earlier steps.
//
// The newest key and value are stored after the next kernel may have begun. It waits for the end of
// this one before it reads anything, and who reads the slots, this layer's attention in the next
// step, waits for more.
//
// Bound by latency: the projections' last rows, one read of q, norm, rotation, tiles, the merge.
#pragma once

#include "attention/decode_walk.cuh"
#include "attention/fresh_rows.cuh"

namespace octavo::cuda {

struct FreshWalk {
  static constexpr bool kShares = false, kStartsEarly = true;
  static constexpr bool kDeals = false;  // what is dealt takes more rows
};

template <class S>
__global__ __launch_bounds__(S::kThreads) void FreshDecodeKernel(
    const __grid_constant__ FreshDecodeParams all) {
  const DecodeParams& p = all.decode;
  unsigned char* const shared = DynamicShared();
  if (!p.plan_ready) GridDependencyWait();
  float* const merge = reinterpret_cast<float*>(shared + S::kRingBytes);
  TileStream<S> stream(p, SharedAddress(shared));
  FreshRows<S> rows(all, merge);
  // Of the newest key the stream brings what lay in its slot, which Complete replaces.
  const auto wait = [&] {
    if (p.plan_ready) GridDependencyWait();
    GridDependencyLaunch();
  };
  Walk<S, FreshWalk>(p, &stream, &rows, merge, wait);
}

template <typename T, int kHeadDim>
Status LaunchFreshDecodeOf(const FreshDecodeParams& p, const LaunchShape& launch) {
  using S = typename DecodeShapesOf<T, T, kHeadDim>::template Pair<1>;
  LaunchShape shape = launch;
  shape.threads = S::kThreads;
  shape.shared_bytes = S::kSharedBytes;
  return Launch(FreshDecodeKernel<S>, shape, p);
}

}  // namespace octavo::cuda
