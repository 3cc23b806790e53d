// One lane's part of a head of q, k or v, of which halves turn against each other: a piece of 16
// bytes of each half, so that both elements of a pair are in its registers.
#pragma once

#include "cache/slot.cuh"
#include "rows/norm.cuh"
#include "rows/qkv.h"

namespace octavo::cuda {

// Byte offset of a slot of the first head in the cache; -1: it goes nowhere.
__device__ __forceinline__ int64_t SlotOffset(const CachePlace& c, int64_t slot) {
  if (static_cast<uint64_t>(slot) >= static_cast<uint64_t>(c.slots)) return -1;
  const int64_t block = BlockOfSlot(slot, c.slots, c.block_size);
  return block * c.block_stride + (slot - block * c.block_size) * c.place_stride;
}

// Neighbours of the table of angles. REQUIRES: `from` on 16 bytes.
template <int kWidth>
__device__ __forceinline__ void LoadFloats(const float* from, float (&x)[kWidth]) {
  constexpr int kEach = kWideElements<float>;
  static_assert(kWidth % kEach == 0);
#pragma unroll
  for (int j = 0; j < kWidth; j += kEach) {
    float part[kEach];
    LoadElements<float, kEach>(from + j, part);
#pragma unroll
    for (int i = 0; i < kEach; ++i) x[j + i] = part[i];
  }
}

// A lane's part of a head, as it is stored.
template <typename T>
struct HeadPiece {
  ElementPack<T, kWideElements<T>> first, second;
};

// A lane's part of the weight of a head's norm.
template <typename T>
__device__ __forceinline__ HeadPiece<T> LoadWeight(const char* weight, int head_dim, int at) {
  const T* const from = reinterpret_cast<const T*>(weight) + at;
  return {LoadPack<T, kWideElements<T>>(from), LoadPack<T, kWideElements<T>>(from + head_dim / 2)};
}

template <typename T, int kWidth>
__device__ __forceinline__ void NormPiece(const ElementPack<T, kWidth>& weight, float inverse,
                                          float offset, float (&x)[kWidth]) {
  float w[kWidth];
  ToFloats(weight, w);
  ScaleByWeight(x, w, inverse, offset);
  RoundElements<T>(x);  // what rms_norm would have stored
}

// What is left of a lane's part once it is normed, where `normed`, and turned. `weight` gives that
// of the norm, when it is needed. `lanes` neighbours of a warp, a power of two, share the head; all
// lanes of the warp come together, because sums are exchanged among them, in the order of rms_norm.
template <typename T, class Weight>
__device__ __forceinline__ void NormAndTurn(const QkvParams& p, const HeadPiece<T>& piece,
                                            bool normed, const Weight& weight, int lanes,
                                            const float (&c)[kWideElements<T>],
                                            const float (&s)[kWideElements<T>], bool turn,
                                            float (&a)[kWideElements<T>],
                                            float (&b)[kWideElements<T>]) {
  ToFloats(piece.first, a);
  ToFloats(piece.second, b);
  if (p.q_norm != nullptr) {
    float sum = AddSquares(0.0f, a) + AddSquares(0.0f, b);
    for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
    if (normed) {
      const float inverse = InverseRms(sum, p.head_dim, p.eps);
      const HeadPiece<T> w = weight();
      NormPiece<T>(w.first, inverse, p.offset, a);
      NormPiece<T>(w.second, inverse, p.offset, b);
    }
  }
  if (!turn) return;
#pragma unroll
  for (int j = 0; j < kWideElements<T>; ++j) Rotate(a[j], b[j], c[j], s[j], &a[j], &b[j]);
}

}  // namespace octavo::cuda
