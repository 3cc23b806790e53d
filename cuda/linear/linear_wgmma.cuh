// out = x weight^T + bias for some ten to some hundred rows of x, on wgmma and TMA: for GPUs of
// compute capability 9.0 alone.
//
// Shapes: x [M, K], weight [N, K], bias [N], out [M, N]; K a multiple of 64, N of 16. The weight is
// the m side of the products and x their n side, so that few rows of x waste nothing.
//
// Grid: a cluster for each tile of the weight's rows and of x's, or for some tiles of one x: those
// copy a part of x each, to all of them. The CTAs of a tile share its k, one range each; clusters
// of one weight stand side by side. In a CTA one warp keeps a ring of stages filled, {weight [rows,
// 64], x [tokens, 64]} each, swizzled; the weights of a whole ring are asked for before the kernel
// in front has ended. The other warps multiply, leave their sums in shared memory where the ring
// was, and each CTA of the tile adds and stores a part of it, the sums in the order of k: the bits
// depend on the shapes alone.
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

// A CTA's tile and its share of k. Ranks of a cluster: the CTAs of its first tile in the order of
// k, those of the next one, ...
template <class S>
struct WideWork {
  int row_tile, token_tile;
  int split, member;  // of the tile's CTAs, of the cluster's tiles
  int begin, end;     // units of k

  __device__ __forceinline__ explicit WideWork(const WideParams& p) {
    const int size = p.splits * p.sharers;
    const int cluster = static_cast<int>(blockIdx.x) / size;
    const int rank = static_cast<int>(blockIdx.x) - cluster * size;
    member = rank / p.splits;
    split = rank - member * p.splits;
    const int group = cluster / p.token_tiles;
    row_tile = group * p.sharers + member;
    token_tile = cluster - group * p.token_tiles;
    begin = static_cast<int>(int64_t{p.units} * split / p.splits);
    end = static_cast<int>(int64_t{p.units} * (split + 1) / p.splits);
  }
  // The CTA of the cluster that has the same k of another tile.
  __device__ __forceinline__ int RankOf(const WideParams& p, int other) const {
    return other * p.splits + split;
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
  __device__ __forceinline__ void Init(int sharers) const {
    for (int i = 0; i < stages; ++i) {
      InitBarrier(full(i), 1);
      InitBarrier(empty(i), S::kConsumers / kWarpSize * sharers);
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
  CopyBox5(ring.weight(stage), p.weight, ring.full(stage), unit * kWideUnit, 0, 0,
           work.row_tile * (S::kRows / 16), 0);
}

// The CTA's part of x, to all that share it.
template <class S>
__device__ __forceinline__ void CopyInputs(const WideParams& p, const WideWork<S>& work,
                                           const WideRing<S>& ring, int stage, int unit) {
  if (p.sharers == 1) {
    CopyBox5(ring.x(stage), p.x, ring.full(stage), unit * kWideUnit, work.first_token(), 0, 0, 0);
    return;
  }
  const int first = S::kTokens / p.sharers * work.member;
  int ctas = 0;
  for (int i = 0; i < p.sharers; ++i) ctas |= 1 << work.RankOf(p, i);
  CopyBox5ToCluster(ring.x(stage) + first * kSwizzledRow, p.x, ring.full(stage), ctas,
                    unit * kWideUnit, work.first_token() + first, 0, 0, 0);
}

// One warp's part of letting a stage be overwritten, by all who write to it.
template <class S>
__device__ __forceinline__ void Release(const WideParams& p, const WideWork<S>& work,
                                        const WideRing<S>& ring, int stage) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (p.sharers == 1) {
    if (lane == 0) ArriveBarrier(ring.empty(stage));
  } else if (lane < p.sharers) {
    ArriveBarrierIn(ring.empty(stage), work.RankOf(p, lane));
  }
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
    ring_.Init(p_.sharers);
    if (!p_.weight_ready) GridDependencyWait();
#pragma unroll 1
    for (int unit = work_.begin; unit < ahead_; ++unit) {
      CopyWeight(p_, work_, ring_, unit - work_.begin, unit);
    }
    GridDependencyLaunch();
  }

  // REQUIRES: all barriers that are written to have been made.
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
      Release(p, work, ring, before);
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
  static constexpr int kRowTileBytes = 64 * kWideUnit * 2;

  template <bool kFirst>
  __device__ __forceinline__ void Issue(uint64_t weights, uint64_t inputs) {
    WgmmaFence();
#pragma unroll
    for (int t = 0; t < S::kRowTiles; ++t) {
      WgmmaShared<T, !kFirst>(d_[t], Advance(weights, t * kRowTileBytes), inputs);
#pragma unroll
      for (int step = kStepBytes; step < kWideUnit * 2; step += kStepBytes) {
        WgmmaShared<T, true>(d_[t], Advance(weights, t * kRowTileBytes + step),
                             Advance(inputs, step));
      }
    }
    WgmmaCommit();
  }

  float d_[S::kRowTiles][S::kSums];
};

// What a CTA of a cluster stores of the tile: pieces of eight columns, dealt out to all threads of
// the cluster.
template <class S>
class WideStore {
 public:
  __device__ __forceinline__ WideStore(const WideParams& p, const WideWork<S>& work, float* sums)
      : p_(p),
        gated_(p.gate != Gate::kNone),
        sums_(sums),
        first_rank_(work.RankOf(p, work.member) - work.split),
        pieces_((gated_ ? S::kRows / 2 : S::kRows) / kPieceColumns),
        first_column_(work.row_tile * pieces_ * kPieceColumns),
        first_token_(work.first_token()),
        items_(work.tokens(p) * pieces_),
        item_(work.split * S::kThreads + static_cast<int>(threadIdx.x)) {
    Look();
  }

