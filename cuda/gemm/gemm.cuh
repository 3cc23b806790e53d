// out = x weight^T + bias for any number of rows of x, an element the same bits for any of them.
//
// Shapes: x [M, K], weight [N, K], bias [N], out [M, N], bfloat16 or float16; K a multiple of 8.
// Grid: a CTA a tile of out. mma.sync m16n8k16 with x as its A operand; the warps of a CTA share
// the tile's rows and columns, none shares an element: each is one accumulator, to which k is added
// in steps of 16 from the first to the last, in a tile of any height. So the tile may follow M.
//
// Shared memory: a ring of stages of {x [rows, 64], weight [columns, 64]}, swizzled, filled by
// cp.async. What lies past M, N or K is zero.
//
// Bound by FLOPs where rows are many, by the bytes of the weight where they are few. A BLAS is
// faster: it cuts k where that fills the device and picks its order by the shape.
#pragma once

#include "attention/tile_layout.cuh"
#include "common/element.cuh"
#include "common/ptx.cuh"
#include "gemm/gemm.h"

namespace octavo::cuda {

// A warp has kRowTiles x kColumnTiles accumulators of 16 x 8.
template <typename ElementT, GemmTile kTile, int kRowTilesV, int kColumnTilesV, int kRowWarpsV,
          int kColumnWarpsV, int kStagesV, int kCtasV>
struct GemmShape {
  using Element = ElementT;
  static constexpr int kRowTiles = kRowTilesV;
  static constexpr int kColumnTiles = kColumnTilesV;
  static constexpr int kColumnWarps = kColumnWarpsV;
  static constexpr int kThreads = kRowWarpsV * kColumnWarpsV * kWarpSize;
  static constexpr int kRows = kRowWarpsV * kRowTiles * 16;
  static constexpr int kColumns = kColumnWarpsV * kColumnTiles * 8;
  static constexpr int kStages = kStagesV;
  static constexpr int kCtasPerMultiprocessor = kCtasV;
  static constexpr int kRowBytes = kGemmUnit * 2;
  static constexpr int kRowPieces = kRowBytes / kPieceBytes;
  static constexpr int kInputBytes = kRows * kRowBytes;
  static constexpr int kStageBytes = kInputBytes + kColumns * kRowBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;

  static_assert(sizeof(Element) == 2);
  static_assert(kRows == SizeOf(kTile).rows && kColumns == SizeOf(kTile).columns);
  static_assert(kColumnTiles % 2 == 0, "a load of B is two column tiles");
  static_assert(kRowPieces == 8, "the swizzle is of eight pieces");
  static_assert(kThreads % kRowPieces == 0);
  static_assert(kSharedBytes <= 99 * 1024, "what every device from sm_80 on gives a block");
};

template <typename T>
using GemmLow = GemmShape<T, GemmTile::kLow, 1, 2, 1, 2, 8, 4>;
template <typename T>
using GemmMiddle = GemmShape<T, GemmTile::kMiddle, 2, 4, 2, 2, 4, 3>;
template <typename T>
using GemmHigh = GemmShape<T, GemmTile::kHigh, 4, 4, 2, 4, 3, 2>;

// Rows [first, first + kCount) of a matrix, 64 columns from `k` on, to `to`.
template <class S, int kCount>
__device__ __forceinline__ void LoadRows(const char* from, int64_t stride, int32_t first,
                                         int32_t rows, int32_t k, int32_t columns, uint32_t to) {
  constexpr int kRowsAtOnce = S::kThreads / S::kRowPieces;
  static_assert(kCount % kRowsAtOnce == 0 || kCount < kRowsAtOnce);
  const int piece = static_cast<int>(threadIdx.x) % S::kRowPieces;
  const int32_t column = k + piece * (kPieceBytes / 2);
#pragma unroll
  for (int i = 0; i < kCount; i += kRowsAtOnce) {
    const int row = i + static_cast<int>(threadIdx.x) / S::kRowPieces;
    if (kCount < kRowsAtOnce && row >= kCount) break;
    const bool live = first + row < rows && column < columns;
    const int64_t at = int64_t{first + row} * stride + int64_t{column} * 2;
    CopyAsync16OrZero(to + PieceOffset<S>(row, piece), live ? from + at : from, live);
  }
}

// One CTA's tile.
template <class S>
class GemmWork {
 public:
  using T = typename S::Element;

  __device__ __forceinline__ GemmWork(const GemmParams& p, uint32_t ring) : p_(p), ring_(ring) {
    const GemmPlace place = PlaceOf(blockIdx.x, p.row_tiles, p.column_tiles);
    row_ = place.row * S::kRows;
    column_ = place.column * S::kColumns;
    units_ = CeilDiv(p.k, kGemmUnit);
  }

  __device__ __forceinline__ void Run() {
#pragma unroll
    for (int unit = 0; unit < S::kStages - 1; ++unit) Load(unit);
#pragma unroll 1
    for (int unit = 0; unit < units_; ++unit) {
      CopyAsyncWait<S::kStages - 2>();
      __syncthreads();  // every thread's pieces are there, and nobody reads the stage before
      Load(unit + S::kStages - 1);
      Add(ring_ + unit % S::kStages * S::kStageBytes);
    }
    CopyAsyncWait<0>();
    Store();
  }

