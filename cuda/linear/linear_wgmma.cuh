// out = x weight^T + bias for some ten to some hundred rows of x, on wgmma and TMA: for GPUs of
// compute capability 9.0 alone.
//
// Shapes: x [M, K], weight [N, K], bias [N], out [M, N]; K a multiple of 64, N of 16. The weight is
// the m side of the products and x their n side, so that few rows of x waste nothing.
//
// Grid: a cluster for each tile of the weight's rows and of x's, those of one weight side by side.
// The CTAs of a cluster share the tile's k, one range each. In a CTA one warp keeps a ring of
// stages filled, one or two blocks of {weight [rows, 64], x [tokens, 64]} each, swizzled; the
// weights of a whole ring are asked for before the kernel in front has ended. The other warps
// multiply, leave their sums in shared memory where the ring was, and each CTA of the cluster adds
// and stores a part of the tile, the sums in the order of k: the bits depend on the shapes alone.
//
// With a gate the tile's rows are, eight and eight, rows of the gate and those that they open, and
// N / 2 columns come out.
//
// Bound by bytes: N * K elements of weight up to some 200 rows; x comes from L2 for every tile.
#pragma once

#include <cstring>

#include "common/cluster.cuh"
#include "common/element.cuh"
#include "common/host_device.h"
#include "common/wgmma.cuh"
#include "linear/linear_wgmma.h"
#include "rows/activation.cuh"

namespace octavo::cuda {

inline constexpr int kPieceColumns = 8;   // of out, 16 bytes: what a thread stores at once
inline constexpr int kSwizzledRow = 128;  // bytes
inline constexpr int kSwizzledRows = 8 * kSwizzledRow;  // what swizzled operands are aligned to

// A CTA's tile and its share of k.
template <class S>
struct WideWork {
  int row_tile, token_tile, rank;
  int begin, end;  // units of k

  __device__ __forceinline__ explicit WideWork(const WideParams& p) {
    const int tile = static_cast<int>(blockIdx.x) / p.splits;
    rank = static_cast<int>(blockIdx.x) - tile * p.splits;
    row_tile = tile / p.token_tiles;
    token_tile = tile - row_tile * p.token_tiles;
    begin = static_cast<int>(int64_t{p.units} * rank / p.splits);
    end = static_cast<int>(int64_t{p.units} * (rank + 1) / p.splits);
  }
  __device__ __forceinline__ int first_token() const { return token_tile * S::kTokens; }
  __device__ __forceinline__ int tokens(const WideParams& p) const {
    return Min(S::kTokens, p.m - first_token());
  }
};

// The ring in shared memory, its barriers in front of it.
template <class S>
struct WideRing {
  uint32_t base;
  int stages;

  __device__ __forceinline__ uint32_t full(int stage) const { return base + stage * kBarrierBytes; }
  __device__ __forceinline__ uint32_t empty(int stage) const {
    return base + (kMaxWideStages + stage) * kBarrierBytes;
  }
  __device__ __forceinline__ uint32_t weight(int stage) const {
    return base + kWideHead + stage * S::kStageBytes;
  }
  __device__ __forceinline__ uint32_t x(int stage) const { return weight(stage) + S::kWeightBytes; }

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

template <class S>
__device__ __forceinline__ void CopyWeight(const WideParams& p, const WideWork<S>& work,
                                           const WideRing<S>& ring, int stage, int unit) {
  ArriveBarrierExpecting(ring.full(stage), S::kStageBytes);
  CopyBox5(ring.weight(stage), p.weight, ring.full(stage), 0, 0, 0, work.row_tile * (S::kRows / 16),
           unit * S::kBlocks);
}

template <class S>
__device__ __forceinline__ void CopyInputs(const WideParams& p, const WideWork<S>& work,
                                           const WideRing<S>& ring, int stage, int unit) {
  CopyBox5(ring.x(stage), p.x, ring.full(stage), 0, work.first_token(), 0, 0, unit * S::kBlocks);
}

// The thread that keeps the ring full. It makes the barriers and asks for the weights of a whole
// ring before anybody else in the CTA is waited for.
template <class S>
class WideProducer {
 public:
  __device__ __forceinline__ WideProducer(const WideParams& p, const WideWork<S>& work,
                                          const WideRing<S>& ring)
      : p_(p), work_(work), ring_(ring), ahead_(Min(work.end, work.begin + p.stages)) {}

