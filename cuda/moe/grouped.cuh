// out[p] = weight[e] x[p] + bias[e] for the places p of each expert e, on mma.sync.
//
// Shapes: x [P, K], weight [E, M, K], bias [E, M], out [P, M], start [E + 1]; K a multiple of 8.
// Grid: persistent. How many rows an expert has stands on the device alone: every CTA sums the
// tiles of all experts up, then takes each gridDim-th. Tiles run over the places of an expert
// first, so that those who read the same weights do at the same time: memory gives each weight
// once.
//
// The weight is the A operand of mma m16n8k16, rows of x fill the n side: few rows waste little.
// Shared memory: a ring of stages {weight [rows, 64], x [places, 64]} that the CTA fills together
// and that runs on over tiles, then the experts' ranges. 16-byte piece c of row r lies at piece
// c ^ (r % 8): ldmatrix then meets no bank twice.
//
// Bound by the bytes of the weights for few rows an expert, by FLOPs for many. An element's terms
// are added in the order of k by one warp, whatever the tile: it has the same bits in any company.
#pragma once

#include "attention/schedule.h"
#include "attention/tile_layout.cuh"
#include "common/element.cuh"
#include "common/scan.cuh"
#include "moe/grouped.h"

namespace octavo::cuda {

// A CTA's tile: kRows rows of a weight against kPlaces rows of x; warps share both.
template <typename ElementT, int kRowsV, int kPlacesV, int kRowWarpsV, int kPlaceWarpsV,
          int kStagesV, int kCtasV>
struct GroupedShape {
  using Element = ElementT;
  static constexpr int kRows = kRowsV;
  static constexpr int kPlaces = kPlacesV;
  static constexpr int kRowWarps = kRowWarpsV;
  static constexpr int kThreads = kRowWarpsV * kPlaceWarpsV * kWarpSize;
  static constexpr int kStages = kStagesV;
  static constexpr int kCtas = kCtasV;  // on a multiprocessor, where its shared memory suffices
  static constexpr int kRowTiles = kRows / kRowWarpsV / 16;        // of a warp
  static constexpr int kPlaceTiles = kPlaces / kPlaceWarpsV / 16;  // of a warp, two mma each
  static constexpr int kUnit = 64;                                 // k of a stage
  static constexpr int kRowBytes = kUnit * 2;
  static constexpr int kRowPieces = kRowBytes / kPieceBytes;
  static constexpr int kRowsAtOnce = kThreads / kRowPieces;
  static constexpr int kWeightBytes = kRows * kRowBytes;
  static constexpr int kStageBytes = kWeightBytes + kPlaces * kRowBytes;
  static constexpr int kRingBytes = kStages * kStageBytes;

  static_assert(sizeof(Element) == 2);
  static_assert(kRowTiles * kRowWarpsV * 16 == kRows && kPlaceTiles * kPlaceWarpsV * 16 == kPlaces);
  static_assert(kRows % kRowsAtOnce == 0 && kPlaces % kRowsAtOnce == 0);
  static_assert(kStages >= 2, "one stage is read while another one fills");
  static_assert(kRingBytes <= 144 * 1024, "what sm_80 gives a block, less the experts' ranges");
};

// Which places each expert owns, and the tiles of places before it.
struct ExpertRanges {
  int32_t* begin;   // [E]
  int32_t* end;     // [E]
  int32_t* before;  // [E + 1]
};
inline constexpr int GroupedRangeBytes(int experts) { return (3 * experts + 1) * 4; }

struct GroupedTileAt {
  int expert;
  int row;    // of the weight
  int place;  // of x
  int end;    // of the expert's places
};

template <class S>
__device__ __forceinline__ ExpertRanges ReadRanges(const GroupedParams& p, unsigned char* shared,
                                                   int32_t* scratch) {
  ExpertRanges r;
  r.before = reinterpret_cast<int32_t*>(shared);
  r.begin = r.before + p.experts + 1;
  r.end = r.begin + p.experts;
  for (int e = threadIdx.x; e < p.experts; e += S::kThreads) {
    const int begin = Min(Max(p.start[e], 0), p.places);
    r.begin[e] = begin;
    r.end[e] = Min(Max(p.start[e + 1], begin), p.places);
  }
  __syncthreads();
  SumsBefore(r.before, p.experts, scratch,
             [&](int e) { return CeilDiv(r.end[e] - r.begin[e], S::kPlaces); });
  return r;
}

// A walk over this CTA's tiles, a unit of k at a time. One loads, one multiplies.
template <class S>
class GroupedWalk {
 public:
  __device__ __forceinline__ GroupedWalk(const GroupedParams& p, const ExpertRanges& ranges)
      : p_(p), ranges_(ranges), number_(static_cast<int>(blockIdx.x)) {
    Locate();
  }

