// out = x weight^T + bias for some ten to some hundred rows of x, on wgmma and TMA: for GPUs of
// compute capability 9.0 alone.
//
// Shapes: x [M, K], weight [N, K], bias [N], out [M, N]; K a multiple of 64, N of 16. The weight is
// the m side of the products and x their n side, so that few rows of x waste nothing.
//
// Grid: clusters that do one tile of the weight's rows and of x's after another, those of one
// weight side by side. The CTAs of a cluster share the tile's k, one range each, and such a cluster
// has one tile. In a CTA one warp keeps a ring of stages filled, one or two blocks of {weight
// [rows, 64], x [tokens, 64]} each, swizzled; the weights of a whole ring are asked for before the
// kernel in front has ended, and those of the next tile while this one is stored. The other warps
// multiply and store (linear_wgmma_store.cuh). Where k is cut each CTA sends its sums to those that
// store them, which add in the order of k: the bits depend on the shapes alone.
//
// Where x is half of a norm the sums are divided by its rows' root mean squares before they are
// stored, and half of the next norm may be left beside out (linear_wgmma_norm.cuh).
//
// With a gate the tile's rows are, eight and eight, rows of the gate and those that they open, and
// N / 2 columns come out.
//
// Bound by bytes: N * K elements of weight up to some 200 rows; x comes from L2 for every tile.
#pragma once

#include "common/wgmma.cuh"
#include "linear/linear_wgmma_ring.cuh"
#include "linear/linear_wgmma_store.cuh"

namespace octavo::cuda {

// A warpgroup's products, over the CTA's share of k.
template <class S>
class WideSums {
 public:
  // `place` is where the ring stands: a tile goes on where the one before has ended.
  __device__ __forceinline__ WideSums(const WideParams& p, const WideRing<S>& ring,
                                      WidePlace* place)
      : p_(p), ring_(ring), place_(*place) {
    const int warpgroup = __shfl_sync(kFullWarp, threadIdx.x / kWarpgroupSize, 0);
    weights_ = MatrixDescriptor(ring.weight(0) + warpgroup * S::kRowTiles * kRowTileBytes,
                                kNoColumns, kSwizzledRows);
    inputs_ = MatrixDescriptor(ring.x(0), kNoColumns, kSwizzledRows);
  }

  // The first products of a tile begin the sums: registers written by anything else would have
  // ptxas run all products one after another.
  __device__ __forceinline__ void Begin() {
    WaitBarrier(ring_.full(place_.at), place_.parity);
    Issue<true>();
  }

  // The others, of so many units.
  __device__ __forceinline__ void Finish(int units) {
#pragma unroll 1
    for (int unit = 1; unit < units; ++unit) {
      const int before = place_.at;
      place_.Step(p_.stages);
      WaitBarrier(ring_.full(place_.at), place_.parity);
      Issue<false>();
      WgmmaWait<1>();  // the stage before this one has been read
      if (threadIdx.x % kWarpSize == 0) ArriveBarrier(ring_.empty(before));
    }
    WgmmaWait<0>();
#pragma unroll
    for (int t = 0; t < S::kRowTiles; ++t) PinRegisters(d_[t]);
    if (threadIdx.x % kWarpSize == 0) ArriveBarrier(ring_.empty(place_.at));
    place_.Step(p_.stages);
  }

  // What a thread has of row tile t and the tokens 8 j to 8 j + 7.
  __device__ __forceinline__ float4 Group(int t, int j) const {
    return make_float4(d_[t][4 * j], d_[t][4 * j + 1], d_[t][4 * j + 2], d_[t][4 * j + 3]);
  }

 private:
  using T = typename S::Element;
  static constexpr int kNoColumns = 16;  // of a descriptor whose operand has rows along k: unused
  static constexpr int kStepBytes = 32;  // 16 elements of a row
  static constexpr int kBlockSteps = kWideBlock / 16;
  static constexpr int kRowTileBytes = 64 * kWideBlock * 2;