  __device__ __forceinline__ void Begin() const {
    PrefetchMap(p_.x);
    ring_.Init();
    if (!p_.weight_ready) GridDependencyWait();
#pragma unroll 1
    for (int unit = work_.begin; unit < ahead_; ++unit) {
      CopyWeight(p_, work_, ring_, unit - work_.begin, unit);
    }
    GridDependencyLaunch();
  }

  __device__ __forceinline__ void Run() const {
    GridDependencyWait();
    FenceAsyncGlobal();  // other kernels wrote x by ordinary stores
#pragma unroll 1
    for (int unit = work_.begin; unit < ahead_; ++unit) {
      CopyInputs(p_, work_, ring_, unit - work_.begin, unit);
    }
    WidePlace place;
#pragma unroll 1
    for (int unit = ahead_; unit < work_.end; ++unit) {
      WaitBarrier(ring_.empty(place.at), place.parity);
      CopyWeight(p_, work_, ring_, place.at, unit);
      CopyInputs(p_, work_, ring_, place.at, unit);
      place.Step(p_.stages);
    }
  }

 private:
  const WideParams& p_;
  const WideWork<S>& work_;
  const WideRing<S>& ring_;
  const int ahead_;
};

// A warpgroup's products, over the CTA's share of k.
template <class S>
class WideSums {
 public:
  __device__ __forceinline__ void Run(const WideParams& p, const WideWork<S>& work,
                                      const WideRing<S>& ring) {
    const int warpgroup = __shfl_sync(kFullWarp, threadIdx.x / kWarpgroupSize, 0);
    const uint64_t weights = MatrixDescriptor(
        ring.weight(0) + warpgroup * S::kRowTiles * kRowTileBytes, kNoColumns, kSwizzledRows);
    const uint64_t inputs = MatrixDescriptor(ring.x(0), kNoColumns, kSwizzledRows);
    // The first products begin the sums: registers written by anything else would have ptxas run
    // all products one after another.
    WaitBarrier(ring.full(0), 0);
    Issue<true>(weights, inputs);
    WidePlace place;
#pragma unroll 1
    for (int unit = work.begin + 1; unit < work.end; ++unit) {
      const int before = place.at;
      place.Step(p.stages);
      WaitBarrier(ring.full(place.at), place.parity);
      Issue<false>(Advance(weights, place.at * S::kStageBytes),
                   Advance(inputs, place.at * S::kStageBytes));
      WgmmaWait<1>();  // the stage before this one has been read
      if (threadIdx.x % kWarpSize == 0) ArriveBarrier(ring.empty(before));
    }
    WgmmaWait<0>();
#pragma unroll
    for (int t = 0; t < S::kRowTiles; ++t) PinRegisters(d_[t]);
  }

  // To [tokens, kSumStride] floats; rows that no token has are left out.
  __device__ __forceinline__ void Leave(float* to, int tokens) const {
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    const int first = warp / 4 * S::kRowTiles * 64 + warp % 4 * 16 + lane / 4;
    to += lane % 4 * 2 * S::kSumStride + first;
#pragma unroll
    for (int j = 0; j < S::kTokens / 8; ++j) {
      if (j * 8 >= tokens) continue;
#pragma unroll
      for (int t = 0; t < S::kRowTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          to[(j * 8 + i % 2) * S::kSumStride + t * 64 + i / 2 * 8] = d_[t][4 * j + i];
        }
      }
    }
  }

 private:
  using T = typename S::Element;
  static constexpr int kNoColumns = 16;  // of a descriptor whose operand has rows along k: unused
  static constexpr int kStepBytes = 32;  // 16 elements of a row
  static constexpr int kBlockSteps = kWideBlock / 16;
  static constexpr int kRowTileBytes = 64 * kWideBlock * 2;