  __device__ __forceinline__ bool live() const {
    return number_ < ranges_.before[p_.experts] * CeilDiv(p_.m, S::kRows);
  }
  __device__ __forceinline__ bool ends_tile() const { return k_ + S::kUnit >= p_.k; }
  __device__ __forceinline__ const GroupedTileAt& tile() const { return tile_; }
  __device__ __forceinline__ int k() const { return k_; }

  __device__ __forceinline__ void Advance() {
    if (!ends_tile()) {
      k_ += S::kUnit;
      return;
    }
    k_ = 0;
    number_ += static_cast<int>(gridDim.x);
    Locate();
  }

 private:
  __device__ __forceinline__ void Locate() {
    if (!live()) return;
    const int row_tiles = CeilDiv(p_.m, S::kRows);
    const int e = FindOwner(ranges_.before, p_.experts, number_ / row_tiles);
    const int first = ranges_.before[e], count = ranges_.before[e + 1] - first;
    const int within = number_ - first * row_tiles, row = within / count;
    tile_ = {e, row * S::kRows, ranges_.begin[e] + (within - row * count) * S::kPlaces,
             ranges_.end[e]};
  }

  const GroupedParams& p_;
  const ExpertRanges& ranges_;
  int number_;
  int k_ = 0;
  GroupedTileAt tile_ = {};
};

// Sets a unit's pieces going; what lies beyond the weight, the expert's places or k is zero.
template <class S>
__device__ __forceinline__ void IssueUnit(const GroupedParams& p, const GroupedWalk<S>& walk,
                                          uint32_t stage) {
  const GroupedTileAt& t = walk.tile();
  const int piece = threadIdx.x % S::kRowPieces, first = threadIdx.x / S::kRowPieces;
  const int k = walk.k() + piece * (kPieceBytes / 2);
  const char* const weight = p.weight + t.expert * p.expert_stride + k * 2;
#pragma unroll
  for (int row = 0; row < S::kRows; row += S::kRowsAtOnce) {
    const bool live = k < p.k && t.row + first + row < p.m;
    CopyAsync16OrZero(stage + PieceOffset<S>(first + row, piece),
                      live ? weight + (t.row + first + row) * p.weight_stride : p.weight, live);
  }
  const char* const x = p.x + k * 2;
#pragma unroll
  for (int row = 0; row < S::kPlaces; row += S::kRowsAtOnce) {
    const bool live = k < p.k && t.place + first + row < t.end;
    CopyAsync16OrZero(stage + S::kWeightBytes + PieceOffset<S>(first + row, piece),
                      live ? x + (t.place + first + row) * p.x_stride : p.x, live);
  }
}

template <class S>
struct GroupedSums {
  using T = typename S::Element;
  float c[S::kRowTiles][2 * S::kPlaceTiles][4];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < S::kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 2 * S::kPlaceTiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) c[i][j][e] = 0.0f;
      }
    }
  }

  // This warp's first row and place within the tile.
  static __device__ __forceinline__ int FirstRow() {
    return threadIdx.x / kWarpSize % S::kRowWarps * S::kRowTiles * 16;
  }
  static __device__ __forceinline__ int FirstPlace() {
    return threadIdx.x / kWarpSize / S::kRowWarps * S::kPlaceTiles * 16;
  }

  __device__ __forceinline__ void AddUnit(uint32_t stage) {
    const int lane = threadIdx.x % kWarpSize;
    const uint32_t a_at = LaneAddress<S>(stage, FirstRow() + lane % 16, lane / 16);
    const int place = FirstPlace() + (lane & 7) + (lane >> 4) * 8;
    const uint32_t b_at = LaneAddress<S>(stage + S::kWeightBytes, place, (lane >> 3) & 1);
#pragma unroll
    for (int d = 0; d < S::kUnit / 16; ++d) {
      uint32_t b[S::kPlaceTiles][4];
#pragma unroll
      for (int j = 0; j < S::kPlaceTiles; ++j) {
        LoadMatrix4(b[j], StepPieces(b_at, d) + j * 16 * S::kRowBytes);
      }
#pragma unroll
      for (int i = 0; i < S::kRowTiles; ++i) {
        uint32_t a[4];
        LoadMatrix4(a, StepPieces(a_at, d) + i * 16 * S::kRowBytes);
#pragma unroll
        for (int j = 0; j < S::kPlaceTiles; ++j) {
          Mma16x8x16<T>(c[i][2 * j], a, b[j][0], b[j][1]);
          Mma16x8x16<T>(c[i][2 * j + 1], a, b[j][2], b[j][3]);
        }
      }
    }
  }

  __device__ __forceinline__ void Store(const GroupedParams& p, const GroupedTileAt& t) const {
    const int lane = threadIdx.x % kWarpSize;
    const int row = t.row + FirstRow() + lane / 4, place = t.place + FirstPlace() + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2 * S::kRowTiles; ++i) {
      const int r = row + i * 8;
      if (r >= p.m) continue;
      float bias = 0.0f;
      if (p.bias != nullptr) {
        bias = ToFloat(reinterpret_cast<const T*>(p.bias + t.expert * p.bias_stride)[r]);
      }
#pragma unroll
      for (int j = 0; j < 4 * S::kPlaceTiles; ++j) {
        const int at = place + j / 2 * 8 + j % 2;
        if (at >= t.end) continue;
        octavo::cuda::Store(reinterpret_cast<T*>(p.out + at * p.out_stride) + r,
                            c[i / 2][j / 2][i % 2 * 2 + j % 2] + bias);
      }
    }
  }
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kCtas)
    GroupedKernel(const __grid_constant__ GroupedParams p) {
  unsigned char* const shared = DynamicShared();
  __shared__ int32_t scratch[kMaxScanWarps];
  GridDependencyWait();
  GridDependencyLaunch();
  const ExpertRanges ranges = ReadRanges<S>(p, shared + S::kRingBytes, scratch);
  const uint32_t ring = SharedAddress(shared);
  GroupedWalk<S> loads(p, ranges), sums(p, ranges);
#pragma unroll 1
  for (int i = 0; i < S::kStages - 1; ++i) {
    if (loads.live()) {
      IssueUnit<S>(p, loads, ring + i * S::kStageBytes);
      loads.Advance();
    }
    CopyAsyncCommit();  // also when empty: waiting counts groups
  }
  GroupedSums<S> acc;
  acc.Clear();
  int write = S::kStages - 1, read = 0;
#pragma unroll 1
  while (sums.live()) {
    CopyAsyncWait<S::kStages - 2>();
    __syncthreads();  // the unit is there for all, and nobody reads the one before it any more
    if (loads.live()) {
      IssueUnit<S>(p, loads, ring + write * S::kStageBytes);
      loads.Advance();
    }
    CopyAsyncCommit();
    write = write == S::kStages - 1 ? 0 : write + 1;
    acc.AddUnit(ring + read * S::kStageBytes);
    read = read == S::kStages - 1 ? 0 : read + 1;
    if (sums.ends_tile()) {
      acc.Store(p, sums.tile());
      acc.Clear();
    }
    sums.Advance();
  }
}

