// Paged decode attention: out[t, h] = softmax(q[t, h] K^T) V for rows of few query tokens.
//
// Shapes as PagedAttentionArgs; bfloat16 or float16, a cache of the same or of e4m3; D = 64, 128,
// 256; blocks of k * 16 tokens.
// Grid: the plan's CTAs (one or two on a multiprocessor); CTA c walks its segments (schedule.h). A
// round gives each warp one tile of 16 keys; a warp loads its own tiles into its own ring of shared
// memory and keeps its own softmax state, so the loop has no barrier between warps. At a segment's
// end the warps' states are merged in shared memory; where an item has several segments, the last
// of its CTAs to arrive merges them in split order, so that results repeat bit for bit.
//
// Shared memory: warps x stages x {K tile, V tile}, then a merge buffer of warps x 8 columns.
// In a tile, 16-byte piece c of token r lies at piece c ^ (r % 8), or c ^ (r / 2 % 4) where a row
// has four: ldmatrix then meets no bank twice. Of e4m3 an ldmatrix brings 32 head dims of 16 tokens
// where it brings 16 of two bytes each (decode_fragments.cuh).
//
// The products are swapped, S^T = K Q^T and O^T = V^T P^T: packed queries are the n side of mma
// m16n8k16, so that a group of 8 heads fills it where M padded to 16 would waste half.
//
// Where the plan is older than the kernel in front, a CTA finds its first tiles and has them
// brought to L2 while that kernel, which writes the newest keys, still runs: three dependent reads
// of memory are over when it ends.
//
// Of a row that shares a prefix (sharing.h) the segments begin behind it; whoever writes the row's
// output merges the state of its shared keys, which the prefill kernel left.
//
// Bound by the bytes of K and V. Loads are cp.async of 16 bytes: measured on an H200 they beat TMA
// boxes of a block and equal bulk copies. Source: online softmax, arXiv 1805.02867; split keys,
// "Flash-Decoding" (Dao et al., 2023).
#pragma once

#include "attention/decode.h"
#include "attention/decode_merge.cuh"
#include "attention/decode_softmax.cuh"
#include "attention/decode_stream.cuh"

namespace octavo::cuda {

template <class S>
__global__ __launch_bounds__(S::kThreads) void DecodeKernel(
    const __grid_constant__ DecodeParams p) {
  constexpr bool kShares = !S::kFp8;  // as the wgmma kernel
  unsigned char* const shared = DynamicShared();
  // The prefill kernel lets this one begin after it has itself waited for what both read. Whoever
  // waits for this kernel relies on its rows as well, so the wait is made up for at the end.
  const bool beside = p.beside_prefill;
  if (!beside && !p.plan_ready) GridDependencyWait();
  const CtaWork work = p.ctas[blockIdx.x];
  float* const merge = reinterpret_cast<float*>(shared + S::kRingBytes);
  const int warp = threadIdx.x / kWarpSize;
  TileStream<S> stream(p, work, SharedAddress(shared));
  stream.Find();
  if (!beside && p.plan_ready) {
    stream.Prefetch();
    GridDependencyWait();
  }
  GridDependencyLaunch();
  if (work.segments == 0) {
    if (beside) GridDependencyWait();
    return;
  }
  stream.Start();
  Segment g = work.first;
  SoftmaxState<S> state;
  state.LoadQueries(p.layer, g);
#pragma unroll 1
  for (int i = 1; i <= work.segments; ++i) {
    // Read ahead: a segment's end would otherwise wait for memory twice.
    Segment next = g;
    if (i < work.segments) next = p.segments[work.first_segment + i];
    state.Clear();
#pragma unroll 1
    for (int first = 0; first < g.tiles; first += S::kWarps) {
      const uint32_t tile = stream.Next();
      if (first + warp < g.tiles) {
        state.AddTile(p.layer, g, (g.first_tile + first + warp) * kTileTokens, tile);
      }
    }
    state.SumColumns();
    if (i < work.segments) state.LoadQueries(p.layer, next);
    // The prefill kernel leaves the states of shared keys. It began before any CTA of this one, so
    // whoever waits here keeps it from no multiprocessor.
    if (kShares && g.shared >= 0) GridDependencyWait();
    MergeWarps<S, kShares>(p, g, state, merge);
    if (g.slot >= 0) MergeSplits<S, kShares>(p, g, merge);
    g = next;
  }
  if (beside) GridDependencyWait();
}

template <class S>
Status LaunchDecodeShape(const DecodeParams& p, const LaunchShape& launch) {
  LaunchShape shape = launch;
  shape.threads = S::kThreads;
  shape.shared_bytes = S::kSharedBytes;
  return Launch(DecodeKernel<S>, shape, p);
}

}  // namespace octavo::cuda