  template <bool kFirst>
  __device__ __forceinline__ void Issue(uint64_t weights, uint64_t inputs) {
    WgmmaFence();
#pragma unroll
    for (int t = 0; t < S::kRowTiles; ++t) {
#pragma unroll
      for (int step = 0; step < S::kBlocks * kBlockSteps; ++step) {
        const int block = step / kBlockSteps, within = step % kBlockSteps * kStepBytes;
        const uint64_t a = Advance(weights, t * kRowTileBytes + block * S::kWeightBlock + within);
        const uint64_t b = Advance(inputs, block * S::kInputBlock + within);
        if (kFirst && step == 0) {
          WgmmaShared<T, false>(d_[t], a, b);
        } else {
          WgmmaShared<T, true>(d_[t], a, b);
        }
      }
    }
    WgmmaCommit();
  }

  float d_[S::kRowTiles][S::kSums];
};

// What a CTA of a cluster stores of the tile: pieces of eight columns, dealt out to all threads of
// the cluster. kCut: there is more than one CTA.
template <class S, bool kGated, bool kCut>
class WideStore {
 public:
  // Begins to read what `add` needs.
  __device__ __forceinline__ WideStore(const WideParams& p, const WideWork<S>& work, float* sums)
      : p_(p),
        sums_(sums),
        first_column_(work.row_tile * kPieces * kPieceColumns),
        first_token_(work.first_token()),
        items_(work.tokens(p) * kPieces),
        item_(work.rank * S::kThreads + static_cast<int>(threadIdx.x)) {
    Look();
  }

  // REQUIRES: a barrier of the cluster since the sums were left.
  __device__ __forceinline__ void Run() {
#pragma unroll 1
    while (item_ < items_) {
      const int token = item_ / kPieces, piece = item_ % kPieces;
      const int column = first_column_ + piece * kPieceColumns;
      T* const to = At(token, column);
      const Piece before = before_;
      item_ += S::kThreads * (kCut ? p_.splits : 1);
      Look();
      if (column >= p_.n) continue;
      float value[kPieceColumns];
      if constexpr (kGated) {
        Gated(token, piece, column, value);
      } else {
        Sum(token, piece * kPieceColumns, column, value);
      }
      if (p_.add) {
        float was[kPieceColumns];
        ToFloats(before, was);
#pragma unroll
        for (int i = 0; i < kPieceColumns; ++i) value[i] = Rounded<T>(value[i]) + was[i];
      }
      StoreElements<T, kPieceColumns>(to, value);
    }
  }

 private:
  using T = typename S::Element;
  using Piece = ElementPack<T, kPieceColumns>;
  static constexpr int kReadAtOnce = 4;                                               // CTAs
  static constexpr int kPieces = (kGated ? S::kRows / 2 : S::kRows) / kPieceColumns;  // of a token

  __device__ __forceinline__ T* At(int token, int column) const {
    return reinterpret_cast<T*>(p_.out + int64_t{first_token_ + token} * p_.out_stride) + column;
  }

  // Reads what `add` adds to the next item, past L1: an earlier kernel on this multiprocessor may
  // have left there what out held before.
  __device__ __forceinline__ void Look() {
    if (!p_.add || item_ >= items_) return;
    const int column = first_column_ + item_ % kPieces * kPieceColumns;
    if (column >= p_.n) return;
    const uint4 bits = __ldcg(reinterpret_cast<const uint4*>(At(item_ / kPieces, column)));
    memcpy(&before_, &bits, sizeof(bits));
  }

  // Four rows' sums, over the cluster in the order of k.
  __device__ __forceinline__ void Add(float* here, float* sum) const {
    float4 all;
    if constexpr (!kCut) {
      all = *reinterpret_cast<const float4*>(here);
    } else {
      all = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (int first = 0; first < kMaxWideCluster; first += kReadAtOnce) {
        float4 part[kReadAtOnce] = {};  // zeros where there is no CTA
#pragma unroll
        for (int i = 0; i < kReadAtOnce; ++i) {
          if (first + i >= p_.splits) continue;
          part[i] = *reinterpret_cast<const float4*>(InClusterCta(here, first + i));
        }
#pragma unroll
        for (int i = 0; i < kReadAtOnce; ++i) {
          all.x += part[i].x;
          all.y += part[i].y;
          all.z += part[i].z;
          all.w += part[i].w;
        }
      }
    }
    sum[0] = all.x;
    sum[1] = all.y;
    sum[2] = all.z;
    sum[3] = all.w;
  }

