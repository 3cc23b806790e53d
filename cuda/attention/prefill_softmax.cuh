// The arithmetic of a prefill tile: scores, masks, online softmax, weighted sums of V.
//
// Fragments of mma m16n8k16, lane l: an accumulator holds rows l / 4 and l / 4 + 8, columns
// 2 (l % 4) and the next. Rows are packed queries; columns are keys in S, head dims in O.
#pragma once

#include "attention/decode_merge.cuh"
#include "attention/prefill.h"
#include "attention/tile_layout.cuh"

namespace octavo::cuda {

// row / group for row < 2^7 and group <= 2^7: the inverse errs by less than 2^-16 * group a row.
__device__ __forceinline__ int TokenOfRow(const PrefillParams& p, int row) {
  return static_cast<int>((row * p.group_inverse) >> 16);
}

// The tile row of accumulator row tile `m`, half `h`.
template <class S>
__device__ __forceinline__ int RowOf(int thread, int m, int h) {
  const int lane = thread % kWarpSize, warp = thread / kWarpSize;
  return warp * S::kRowTiles * 16 + m * 16 + h * 8 + lane / 4;
}

template <class S>
__device__ __forceinline__ void Scores(uint32_t queries, uint32_t keys,
                                       float (&s)[S::kRowTiles][S::kKeys / 8][4]) {
  using T = typename S::Element;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int q_row = warp * S::kRowTiles * 16 + lane % 16, q_half = lane / 16;
  const int k_row = (lane & 7) + (lane >> 4) * 8, k_half = (lane >> 3) & 1;
  const uint32_t q_at = LaneAddress<S>(queries, q_row, q_half);
  const uint32_t k_at = LaneAddress<S>(keys, k_row, k_half);
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < S::kKeys / 8; ++n) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0;
  }
#pragma unroll
  for (int d = 0; d < S::kHeadDim / 16; ++d) {
    uint32_t a[S::kRowTiles][4];
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
      LoadMatrix4(a[m], StepPieces(q_at, d) + m * 16 * S::kRowBytes);
    }
#pragma unroll
    for (int n = 0; n < S::kKeys / 16; ++n) {
      uint32_t b[4];
      LoadMatrix4(b, StepPieces(k_at, d) + n * 16 * S::kRowBytes);
#pragma unroll
      for (int m = 0; m < S::kRowTiles; ++m) {
        Mma16x8x16<T>(s[m][2 * n], a[m], b[0], b[1]);
        Mma16x8x16<T>(s[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// Scores become log2 of their weights, up to the maximum.
template <class S>
__device__ __forceinline__ void SoftCap(const LayerParams& p,
                                        float (&s)[S::kRowTiles][S::kKeys / 8][4]) {
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < S::kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[m][n][i] = p.cap_log2 * Tanh(s[m][n][i] * p.cap_scale);
    }
  }
}

template <class S>
__device__ __forceinline__ void MaskScores(const PrefillParams& p, const PrefillTile& tile, int key,
                                           float (&s)[S::kRowTiles][S::kKeys / 8][4]) {
  const int thread = ThreadAfresh(), first = FirstSeen(tile.position, p.layer.window);
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // Keys are counted from this lane's first one, so that each test is against a constant.
      const int from = key + 2 * (thread % 4);
      const int position = tile.position + TokenOfRow(p, RowOf<S>(thread, m, h));
      const int high = position - from;
      const int low = FirstSeenAfter(first, position, p.layer.window) - from;
#pragma unroll
      for (int n = 0; n < S::kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = 8 * n + i;
          if (at > high || at < low) s[m][n][2 * h + i] = -INFINITY;
        }
      }
    }
  }
}

template <class S>
struct PrefillState {
  using T = typename S::Element;
  static constexpr int kKeySteps = S::kKeys / 16;

  float o[S::kRowTiles][S::kHeadDim / 8][4] = {};
  float maximum[S::kRowTiles][2];  // of the scores, before `scale`
  float sum[S::kRowTiles][2] = {};

