// A norm between two wgmma products (linear_wgmma.cuh), half of it in each. The first one stores
// its sums times the norm's weight, beside the sums of squares of 64 columns each; the second one
// adds those of a row and divides its own sums by the root of their mean.
//
// Bound by latency: 3 % of the bytes of x, and they are read while x is on its way. The order of
// additions depends on the shapes alone.
#pragma once

#include "common/reduce.cuh"
#include "linear/linear_wgmma_ring.cuh"
#include "rows/norm.cuh"

namespace octavo::cuda {

inline constexpr int kSquaresLanes = 4;  // of a row of x, four sums at once
inline constexpr int kSquaresRows = 4;   // of a lane, asked for together

// Leaves 1 / rms of the rows of x that the CTA's tiles have in shared memory, for all warps that
// multiply, which all call it.
template <class S>
__device__ __forceinline__ void MakeScales(const WideParams& p, float* scales) {
  if (!S::kHalfNorms || p.squares == nullptr) return;
  GridDependencyWait();
  const bool one_tile = FirstTile(p) + TileStep(p) >= p.tiles;
  const WideWork<S> work(p, FirstTile(p));
  const int first = one_tile ? work.first_token(p) : 0;
  const int end = one_tile ? first + work.tokens(p) : p.m;
  constexpr int kStep = S::kConsumers / kSquaresLanes;  // rows
  const int part = static_cast<int>(threadIdx.x) % kSquaresLanes;
#pragma unroll 1
  for (int begin = first; begin < end; begin += kSquaresRows * kStep) {
    const int row = begin + static_cast<int>(threadIdx.x) / kSquaresLanes;
    float sum[kSquaresRows] = {};
#pragma unroll 2
    for (int i = part; i * 4 < p.squares_count; i += kSquaresLanes) {
      const int left = p.squares_count - i * 4;  // behind them nothing was stored
      float4 four[kSquaresRows] = {};
#pragma unroll
      for (int r = 0; r < kSquaresRows; ++r) {
        if (row + r * kStep >= end) continue;
        const float* const at = p.squares + (row + r * kStep) * p.squares_stride;
        four[r] = __ldcg(reinterpret_cast<const float4*>(at) + i);
      }
#pragma unroll
      for (int r = 0; r < kSquaresRows; ++r) {
        sum[r] += four[r].x + (left > 1 ? four[r].y : 0.0f);
        sum[r] += (left > 2 ? four[r].z : 0.0f) + (left > 3 ? four[r].w : 0.0f);
      }
    }
#pragma unroll
    for (int r = 0; r < kSquaresRows; ++r) {
#pragma unroll
      for (int step = kSquaresLanes / 2; step > 0; step /= 2) {
        sum[r] += __shfl_xor_sync(kFullWarp, sum[r], step);
      }
      if (part > 0 || row + r * kStep >= end) continue;
      scales[row + r * kStep] =
          InverseRms(sum[r], p.squares_count * static_cast<int>(kSquaresColumns), p.eps);
    }
  }
  SyncThreadsOf(1 + S::kWarpgroups, S::kConsumers);
}

// The sums of a chunk that begins at this token, by their rows' scales: `scales` are those of the
// tile's rows.
template <class S, int kSums>
__device__ __forceinline__ void ApplyScales(const WideParams& p, const float* scales, int chunk,
                                            int end, float (&v)[kSums]) {
  if (!S::kHalfNorms || p.squares == nullptr) return;
  const int own = chunk + 2 * (ThreadAfresh() % 4);  // as WideStore::Run has tokens
#pragma unroll
  for (int j = 0; j < kSums / 4; ++j) {
    if (chunk + 8 * j >= end) break;
    const float2 two = *reinterpret_cast<const float2*>(scales + own + 8 * j);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[4 * j + i] *= i % 2 == 0 ? two.x : two.y;
  }
}

// A piece of out times what the next norm multiplies its columns by.
template <typename T, int kColumns>
__device__ __forceinline__ ElementPack<T, kColumns> ScalePiece(
    const float (&value)[kColumns], const ElementPack<T, kColumns>& weight, float offset) {
  float scaled[kColumns], w[kColumns];
  ToFloats(weight, w);
#pragma unroll
  for (int c = 0; c < kColumns; ++c) scaled[c] = value[c] * (w[c] + offset);
  return PackOf<T>(scaled);
}

}  // namespace octavo::cuda
