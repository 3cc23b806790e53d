// Paged decode attention: out[t, h] = softmax(q[t, h] K^T) V for rows of few query tokens.
//
// Shapes as PagedAttentionArgs; bfloat16 or float16, a cache of the same or of e4m3; D = 64, 128,
// 256; blocks of k * 16 tokens.
// Grid: the plan's CTAs (one or two on a multiprocessor); CTA c walks its segments (schedule.h),
// then those that are dealt. A round gives each warp one tile of 16 keys; a warp loads its own
// tiles into its own ring of shared memory and keeps its own softmax state, so the loop has no
// barrier between warps. At a segment's end the warps' states are merged in shared memory; where an
// item has several segments, the last of its CTAs to arrive merges them in split order, so that
// results repeat bit for bit.
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
#include "attention/decode_walk.cuh"

namespace octavo::cuda {

// Queries that lie where the projections' kernels left them.
template <class S>
struct StoredRows {
  const LayerParams& layer;

  __device__ __forceinline__ void Find(const Segment& g, SoftmaxState<S>* state) const {
    state->LoadQueries(layer, g);
  }
  __device__ __forceinline__ void Begin(const Segment&, SoftmaxState<S>*) const {}
  __device__ __forceinline__ void Complete(const Segment&, int, uint32_t) const {}
};

template <class S>
struct StoredWalk {
  static constexpr bool kShares = !S::kFp8;  // as the wgmma kernel
  static constexpr bool kStartsEarly = false, kDeals = true;
};

template <class S>
__global__ __launch_bounds__(S::kThreads,
                             S::kCtas) void DecodeKernel(const __grid_constant__ DecodeParams p) {
  unsigned char* const shared = DynamicShared();
  // The prefill kernel lets this one begin after it has itself waited for what both read. Whoever
  // waits for this kernel relies on its rows as well, so the wait is made up for at the end.
  const bool beside = p.beside_prefill;
  if (!beside && !p.plan_ready) GridDependencyWait();
  TileStream<S> stream(p, SharedAddress(shared));
  StoredRows<S> rows{p.layer};
  const auto wait = [&] {
    if (!beside && p.plan_ready) {
      stream.Prefetch();
      GridDependencyWait();
    }
    GridDependencyLaunch();
  };
  float* const merge = reinterpret_cast<float*>(shared + S::kRingBytes);
  Walk<S, StoredWalk<S>>(p, &stream, &rows, merge, wait);
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
