// The norm of the inputs of a product of few rows: x / rms(x) * (weight + offset), rounded to T, in
// the registers that go into the product.
//
// Every CTA sums the squares of all rows, a thread every n-th piece of each, the warps' sums in
// their order: a row's scale depends on nothing but the row and the shape of the CTA. That reads x
// once more from L2, which costs less than a kernel of its own. The weight of the norm lies in
// shared memory, read ahead like the product's.
#pragma once

#include <cstring>

#include "common/element.cuh"
#include "common/host_device.h"
#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "linear/linear.h"
#include "rows/norm.cuh"

namespace octavo::cuda {

inline constexpr int kUnit = kLinearUnit;  // 128 bytes of a row
inline constexpr int kPieceElements = 8;   // of 16 bits
inline constexpr int kGroupRows = 8;
inline constexpr int kTokensOfMma = 8;

template <typename T>
__device__ __forceinline__ void WidenPiece(const uint4& piece, float (&x)[kPieceElements]) {
  ElementPack<T, kPieceElements> pack;
  static_assert(sizeof(pack) == sizeof(piece));
  memcpy(&pack, &piece, sizeof(pack));
  ToFloats(pack, x);
}

// Behind the rings and sums: the norm's weight, zeros past k, then a sum for each warp and token.
struct NormMemory {
  unsigned char* weight;
  float* sums;

  __device__ __forceinline__ NormMemory(const LinearParams& p, unsigned char* at)
      : weight(at), sums(reinterpret_cast<float*>(at + p.units * kUnit * 2)) {}
};

__device__ __forceinline__ void IssueNormWeight(const LinearParams& p, const NormMemory& memory) {
  const int pieces = p.units * (kUnit / kPieceElements);
  for (int i = threadIdx.x; i < pieces; i += p.warps * kWarpSize) {
    const bool live = i * kPieceElements < p.k;
    CopyAsync16OrZero(SharedAddress(memory.weight) + i * kPieceBytes,
                      live ? p.norm + i * kPieceBytes : p.norm, live);
  }
}

// Leaves each warp's part of the sums of squares.
template <class S>
__device__ __forceinline__ void SumSquares(const LinearParams& p, const NormMemory& memory) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int first = 0; first < S::kTokens; first += kTokensOfMma) {
    float sum[kTokensOfMma] = {};
#pragma unroll 1
    for (int i = threadIdx.x; i * kPieceElements < p.k; i += p.warps * kWarpSize) {
      uint4 piece[kTokensOfMma];
#pragma unroll
      for (int t = 0; t < kTokensOfMma; ++t) {
        if (first + t >= p.m) continue;
        const char* const row = p.x + (first + t) * p.x_stride;
        piece[t] = __ldcg(reinterpret_cast<const uint4*>(row) + i);
      }
#pragma unroll
      for (int t = 0; t < kTokensOfMma; ++t) {
        if (first + t >= p.m) continue;
        float x[kPieceElements];
        WidenPiece<typename S::Element>(piece[t], x);
        sum[t] = AddSquares(sum[t], x);
      }
    }
#pragma unroll
    for (int t = 0; t < kTokensOfMma; ++t) {
      if (first + t >= p.m) continue;
      const float of_warp = SumOfWarp(sum[t]);
      if (lane == 0) memory.sums[warp * S::kTokens + first + t] = of_warp;
    }
  }
}

// What a lane needs of the norm: its own tokens' scales, and where the weight of its pieces lies.
template <class S>
struct LaneNorm {
  float inverse[S::kTokenTiles];
  float offset;
  uint32_t weight;

  // REQUIRES: a barrier since SumSquares.
  __device__ __forceinline__ void Read(const LinearParams& p, const NormMemory& memory) {
    const int lane = threadIdx.x % kWarpSize, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int b = 0; b < S::kTokenTiles; ++b) {
      const int token = b * kTokensOfMma + g;
      float sum = 0.0f;
      for (int w = 0; token < p.m && w < p.warps; ++w) sum += memory.sums[w * S::kTokens + token];
      inverse[b] = token < p.m ? InverseRms(sum, p.k, p.eps) : 0.0f;
    }
    offset = p.norm_offset;
    weight = SharedAddress(memory.weight) + c * kPieceBytes;
  }

  // Norms the lane's pieces q of a unit, a row of x each.
  __device__ __forceinline__ void Apply(int unit, int q, uint4 (&x)[S::kTokenTiles]) const {
    using T = typename S::Element;
    float w[kPieceElements];
    WidenPiece<T>(LoadShared16(weight + (unit * 2 + q) * (kUnit / 2 * 2)), w);
#pragma unroll
    for (int b = 0; b < S::kTokenTiles; ++b) {
      float y[kPieceElements];
      WidenPiece<T>(x[b], y);
      ScaleByWeight(y, w, inverse[b], offset);
      x[b] = make_uint4(Pack<T>(y[0], y[1]), Pack<T>(y[2], y[3]), Pack<T>(y[4], y[5]),
                        Pack<T>(y[6], y[7]));
    }
  }
};

}  // namespace octavo::cuda