  template <bool kFirst>
  __device__ __forceinline__ void Issue() {
    const uint64_t weights = Advance(weights_, place_.at * S::kStageBytes);
    const uint64_t inputs = Advance(inputs_, place_.at * S::kStageBytes);
    const int input_block = InputBlock(p_);
    WgmmaFence();
#pragma unroll
    for (int t = 0; t < S::kRowTiles; ++t) {
#pragma unroll
      for (int step = 0; step < S::kBlocks * kBlockSteps; ++step) {
        const int block = step / kBlockSteps, within = step % kBlockSteps * kStepBytes;
        const uint64_t a = Advance(weights, t * kRowTileBytes + block * S::kWeightBlock + within);
        const uint64_t b = Advance(inputs, block * input_block + within);
        if (kFirst && step == 0) {
          WgmmaShared<T, false>(d_[t], a, b);
        } else {
          WgmmaShared<T, true>(d_[t], a, b);
        }
      }
    }
    WgmmaCommit();
  }

  const WideParams& p_;
  const WideRing<S>& ring_;
  uint64_t weights_, inputs_;  // of stage 0
  WidePlace& place_;
  float d_[S::kRowTiles][S::kSums];
};

// Where the CTAs of a cluster leave sums for each other: [CTA that sums, group of eight tokens, row
// tile, thread] of four floats as a thread has them, in the CTA that stores the group. Every access
// is 16 bytes beside the next lane's.
template <class S>
class WideExchange {
 public:
  __device__ __forceinline__ WideExchange(const WideParams& p, const WideWork<S>& work, float4* at)
      : at_(at + threadIdx.x),
        splits_(p.splits),
        rank_(work.rank),
        tokens_(work.tokens(p)),
        groups_(CeilDiv(CeilDiv(tokens_, 8), splits_)) {}

  // What this CTA stores.
  __device__ __forceinline__ WideTokens Own() const {
    return {Min(tokens_, rank_ * groups_ * 8), Min(tokens_, (rank_ + 1) * groups_ * 8)};
  }

  // REQUIRES: a barrier of the cluster since all its CTAs have begun (kApart) or read their rings.
  __device__ __forceinline__ void Send(const WideSums<S>& sums) const {
    int owner = 0, group = 0;
    float4* to = Slot(Of(owner), rank_, 0);
#pragma unroll
    for (int j = 0; j < S::kTokens / 8; ++j) {
      if (j * 8 >= tokens_) continue;
      if (group == groups_) {
        group = 0;
        to = Slot(Of(++owner), rank_, 0);
      }
#pragma unroll
      for (int t = 0; t < S::kRowTiles; ++t)
        to[(group * S::kRowTiles + t) * S::kConsumers] = sums.Group(t, j);
      ++group;
    }
  }

  // The sums of chunk q (WideBefore) of this CTA's tokens. REQUIRES: a barrier of the cluster since
  // the sums were sent.
  __device__ __forceinline__ void Receive(int q, float (&v)[kChunkSums]) const {
#pragma unroll
    for (int j = 0; j < kChunkGroups; ++j) {
      const int group = q / S::kRowTiles * kChunkGroups + j;
      float4 all = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (int from = 0; from < kMaxWideCluster; ++from) {
        if (group >= groups_ || from >= splits_) continue;
        const float4 part = *Slot(at_, from, group * S::kRowTiles + q % S::kRowTiles);
        all.x += part.x;
        all.y += part.y;
        all.z += part.z;
        all.w += part.w;
      }
      v[4 * j] = all.x;
      v[4 * j + 1] = all.y;
      v[4 * j + 2] = all.z;
      v[4 * j + 3] = all.w;
    }
  }

 private:
  // This thread's part of what lies in another CTA, or in this one without a way round.
  __device__ __forceinline__ float4* Of(int owner) const {
    return owner == rank_ ? at_ : InClusterCta(at_, owner);
  }
  __device__ __forceinline__ float4* Slot(float4* at, int from, int row) const {
    return at + (from * groups_ * S::kRowTiles + row) * S::kConsumers;
  }