template <class S>
Status LaunchGroupedShape(const GroupedParams& p, const DeviceFacts& facts, cudaStream_t stream) {
  constexpr int kReservedBytes = 1024 + kMaxScanWarps * 4;  // of a CTA, by the driver and scratch
  LaunchShape shape;
  shape.threads = S::kThreads;
  shape.shared_bytes = S::kRingBytes + GroupedRangeBytes(p.experts);
  shape.stream = stream;
  const int fit = facts.shared_per_multiprocessor / (shape.shared_bytes + kReservedBytes);
  // Each expert's last tile may be one that it does not fill.
  const int64_t most = (int64_t{p.places} / S::kPlaces + Min(p.places, p.experts)) *
                       CeilDiv(int64_t{p.m}, int64_t{S::kRows});
  shape.grid = static_cast<unsigned>(
      Min<int64_t>(most, int64_t{facts.multiprocessors} * Max(1, Min(fit, S::kCtas))));
  return LaunchDependent(GroupedKernel<S>, shape, p);
}

template <typename T>
Status LaunchGroupedOf(GroupedTile tile, const GroupedParams& p, const DeviceFacts& facts,
                       cudaStream_t stream) {
  switch (tile) {
    case GroupedTile::kFew:
      return LaunchGroupedShape<GroupedShape<T, 64, 16, 4, 1, 6, 3>>(p, facts, stream);
    case GroupedTile::kSome:
      return LaunchGroupedShape<GroupedShape<T, 128, 64, 4, 2, 4, 2>>(p, facts, stream);
    default:
      return LaunchGroupedShape<GroupedShape<T, 128, 128, 2, 4, 4, 1>>(p, facts, stream);
  }
}

}  // namespace octavo::cuda
