// A tile's keys and values as fragments of mma m16n8k16, from a cache of 16 bits or of e4m3.
//
// ldmatrix moves units of 16 bits. Of e4m3 such a unit is two head dims, so that one load brings
// two steps: 16 tokens by 32 dims. Lane l then holds of a key four dims in a row, 4 (l % 4) on: a
// sum over dims may run in any order, and queries are read in the same. Of values it holds, by
// ldmatrix.trans, the dims 2 (l / 4) and the next of two tokens: their bytes change places, and the
// rows l / 4 and l / 4 + 8 of O^T stand for those two dims.
#pragma once

#include "attention/decode.h"
#include "attention/tile_layout.cuh"
#include "common/e4m3.cuh"
#include "common/host_device.h"
#include "common/ptx.cuh"

namespace octavo::cuda {

template <class S>
inline constexpr int kStepsOfLoad = S::kFp8 ? 2 : 1;

// The lane's address for LoadKeys of the first steps; StepPieces leads to the others.
template <class S>
__device__ __forceinline__ uint32_t KeyAddress(uint32_t tile) {
  const int lane = threadIdx.x % kWarpSize;
  return LaneAddress<S>(tile, (lane & 7) + ((lane >> 3) & 1) * 8, lane >> 4);
}

template <class S>
__device__ __forceinline__ uint32_t ValueAddress(uint32_t tile) {
  if constexpr (S::kFp8) return KeyAddress<S>(tile);
  const int lane = threadIdx.x % kWarpSize;
  return LaneAddress<S>(tile, (lane & 7) + (lane >> 4) * 8, (lane >> 3) & 1);
}

__device__ __forceinline__ uint32_t LowHalves(uint32_t codes) {
  return HalvesOfCodes(static_cast<uint16_t>(codes));
}
__device__ __forceinline__ uint32_t HighHalves(uint32_t codes) {
  return HalvesOfCodes(static_cast<uint16_t>(codes >> 16));
}

// The A operands of S^T for kStepsOfLoad steps: 16 tokens by 16 dims each.
template <class S>
__device__ __forceinline__ void LoadKeys(uint32_t (&a)[kStepsOfLoad<S>][4], uint32_t at) {
  if constexpr (S::kFp8) {
    uint32_t r[4];
    LoadMatrix4(r, at);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      a[i][0] = LowHalves(r[2 * i]);
      a[i][1] = LowHalves(r[2 * i + 1]);
      a[i][2] = HighHalves(r[2 * i]);
      a[i][3] = HighHalves(r[2 * i + 1]);
    }
  } else {
    LoadMatrix4(a[0], at);
  }
}

// The A operands of O^T for kStepsOfLoad steps: 16 dims by 16 tokens each.
template <class S>
__device__ __forceinline__ void LoadValues(uint32_t (&a)[kStepsOfLoad<S>][4], uint32_t at) {
  if constexpr (S::kFp8) {
    uint32_t r[4];
    LoadMatrix4Transposed(r, at);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t dims = __byte_perm(r[i], 0, 0x3120);  // both tokens of a dim side by side
      a[i / 2][i % 2 * 2] = LowHalves(dims);
      a[i / 2][i % 2 * 2 + 1] = HighHalves(dims);
    }
  } else {
    LoadMatrix4Transposed(a[0], at);
  }
}

// What queries were multiplied by so that float16 holds them, taken back from their scores. Nothing
// where they are multiplied as they are.
template <class S, bool kScaled = !std::is_same_v<typename S::Product, typename S::Element>>
struct QueryScales {
  template <typename Queries>
  __device__ __forceinline__ void Take(Queries&) {}
  template <typename Scores>
  __device__ __forceinline__ void Apply(Scores&) const {}
};

// Queries of bfloat16 become float16 exactly, once a power of two has brought the largest of each
// to 2^14: what lies so far below it that it loses bits, 2^31, no float32 sum would notice.
template <class S>
struct QueryScales<S, true> {
  static constexpr int kSteps = S::kHeadDim / 16, kNs = S::kColumnTiles;
  float back[kNs][2];  // of the columns that this lane has scores of

  __device__ __forceinline__ void Take(uint32_t (&q)[kSteps][kNs][2]) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int n = 0; n < kNs; ++n) {
      uint32_t most = 0;  // the bits of the largest magnitude, as those of a float
#pragma unroll
      for (int i = 0; i < kSteps * 2; ++i) {
        const uint32_t pair = q[i / 2][n][i % 2];
        most = Max(most, Max(pair & 0x7fff0000u, pair << 16 & 0x7fff0000u));
      }
      most = Max(most, __shfl_xor_sync(kFullWarp, most, 1));
      most = Max(most, __shfl_xor_sync(kFullWarp, most, 2));
      // 2^(141 - e) for the exponent e of the largest. Infinity and NaN stay; what is so small that
      // the factor would leave float32 counts for nothing.
      const uint32_t exponent = Max(most >> 23, 15u);
      const bool finite = exponent < 255u;
      const float factor = finite ? __uint_as_float((268u - exponent) << 23) : 1.0f;
      const float inverse = finite ? __uint_as_float((exponent - 14u) << 23) : 1.0f;
#pragma unroll
      for (int i = 0; i < kSteps * 2; ++i) {
        const uint32_t pair = q[i / 2][n][i % 2];
        q[i / 2][n][i % 2] = Pack<__half>(__uint_as_float(pair << 16) * factor,
                                          __uint_as_float(pair & 0xffff0000u) * factor);
      }
      // A lane reads queries of column l / 4 and has scores of columns 2 (l % 4) and the next.
      back[n][0] = __shfl_sync(kFullWarp, inverse, lane % 4 * 8);
      back[n][1] = __shfl_sync(kFullWarp, inverse, lane % 4 * 8 + 4);
    }
  }

  __device__ __forceinline__ void Apply(float (&s)[kNs][4]) const {
#pragma unroll
    for (int i = 0; i < kNs * 4; ++i) s[i / 4][i % 4] *= back[i / 4][i % 2];
  }
};

}  // namespace octavo::cuda