  // Eight rows' sums, biased.
  __device__ __forceinline__ void Sum(int token, int row, int bias,
                                      float (&value)[kPieceColumns]) const {
    float* const here = sums_ + token * S::kSumStride + row;
    Add(here, value);
    Add(here + 4, value + 4);
    if (p_.bias == nullptr) return;
    float b[kPieceColumns];
    LoadElements<T, kPieceColumns>(reinterpret_cast<const T*>(p_.bias) + bias, b);
#pragma unroll
    for (int i = 0; i < kPieceColumns; ++i) value[i] += b[i];
  }

  // Both products are rounded as they would be stored alone.
  __device__ __forceinline__ void Gated(int token, int piece, int column,
                                        float (&value)[kPieceColumns]) const {
    float gate[kPieceColumns];
    Sum(token, piece * 16, column, gate);
    Sum(token, piece * 16 + 8, p_.n + column, value);
#pragma unroll
    for (int i = 0; i < kPieceColumns; ++i) {
      const float x = Rounded<T>(gate[i]);
      const float open = p_.gate == Gate::kSilu ? Silu::Of(x) : GeluTanh::Of(x);
      value[i] = open * Rounded<T>(value[i]);
    }
  }

  const WideParams& p_;
  float* const sums_;
  const int first_column_, first_token_;
  const int items_;
  int item_;
  Piece before_{};
};

// Every thread of the CTA, after it has left its sums.
template <class S, bool kGated, bool kCut>
__device__ __forceinline__ void StoreWide(const WideParams& p, const WideWork<S>& work,
                                          float* sums) {
  WideStore<S, kGated, kCut> store(p, work, sums);
  if constexpr (kCut) {
    SyncCluster();
    store.Run();
    SyncCluster();  // somebody may still read what this CTA has left
  } else {
    __syncthreads();
    store.Run();
  }
}

template <class S>
__global__ __launch_bounds__(S::kThreads,
                             S::kCtas) void WideKernel(const __grid_constant__ WideParams p) {
#ifdef OCTAVO_SM90A
  unsigned char* const dynamic = DynamicShared();
  const uint32_t begin = SharedAddress(dynamic);
  const uint32_t base = CeilDiv(begin, uint32_t{kSwizzledRows}) * kSwizzledRows;
  auto* const left = reinterpret_cast<float*>(dynamic + (base - begin) + kWideHead);
  const WideRing<S> ring{base, p.stages};
  const WideWork<S> work(p);
  const WideProducer<S> producer(p, work, ring);
  constexpr int kProducer = S::kConsumers;
  if (threadIdx.x == kProducer) producer.Begin();
  __syncwarp();
  __syncthreads();
  const int warp = __shfl_sync(kFullWarp, threadIdx.x / kWarpSize, 0);
  if (warp == kProducer / kWarpSize) {
    if (threadIdx.x == kProducer) producer.Run();
    __syncwarp();
  } else {
    WideSums<S> sums;
    sums.Run(p, work, ring);
    SyncThreadsOf(1, S::kConsumers);  // nobody reads the ring any more
    sums.Leave(left, work.tokens(p));
  }
  GridDependencyWait();
  const bool gated = p.gate != Gate::kNone;
  if (p.splits == 1) {
    gated ? StoreWide<S, true, false>(p, work, left) : StoreWide<S, false, false>(p, work, left);
  } else {
    gated ? StoreWide<S, true, true>(p, work, left) : StoreWide<S, false, true>(p, work, left);
  }
#endif
}

template <class S>
Status LaunchWideShape(const WideChoice& choice, const WideParams& p, cudaStream_t stream) {
  const int row_tiles = CeilDiv(p.gate == Gate::kNone ? p.n : 2 * p.n, S::kRows);
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(row_tiles * p.token_tiles * p.splits);
  shape.cluster = static_cast<unsigned>(p.splits);
  shape.threads = S::kThreads;
  shape.shared_bytes = WideSharedBytes(choice);
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
    OCTAVO_WIDE(2, 2, 64);
    OCTAVO_WIDE(2, 2, 128);
#undef OCTAVO_WIDE
    default:
      return Status::Internal("linear: no such tile");
  }
}

}  // namespace octavo::cuda