  // REQUIRES: a barrier of the cluster since the sums were left.
  __device__ __forceinline__ void Run() {
#pragma unroll 1
    while (item_ < items_) {
      const int token = item_ / pieces_, piece = item_ - token * pieces_;
      const int column = first_column_ + piece * kPieceColumns;
      T* const to = At(token, column);
      const Piece before = before_;
      item_ += S::kThreads * p_.splits;
      Look();
      if (column >= p_.n) continue;
      float value[kPieceColumns];
      if (gated_) {
        Gated(token, piece, column, value);
      } else {
        Sum(token, piece * kPieceColumns, column, value);
      }
      if (p_.add) {
        float was[kPieceColumns];
        ToFloats(before, was);
#pragma unroll
        for (int i = 0; i < kPieceColumns; ++i) value[i] += was[i];
      }
      StoreElements<T, kPieceColumns>(to, value);
    }
  }

 private:
  using T = typename S::Element;
  using Piece = ElementPack<T, kPieceColumns>;

  __device__ __forceinline__ T* At(int token, int column) const {
    return reinterpret_cast<T*>(p_.out + int64_t{first_token_ + token} * p_.out_stride) + column;
  }

  // Reads what `add` adds to the next item, past L1: an earlier kernel on this multiprocessor may
  // have left there what out held before.
  __device__ __forceinline__ void Look() {
    if (!p_.add || item_ >= items_) return;
    const int token = item_ / pieces_, piece = item_ - token * pieces_;
    const int column = first_column_ + piece * kPieceColumns;
    if (column >= p_.n) return;
    const uint4 bits = __ldcg(reinterpret_cast<const uint4*>(At(token, column)));
    memcpy(&before_, &bits, sizeof(bits));
  }

  // Four rows' sums over the cluster, in the order of k.
  __device__ __forceinline__ void Add(float* here, float* sum) const {
    float4 part[kMaxWideCluster] = {};  // zeros where there is no CTA
#pragma unroll
    for (int s = 0; s < kMaxWideCluster; ++s) {
      if (s >= p_.splits) continue;
      part[s] = *reinterpret_cast<const float4*>(
          p_.splits == 1 ? here : InClusterCta(here, first_rank_ + s));
    }
    float4 all = part[0];
#pragma unroll
    for (int s = 1; s < kMaxWideCluster; ++s) {
      all.x += part[s].x;
      all.y += part[s].y;
      all.z += part[s].z;
      all.w += part[s].w;
    }
    sum[0] = all.x;
    sum[1] = all.y;
    sum[2] = all.z;
    sum[3] = all.w;
  }

  // Eight rows' sums, biased and rounded as the product alone would be.
  __device__ __forceinline__ void Sum(int token, int row, int bias,
                                      float (&value)[kPieceColumns]) const {
    float* const here = sums_ + token * S::kSumStride + row;
    Add(here, value);
    Add(here + 4, value + 4);
    if (p_.bias != nullptr) {
      float b[kPieceColumns];
      LoadElements<T, kPieceColumns>(reinterpret_cast<const T*>(p_.bias) + bias, b);
#pragma unroll
      for (int i = 0; i < kPieceColumns; ++i) value[i] += b[i];
    }
#pragma unroll
    for (int i = 0; i < kPieceColumns; ++i) value[i] = Rounded<T>(value[i]);
  }

  __device__ __forceinline__ void Gated(int token, int piece, int column,
                                        float (&value)[kPieceColumns]) const {
    float gate[kPieceColumns];
    Sum(token, piece * 16, column, gate);
    Sum(token, piece * 16 + 8, p_.n + column, value);
#pragma unroll
    for (int i = 0; i < kPieceColumns; ++i) {
      const float open = p_.gate == Gate::kSilu ? Silu::Of(gate[i]) : GeluTanh::Of(gate[i]);
      value[i] = Rounded<T>(open * value[i]);
    }
  }

  const WideParams& p_;
  const bool gated_;
  float* const sums_;
  const int first_rank_;  // of the tile's CTAs
  const int pieces_;      // of a token
  const int first_column_, first_token_;
  const int items_;
  int item_;
  Piece before_{};
};

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
  if (p.sharers == 1) {
    __syncthreads();
  } else {
    SyncCluster();  // the others' barriers are there too
  }
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
  WideStore<S> store(p, work, left);
  if (p.splits == 1) {
    __syncthreads();
  } else {
    SyncCluster();
  }
  store.Run();
  // Somebody may still read what this CTA has left, or arrive at its barriers.
  if (p.splits * p.sharers > 1) SyncCluster();
#endif
}

template <class S>
Status LaunchWideShape(const WideChoice& choice, const WideParams& p, cudaStream_t stream) {
  const int rows = p.gate == Gate::kNone ? p.n : 2 * p.n;
  const int groups = CeilDiv(CeilDiv(rows, S::kRows), p.sharers);
  LaunchShape shape;
  shape.cluster = static_cast<unsigned>(p.splits * p.sharers);
  shape.grid = static_cast<unsigned>(groups * p.token_tiles) * shape.cluster;
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
