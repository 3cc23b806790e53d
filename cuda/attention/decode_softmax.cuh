// One warp's softmax over the tiles that it has seen, for the columns (packed queries) of an item.
//
// Fragments of mma m16n8k16, lane l: an accumulator holds rows l / 4 and l / 4 + 8, columns
// 2 (l % 4) and the next. Rows are tokens in S^T, head dims in O^T: of a cache in e4m3 the dims
// 2 (l / 4) and the next.
#pragma once

#include "attention/decode_fragments.cuh"
#include "attention/decode_stream.cuh"

namespace octavo::cuda {

// Weights may grow to 2^8 before the sums are rescaled to a new maximum: a rescale is rare then,
// and float32 sums lose nothing by it.
inline constexpr float kRescaleLog2 = 8.0f;

template <class S>
struct SoftmaxState {
  using T = typename S::Product;
  static constexpr int kSteps = S::kHeadDim / 16;  // k steps of K Q^T, m tiles of V^T P^T
  static constexpr int kNs = S::kColumnTiles;

  uint32_t q[kSteps][kNs][2];
  float o[kSteps][kNs][4];
  float maximum[kNs][2];
  float sum[kNs][2];
  QueryScales<S> scales;

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int n = 0; n < kNs; ++n) {
      maximum[n][0] = maximum[n][1] = kNoScore;
      sum[n][0] = sum[n][1] = 0.0f;
#pragma unroll
      for (int i = 0; i < kSteps * 4; ++i) o[i / 4][n][i % 4] = 0.0f;
    }
  }

  __device__ __forceinline__ void LoadQueries(const LayerParams& p, const Segment& g) {
    const int lane = threadIdx.x % kWarpSize;
    const int columns = g.queries * p.group;
#pragma unroll
    for (int n = 0; n < kNs; ++n) {
      const int column = g.column + n * kColumnsOfMma + lane / 4;
      const bool live = column < columns;
      const int token = live ? column / p.group : 0, head = live ? column - token * p.group : 0;
      const char* const at = p.q + (g.first_token + token) * p.q_token_stride +
                             (g.head * p.group + head) * p.q_head_stride;
      // Of a step's 16 dims a lane has two pairs: of e4m3 the four in a row that LoadKeys gives.
      constexpr int kFirst = S::kFp8 ? 2 : 1, kSecond = S::kFp8 ? 1 : 4;
      const uint32_t* const words = reinterpret_cast<const uint32_t*>(at) + lane % 4 * kFirst;
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        q[k][n][0] = live ? __ldg(words + 8 * k) : 0u;
        q[k][n][1] = live ? __ldg(words + 8 * k + kSecond) : 0u;
      }
    }
    scales.Take(q);
  }

  // Adds the 16 keys from position `key` on, whose K and V lie at `tile`.
  __device__ __forceinline__ void AddTile(const LayerParams& p, const Segment& g, int key,
                                          uint32_t tile) {
    float s[kNs][4];
    Scores(tile, s);
    Scale(p, scales, s);
    const int first = g.length - g.queries;
    if (NeedsMask(first, g.length - 1, key, kTileTokens, p.window)) {
      Mask(p, g, key, s);
      ClearDeadValues(g.length - key, tile + S::kTileBytes);
    }
    Rescale(s);
    uint32_t weights[kNs][2];
#pragma unroll
    for (int n = 0; n < kNs; ++n) {
      const float w0 = Exp2(s[n][0] - maximum[n][0]), w1 = Exp2(s[n][1] - maximum[n][1]);
      const float w2 = Exp2(s[n][2] - maximum[n][0]), w3 = Exp2(s[n][3] - maximum[n][1]);
      sum[n][0] += w0 + w2;
      sum[n][1] += w1 + w3;
      weights[n][0] = TransposeMatrix(Pack<T>(w0, w1));
      weights[n][1] = TransposeMatrix(Pack<T>(w2, w3));
    }
    const uint32_t at = ValueAddress<S>(tile + S::kTileBytes);
#pragma unroll
    for (int d = 0; d < kSteps; d += kStepsOfLoad<S>) {
      uint32_t v[kStepsOfLoad<S>][4];
      LoadValues<S>(v, StepPieces(at, d / kStepsOfLoad<S>));
#pragma unroll
      for (int i = 0; i < kStepsOfLoad<S>; ++i) {
#pragma unroll
        for (int n = 0; n < kNs; ++n) {
          Mma16x8x16<T>(o[d + i][n], v[i], weights[n][0], weights[n][1]);
        }
      }
    }
  }

  // The lanes that share a column hold different tokens: adds their sums of weights up.
  __device__ __forceinline__ void SumColumns() {
#pragma unroll
    for (int n = 0; n < kNs; ++n) {
#pragma unroll
      for (int step = 4; step < kWarpSize; step *= 2) {
        sum[n][0] += __shfl_xor_sync(kFullWarp, sum[n][0], step);
        sum[n][1] += __shfl_xor_sync(kFullWarp, sum[n][1], step);
      }
    }
  }

 private:
  __device__ __forceinline__ void Scores(uint32_t tile, float (&s)[kNs][4]) {
    const uint32_t at = KeyAddress<S>(tile);
    float even[kNs][4] = {}, odd[kNs][4] = {};  // two chains hide the latency of an mma
#pragma unroll
    for (int k = 0; k < kSteps; k += kStepsOfLoad<S>) {
      uint32_t a[kStepsOfLoad<S>][4];
      LoadKeys<S>(a, StepPieces(at, k / kStepsOfLoad<S>));
#pragma unroll
      for (int i = 0; i < kStepsOfLoad<S>; ++i) {
#pragma unroll
        for (int n = 0; n < kNs; ++n) {
          const int step = k + i;
          Mma16x8x16<T>(step % 2 == 0 ? even[n] : odd[n], a[i], q[step][n][0], q[step][n][1]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kNs; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] = even[n][i] + odd[n][i];
    }
  }

  static __device__ __forceinline__ void Scale(const LayerParams& p, const QueryScales<S>& scales,
                                               float (&s)[kNs][4]) {
    scales.Apply(s);
    if (p.cap_log2 == 0.0f) {
#pragma unroll
      for (int i = 0; i < kNs * 4; ++i) s[i / 4][i % 4] *= p.scale_log2;
    } else {
#pragma unroll
      for (int i = 0; i < kNs * 4; ++i) {
        s[i / 4][i % 4] = p.cap_log2 * Tanh(s[i / 4][i % 4] * p.cap_scale);
      }
    }
  }

  static __device__ __forceinline__ void Mask(const LayerParams& p, const Segment& g, int key,
                                              float (&s)[kNs][4]) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int n = 0; n < kNs; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = g.column + n * kColumnsOfMma + 2 * (lane % 4) + i % 2;
        const int position = Min(g.length - g.queries + column / p.group, g.length - 1);
        if (!Sees(position, key + lane / 4 + i / 2 * 8, p.window)) s[n][i] = -INFINITY;
      }
    }
  }

  // Slots past the row's length may hold NaN, and 0 * NaN is NaN: makes their values zero.
  static __device__ __forceinline__ void ClearDeadValues(int live, uint32_t values) {
    for (int i = live * S::kRowPieces + threadIdx.x % kWarpSize; i < kTileTokens * S::kRowPieces;
         i += kWarpSize) {
      StoreSharedZero16(values + i * kPieceBytes);  // whole rows: the swizzle stays within them
    }
    __syncwarp();
  }

  __device__ __forceinline__ void Rescale(const float (&s)[kNs][4]) {
    float high[kNs][2];
    bool grown = false;
#pragma unroll
    for (int n = 0; n < kNs; ++n) {
      high[n][0] = fmaxf(s[n][0], s[n][2]);
      high[n][1] = fmaxf(s[n][1], s[n][3]);
#pragma unroll
      for (int step = 4; step < kWarpSize; step *= 2) {
        high[n][0] = fmaxf(high[n][0], __shfl_xor_sync(kFullWarp, high[n][0], step));
        high[n][1] = fmaxf(high[n][1], __shfl_xor_sync(kFullWarp, high[n][1], step));
      }
      grown = grown || high[n][0] > maximum[n][0] + kRescaleLog2 ||
              high[n][1] > maximum[n][1] + kRescaleLog2;
    }
    if (!__any_sync(kFullWarp, grown)) return;
#pragma unroll
    for (int n = 0; n < kNs; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float now = fmaxf(high[n][i], maximum[n][i]);
        const float factor = Exp2(maximum[n][i] - now);
        maximum[n][i] = now;
        sum[n][i] *= factor;
#pragma unroll
        for (int d = 0; d < kSteps; ++d) {
          o[d][n][i] *= factor;
          o[d][n][i + 2] *= factor;
        }
      }
    }
  }
};

}  // namespace octavo::cuda
