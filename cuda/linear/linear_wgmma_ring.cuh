// What the wgmma product of some rows (linear_wgmma.cuh) reads: the tiles of a CTA, its ring of
// stages in shared memory, and the thread that keeps the ring full.
#pragma once

#include "common/hopper.cuh"
#include "common/host_device.h"
#include "linear/linear_wgmma.h"

namespace octavo::cuda {

inline constexpr int kSwizzledRow = 128;                // bytes
inline constexpr int kSwizzledRows = 8 * kSwizzledRow;  // what swizzled operands are aligned to

// A tile, and a CTA's share of its k.
template <class S>
struct WideWork {
  int row_tile, token_tile, rank;
  int begin, end;  // units of k

  __device__ __forceinline__ WideWork(const WideParams& p, int tile) {
    rank = static_cast<int>(blockIdx.x) % p.splits;
    row_tile = tile / p.token_tiles;
    token_tile = tile - row_tile * p.token_tiles;
    begin = p.units * rank / p.splits;
    end = p.units * (rank + 1) / p.splits;
  }
  __device__ __forceinline__ int first_token(const WideParams& p) const {
    return token_tile * p.tile_tokens;
  }
  __device__ __forceinline__ int tokens(const WideParams& p) const {
    return Min(p.tile_tokens, p.m - first_token(p));
  }
};

// The tiles of a cluster: its number, and every so many from there on.
__device__ __forceinline__ int FirstTile(const WideParams& p) {
  return static_cast<int>(blockIdx.x) / p.splits;
}
__device__ __forceinline__ int TileStep(const WideParams& p) {
  return static_cast<int>(gridDim.x) / p.splits;
}

// The ring in shared memory; in front of it its barriers, and where tiles are turned.
template <class S>
struct WideRing {
  uint32_t base;
  int stages;

  __device__ __forceinline__ uint32_t full(int stage) const { return base + stage * kBarrierBytes; }
  __device__ __forceinline__ uint32_t empty(int stage) const {
    return base + (kMaxWideStages + stage) * kBarrierBytes;
  }
  __device__ __forceinline__ uint32_t turned() const { return base + kWideHead; }
  __device__ __forceinline__ uint32_t weight(int stage) const {
    return base + kWideHead + S::kTurnedBytes + stage * S::kStageBytes;
  }
  __device__ __forceinline__ uint32_t x(int stage) const { return weight(stage) + S::kWeightBytes; }
  // Of the sums of other CTAs.
  __device__ __forceinline__ uint32_t exchange() const { return weight(S::kApart ? stages : 0); }

  // One thread's part; a __syncthreads follows.
  __device__ __forceinline__ void Init() const {
    for (int i = 0; i < stages; ++i) {
      InitBarrier(full(i), 1);
      InitBarrier(empty(i), S::kConsumers / kWarpSize);
    }
    FenceBarrierInit();
    FenceAsyncShared();
  }
  static_assert(2 * kMaxWideStages * kBarrierBytes <= kWideHead);
};

// A place in the ring, and the parity of the round that is under way there.
struct WidePlace {
  int at = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void Step(int stages) {
    if (++at == stages) {
      at = 0;
      parity ^= 1;
    }
  }
};

// Bytes of a block of x in a stage. What lies behind a tile's rows there is multiplied to sums that
// nobody stores.
__device__ __forceinline__ int InputBlock(const WideParams& p) {
  return p.tile_tokens * kWideBlock * 2;
}

template <class S>
__device__ __forceinline__ void CopyWeight(const WideParams& p, const WideWork<S>& work,
                                           const WideRing<S>& ring, int stage, int unit) {
  ArriveBarrierExpecting(ring.full(stage), S::kWeightBytes + S::kBlocks * InputBlock(p));
  CopyBox5(ring.weight(stage), p.weight, ring.full(stage), 0, 0, 0, work.row_tile * (S::kRows / 16),
           unit * S::kBlocks);
}

template <class S>
__device__ __forceinline__ void CopyInputs(const WideParams& p, const WideWork<S>& work,
                                           const WideRing<S>& ring, int stage, int unit) {
  CopyBox5(ring.x(stage), p.x, ring.full(stage), 0, work.first_token(p), 0, 0, unit * S::kBlocks);
}

// The thread that keeps the ring full, over all tiles of the CTA. It makes the barriers and asks
// for the weights of a whole ring before anybody else in the CTA is waited for.
template <class S>
class WideProducer {
 public:
  __device__ __forceinline__ WideProducer(const WideParams& p, const WideRing<S>& ring)
      : p_(p),
        ring_(ring),
        work_(p, FirstTile(p)),
        ahead_(Min(work_.end, work_.begin + p.stages)) {}

  __device__ __forceinline__ void Begin() const {
    PrefetchMap(p_.weight);
    PrefetchMap(p_.x);
    ring_.Init();
    if (!p_.weight_ready) GridDependencyWait();
#pragma unroll 1
    for (int unit = work_.begin; unit < ahead_; ++unit) {
      CopyWeight(p_, work_, ring_, unit - work_.begin, unit);
    }
    GridDependencyLaunch();
  }

  // Asks for the first x, too.
  __device__ __forceinline__ void Follow() const {
    GridDependencyWait();
    FenceAsyncGlobal();  // other kernels wrote x by ordinary stores
#pragma unroll 1
    for (int unit = work_.begin; unit < ahead_; ++unit) {
      CopyInputs(p_, work_, ring_, unit - work_.begin, unit);
    }
  }

  __device__ __forceinline__ void Run() const {
    WidePlace place;
#pragma unroll 1
    for (int unit = work_.begin; unit < ahead_; ++unit) place.Step(p_.stages);
    Fill(work_, ahead_, &place);
#pragma unroll 1
    for (int tile = FirstTile(p_) + TileStep(p_); tile < p_.tiles; tile += TileStep(p_)) {
      const WideWork<S> work(p_, tile);
      Fill(work, work.begin, &place);
    }
  }

 private:
  // In the first round nobody has used the stages yet, and the waits return at once.
  __device__ __forceinline__ void Fill(const WideWork<S>& work, int first, WidePlace* place) const {
#pragma unroll 1
    for (int unit = first; unit < work.end; ++unit) {
      WaitBarrier(ring_.empty(place->at), place->parity ^ 1);
      CopyWeight(p_, work, ring_, place->at, unit);
      CopyInputs(p_, work, ring_, place->at, unit);
      place->Step(p_.stages);
    }
  }

  const WideParams& p_;
  const WideRing<S>& ring_;
  const WideWork<S> work_;
  const int ahead_;
};

}  // namespace octavo::cuda