  __device__ __forceinline__ PrefillState() {
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) maximum[m][0] = maximum[m][1] = kNoScore;
  }

  // Adds a tile of keys by their scores; a score s weighs 2^(s * scale). REQUIRES: scale > 0.
  __device__ __forceinline__ void Add(float scale, float (&s)[S::kRowTiles][S::kKeys / 8][4],
                                      uint32_t values) {
    RaiseMaxima(scale, s);
    uint32_t a[S::kRowTiles][kKeySteps][4];
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
      Weigh(scale, m, 0, s[m], a[m]);
      Weigh(scale, m, 1, s[m], a[m]);
    }
    const int lane = threadIdx.x % kWarpSize;
    const uint32_t at = LaneAddress<S>(values, lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < kKeySteps; ++k) {
#pragma unroll
      for (int d = 0; d < S::kHeadDim / 16; ++d) {
        uint32_t b[4];
        LoadMatrix4Transposed(b, StepPieces(at, d) + k * 16 * S::kRowBytes);
#pragma unroll
        for (int m = 0; m < S::kRowTiles; ++m) {
          Mma16x8x16<T>(o[m][2 * d], a[m][k], b[0], b[1]);
          Mma16x8x16<T>(o[m][2 * d + 1], a[m][k], b[2], b[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void Store(const PrefillParams& p, const PrefillTile& tile) {
    const float scale = p.layer.cap_log2 != 0.0f ? 1.0f : p.layer.scale_log2;
    const int thread = ThreadAfresh();
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float total = sum[m][h];
        total += __shfl_xor_sync(kFullWarp, total, 1);
        total += __shfl_xor_sync(kFullWarp, total, 2);
        const int row = RowOf<S>(thread, m, h), token = TokenOfRow(p, row);
        if (token >= tile.tokens) continue;
        const int head = tile.kv_head * p.layer.group + row - token * p.layer.group;
        const float f = OutputFactor(p.layer, head, maximum[m][h] * scale, total);
        const ColumnPlace at{tile.first_token + token, head};
        char* const out = OutAt<T>(p.layer, at, 2 * (thread % 4));
#pragma unroll
        for (int d = 0; d < S::kHeadDim / 8; ++d) {
          *reinterpret_cast<uint32_t*>(out + d * 8 * sizeof(T)) =
              Pack<T>(o[m][d][2 * h] * f, o[m][d][2 * h + 1] * f);
        }
      }
    }
  }

 private:
  // Raises the maxima to those of `s` and rescales the sums. Where no maximum of the warp rises, as
  // in most tiles, every factor is one and nothing is left to do.
  __device__ __forceinline__ void RaiseMaxima(float scale,
                                              float (&s)[S::kRowTiles][S::kKeys / 8][4]) {
    bool rises = false;
    float high[S::kRowTiles][2];
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float x = maximum[m][h];
#pragma unroll
        for (int n = 0; n < S::kKeys / 8; ++n) {
          x = fmaxf(x, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
        }
        x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
        x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
        rises = rises || x > maximum[m][h];
        high[m][h] = x;
      }
    }
    if (!__any_sync(kFullWarp, rises)) return;
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float factor = Exp2((maximum[m][h] - high[m][h]) * scale);
        maximum[m][h] = high[m][h];
        sum[m][h] *= factor;
#pragma unroll
        for (int d = 0; d < S::kHeadDim / 8; ++d) {
          o[m][d][2 * h] *= factor;
          o[m][d][2 * h + 1] *= factor;
        }
      }
    }
  }

  // The weights of row half h of row tile m, packed as the A operand.
  __device__ __forceinline__ void Weigh(float scale, int m, int h, float (&s)[S::kKeys / 8][4],
                                        uint32_t (&a)[kKeySteps][4]) {
    const float offset = maximum[m][h] * scale;
    float total = 0.0f;
#pragma unroll
    for (int n = 0; n < S::kKeys / 8; ++n) {
      const float w0 = Exp2(fmaf(s[n][2 * h], scale, -offset));
      const float w1 = Exp2(fmaf(s[n][2 * h + 1], scale, -offset));
      total += w0 + w1;
      a[n / 2][n % 2 * 2 + h] = Pack<T>(w0, w1);
    }
    sum[m][h] += total;
  }
};

}  // namespace octavo::cuda
