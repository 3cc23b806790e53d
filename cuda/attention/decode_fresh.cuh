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

#include "attention/decode_merge.cuh"
#include "attention/decode_stream.cuh"
#include "attention/fresh_rows.cuh"

namespace octavo::cuda {

template <class S>
__global__ __launch_bounds__(S::kThreads) void FreshDecodeKernel(
    const __grid_constant__ FreshDecodeParams all) {
  const DecodeParams& p = all.decode;
  unsigned char* const shared = DynamicShared();
  if (!p.plan_ready) GridDependencyWait();
  const CtaWork work = p.ctas[blockIdx.x];
  float* const merge = reinterpret_cast<float*>(shared + S::kRingBytes);
  const int warp = threadIdx.x / kWarpSize;
  TileStream<S> stream(p, work, SharedAddress(shared));
  stream.Find();
  stream.Start();  // of the newest key it brings what lay in its slot, which Complete replaces
  FreshRows<S> rows(all, merge);
  if (work.segments > 0) rows.Find(work.first);
  if (p.plan_ready) GridDependencyWait();
  GridDependencyLaunch();
  if (work.segments == 0) return;
  Segment g = work.first;
  SoftmaxState<S> state;
#pragma unroll 1
  for (int i = 1; i <= work.segments; ++i) {
    rows.Begin(g, &state);
    Segment next = g;
    if (i < work.segments) next = p.segments[work.first_segment + i];
    state.Clear();
#pragma unroll 1
    for (int first = 0; first < g.tiles; first += S::kWarps) {
      const uint32_t tile = stream.Next();
      if (first + warp < g.tiles) {
        const int number = g.first_tile + first + warp;
        rows.Complete(g, number, tile);
        state.AddTile(p.layer, g, number * kTileTokens, tile);
      }
    }
    state.SumColumns();
    if (i < work.segments) rows.Find(next);
    MergeWarps<S, false>(p, g, state, merge);
    if (g.slot >= 0) MergeSplits<S, false>(p, g, merge);
    g = next;
  }
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