  float4* const at_;
  const int splits_, rank_, tokens_, groups_;
};

// The products of a tile, and the reading of what `add` adds to it and the next norm multiplies by.
template <class S>
__device__ __forceinline__ void MultiplyWide(const WideParams& p, const WideWork<S>& work,
                                             WideTokens tokens, WideSums<S>* sums,
                                             WideBefore<S>* before) {
  sums->Begin();
  GridDependencyWait();
  const WidePieces<S> pieces(p, work, p.gate != Gate::kNone);
  if (p.add) before->Ask(pieces, tokens, 0, WideBefore<S>::Asked(0));
  if (S::kHalfNorms && p.scaled != nullptr) before->AskNorm(pieces, p);
  sums->Finish(work.end - work.begin);
}

template <class S, bool kGated>
__device__ __forceinline__ void StoreWide(const WideParams& p, const WideWork<S>& work,
                                          WideTokens tokens, uint32_t turned, const float* scales,
                                          const WideSums<S>& sums, WideBefore<S>* before,
                                          uint32_t* side) {
  const WideStore<S, kGated> store(p, work, tokens, turned);
#pragma unroll
  for (int q = 0; q < S::kChunks; ++q) {
    if (!store.Has(q)) break;
    float v[kChunkSums];
#pragma unroll
    for (int j = 0; j < kChunkGroups; ++j) {
      const float4 group = sums.Group(q % S::kRowTiles, q / S::kRowTiles * kChunkGroups + j);
      v[4 * j] = group.x;
      v[4 * j + 1] = group.y;
      v[4 * j + 2] = group.z;
      v[4 * j + 3] = group.w;
    }
    ApplyScales<S>(p, scales, store.ChunkOf(q), tokens.end, v);
    store.Run(q, v, *before, side);
    if (!p.add) continue;
    before->Ask(store.pieces(), tokens, WideBefore<S>::Asked(q), WideBefore<S>::Asked(q + 1));
  }
}

template <class S, bool kGated>
__device__ __forceinline__ void StoreCut(const WideParams& p, const WideWork<S>& work,
                                         uint32_t turned, const float* scales,
                                         const WideExchange<S>& exchange, WideBefore<S>* before) {
  const WideStore<S, kGated> store(p, work, exchange.Own(), turned);
  if (p.add) {
    before->Ask(store.pieces(), exchange.Own(), WideBefore<S>::Asked(0), S::kCutChunks);
  }
  uint32_t side = 0;
#pragma unroll
  for (int q = 0; q < S::kCutChunks; ++q) {
    if (!store.Has(q)) break;
    float v[kChunkSums];
    exchange.Receive(q, v);
    ApplyScales<S>(p, scales, store.ChunkOf(q), exchange.Own().end, v);
    store.Run(q, v, *before, &side);
  }
}

// The warps that multiply, where k is not cut.
template <class S>
__device__ __forceinline__ void RunTiles(const WideParams& p, const WideRing<S>& ring,
                                         float* scales) {
  MakeScales<S>(p, scales);
  WidePlace place;
  uint32_t side = 0;
#pragma unroll 1
  for (int tile = FirstTile(p); tile < p.tiles; tile += TileStep(p)) {
    const WideWork<S> work(p, tile);
    const WideTokens tokens{0, work.tokens(p)};
    WideSums<S> sums(p, ring, &place);
    WideBefore<S> before;
    MultiplyWide(p, work, tokens, &sums, &before);
    const float* const own = scales + work.first_token(p);
    if (p.gate == Gate::kNone) {
      StoreWide<S, false>(p, work, tokens, ring.turned(), own, sums, &before, &side);
    } else {
      StoreWide<S, true>(p, work, tokens, ring.turned(), own, sums, &before, &side);
    }
  }
}

// The warps that multiply, a tile whose k is cut.
template <class S>
__device__ __forceinline__ void RunCut(const WideParams& p, const WideRing<S>& ring, float4* left,
                                       float* scales) {
  MakeScales<S>(p, scales);
  const WideWork<S> work(p, FirstTile(p));
  const WideExchange<S> exchange(p, work, left);
  WidePlace place;
  WideSums<S> sums(p, ring, &place);
  WideBefore<S> before;
  if constexpr (S::kApart) SyncCluster();
  MultiplyWide(p, work, exchange.Own(), &sums, &before);
  if constexpr (!S::kApart) SyncCluster();
  exchange.Send(sums);
  SyncCluster();
  const float* const own = scales + work.first_token(p);
  if (p.gate == Gate::kNone) {
    StoreCut<S, false>(p, work, ring.turned(), own, exchange, &before);
  } else {
    StoreCut<S, true>(p, work, ring.turned(), own, exchange, &before);
  }
}

// The warps that do not multiply. A cluster's barrier counts all threads: theirs are those of
// RunCut.
template <class S>
__device__ __forceinline__ void RunCopies(const WideParams& p, const WideProducer<S>& producer,
                                          bool copies) {
  if (copies) producer.Follow();
  __syncwarp();
  if (p.splits > 1 && S::kApart) SyncCluster();
  if (copies) producer.Run();
  __syncwarp();
  if (p.splits > 1 && !S::kApart) SyncCluster();
  if (p.splits > 1) SyncCluster();
}

template <class S>
__global__ __launch_bounds__(S::kThreads,
                             S::kCtas) void WideKernel(const __grid_constant__ WideParams p) {
#ifdef OCTAVO_SM90A
  unsigned char* const dynamic = DynamicShared();
  const uint32_t begin = SharedAddress(dynamic);
  const uint32_t base = CeilDiv(begin, uint32_t{kSwizzledRows}) * kSwizzledRows;
  const WideRing<S> ring{base + (p.squares == nullptr ? 0 : kWideScaleBytes), p.stages};
  const WideProducer<S> producer(p, ring);
  constexpr int kProducer = S::kConsumers;
  if (threadIdx.x == kProducer) producer.Begin();
  __syncwarp();
  __syncthreads();
  const int warp = __shfl_sync(kFullWarp, threadIdx.x / kWarpSize, 0);
  if (warp >= kProducer / kWarpSize) {
    if constexpr (S::kMovesRegisters) ShrinkRegisters<S::kCopyRegisters>();
    RunCopies(p, producer, threadIdx.x == kProducer);
  } else {
    if constexpr (S::kMovesRegisters) GrowRegisters<S::kSumRegisters>();
    auto* const scales = reinterpret_cast<float*>(dynamic + (base - begin));
    if (p.splits > 1) {
      RunCut<S>(p, ring, reinterpret_cast<float4*>(dynamic + (ring.exchange() - begin)), scales);
    } else {
      RunTiles<S>(p, ring, scales);
    }
  }
#endif
}

template <class S>
Status LaunchWideShape(const WideChoice& choice, const WideParams& p, cudaStream_t stream) {
  if (!S::kHalfNorms && (p.squares != nullptr || p.scaled != nullptr)) {
    return Status::Internal("linear: a tile that has no registers for half of a norm");
  }
  LaunchShape shape;
  const int clusters = choice.splits > 1 ? p.tiles : Min(p.tiles, choice.clusters);
  shape.grid = static_cast<unsigned>(clusters * p.splits);
  shape.cluster = static_cast<unsigned>(p.splits);
  shape.threads = S::kThreads;
  shape.shared_bytes = WideSharedBytes(choice) + (p.squares == nullptr ? 0 : kWideScaleBytes);
  shape.stream = stream;
  return LaunchDependent(WideKernel<S>, shape, p);
}

template <typename T>
Status LaunchWideOf(const WideChoice& choice, const WideParams& p, cudaStream_t stream) {
  switch (choice.rows * 1000 + choice.tokens) {
#define OCTAVO_WIDE(warpgroups, row_tiles, tokens)  \
  case warpgroups * row_tiles * 64 * 1000 + tokens: \
    return LaunchWideShape<WideShape<T, warpgroups, row_tiles, tokens>>(choice, p, stream)
    OCTAVO_WIDE(1, 1, 32);
    OCTAVO_WIDE(1, 1, 64);
    OCTAVO_WIDE(1, 1, 128);
    OCTAVO_WIDE(1, 1, 256);
    OCTAVO_WIDE(2, 1, 32);
    OCTAVO_WIDE(2, 1, 64);
    OCTAVO_WIDE(2, 1, 128);
    OCTAVO_WIDE(2, 1, 192);
    OCTAVO_WIDE(2, 1, 256);
    OCTAVO_WIDE(3, 1, 64);
    OCTAVO_WIDE(3, 1, 128);
    OCTAVO_WIDE(2, 2, 64);
    OCTAVO_WIDE(2, 2, 128);
#undef OCTAVO_WIDE
    default:
      return Status::Internal("linear: no such tile");
  }
}

}  // namespace octavo::cuda