 private:
  // Sets a unit going; beyond the last an empty group, so that waiting stays a matter of counting.
  __device__ __forceinline__ void Load(int unit) {
    if (unit < units_) {
      const uint32_t stage = ring_ + unit % S::kStages * S::kStageBytes;
      const int32_t k = unit * kGemmUnit;
      LoadRows<S, S::kRows>(p_.x, p_.x_stride, row_, p_.m, k, p_.k, stage);
      LoadRows<S, S::kColumns>(p_.weight, p_.weight_stride, column_, p_.n, k, p_.k,
                               stage + S::kInputBytes);
    }
    CopyAsyncCommit();
  }

  __device__ __forceinline__ static int FirstRowOfWarp() {
    return static_cast<int>(threadIdx.x) / kWarpSize / S::kColumnWarps * S::kRowTiles * 16;
  }
  __device__ __forceinline__ static int FirstColumnOfWarp() {
    return static_cast<int>(threadIdx.x) / kWarpSize % S::kColumnWarps * S::kColumnTiles * 8;
  }

  __device__ __forceinline__ void Add(uint32_t stage) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const uint32_t x_at = LaneAddress<S>(stage, FirstRowOfWarp() + lane % 16, lane / 16);
    const uint32_t w_at =
        LaneAddress<S>(stage + S::kInputBytes, FirstColumnOfWarp() + (lane & 7) + (lane >> 4) * 8,
                       (lane >> 3) & 1);
#pragma unroll
    for (int step = 0; step < kGemmUnit / 16; ++step) {
      uint32_t a[S::kRowTiles][4];
#pragma unroll
      for (int m = 0; m < S::kRowTiles; ++m) {
        LoadMatrix4(a[m], StepPieces(x_at, step) + m * 16 * S::kRowBytes);
      }
#pragma unroll
      for (int n = 0; n < S::kColumnTiles / 2; ++n) {
        uint32_t b[4];
        LoadMatrix4(b, StepPieces(w_at, step) + n * 16 * S::kRowBytes);
#pragma unroll
        for (int m = 0; m < S::kRowTiles; ++m) {
          Mma16x8x16<T>(sum_[m][2 * n], a[m], b[0], b[1]);
          Mma16x8x16<T>(sum_[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void Store() const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
    for (int n = 0; n < S::kColumnTiles; ++n) {
      const int32_t column = column_ + FirstColumnOfWarp() + n * 8 + 2 * (lane % 4);
      if (column >= p_.n) continue;
      const bool both = column + 1 < p_.n;
      float bias[2] = {0.0f, 0.0f};
      if (p_.bias != nullptr) {
        const T* const at = reinterpret_cast<const T*>(p_.bias) + column;
        bias[0] = ToFloat(at[0]);
        if (both) bias[1] = ToFloat(at[1]);
      }
#pragma unroll
      for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int32_t row = row_ + FirstRowOfWarp() + m * 16 + h * 8 + lane / 4;
          if (row < p_.m) {
            StorePair(row, column, both, sum_[m][n][2 * h] + bias[0],
                      sum_[m][n][2 * h + 1] + bias[1]);
          }
        }
      }
    }
  }

  __device__ __forceinline__ void StorePair(int32_t row, int32_t column, bool both, float low,
                                            float high) const {
    T* const to = reinterpret_cast<T*>(p_.out + int64_t{row} * p_.out_stride) + column;
    if (both && p_.pairs) {
      *reinterpret_cast<uint32_t*>(to) = Pack<T>(low, high);
      return;
    }
    octavo::cuda::Store(to, low);
    if (both) octavo::cuda::Store(to + 1, high);
  }

  const GemmParams& p_;
  const uint32_t ring_;
  int32_t row_, column_, units_;
  float sum_[S::kRowTiles][S::kColumnTiles][4] = {};
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kCtasPerMultiprocessor)
    GemmKernel(const __grid_constant__ GemmParams p) {
  GridDependencyWait();
  GridDependencyLaunch();
  GemmWork<S> work(p, SharedAddress(DynamicShared()));
  work.Run();
}

template <class S>
Status LaunchGemmShape(GemmParams p, cudaStream_t stream) {
  p.row_tiles = CeilDiv(p.m, S::kRows);
  p.column_tiles = CeilDiv(p.n, S::kColumns);
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(p.row_tiles) * static_cast<unsigned>(p.column_tiles);
  shape.threads = S::kThreads;
  shape.shared_bytes = S::kSharedBytes;
  shape.stream = stream;
  return LaunchDependent(GemmKernel<S>, shape, p);
}

template <typename T>
Status LaunchGemmOf(GemmTile tile, GemmParams p, cudaStream_t stream) {
  switch (tile) {
    case GemmTile::kLow:
      return LaunchGemmShape<GemmLow<T>>(p, stream);
    case GemmTile::kMiddle:
      return LaunchGemmShape<GemmMiddle<T>>(p, stream);
    default:
      return LaunchGemmShape<GemmHigh<T>>(p, stream);
  }
}

}  // namespace octavo::cuda
