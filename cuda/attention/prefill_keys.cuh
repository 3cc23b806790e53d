// K and V of one row and KV head, tile after tile from the last to the first, through a ring of two
// stages that the whole CTA fills and reads.
#pragma once

#include "attention/prefill.h"
#include "attention/tile_layout.cuh"
#include "common/ptx.cuh"

namespace octavo::cuda {

template <class S>
class KeyStream {
 public:
  __device__ __forceinline__ KeyStream(const LayerParams& p, const PrefillTile& tile, int kv_head,
                                       uint32_t ring)
      : p_(p), tile_(tile), kv_head_(kv_head), ring_(ring) {}

  // Sets tile `last` going; the tiles run down to `first`.
  __device__ __forceinline__ void Start(int last, int first) {
    block_ = Lookup(last);
    Load(last, 0);
    CopyAsyncCommit();
    if (last > first) block_ = Lookup(last - 1);
  }

  // Waits for tile j, sets j - 1 going, and gives the address of j's stage. The stage of j + 1 is
  // free from here on.
  __device__ __forceinline__ uint32_t Next(int j, int first) {
    CopyAsyncWait<0>();
    __syncthreads();
    const int stage = stage_;
    stage_ ^= 1;
    if (j > first) {
      Load(j - 1, stage_);
      if (j - 1 > first) block_ = Lookup(j - 2);
    }
    CopyAsyncCommit();
    return ring_ + stage * S::kStageBytes;
  }

 private:
  static constexpr int kWarpKeys = S::kKeys / kPrefillWarps;

  // This warp's first key of tile j.
  __device__ __forceinline__ int FirstKeyOf(int j) const {
    return j * S::kKeys + static_cast<int>(threadIdx.x) / kWarpSize * kWarpKeys;
  }

  __device__ __forceinline__ int Lookup(int j) const {
    const int key = FirstKeyOf(j);
    if (key >= tile_.length) return 0;
    return p_.table[tile_.row_slot * p_.table_stride + key / p_.block_size];
  }

  __device__ __forceinline__ void Load(int j, int stage) {
    constexpr int kRowsAtOnce = kWarpSize / S::kRowPieces;
    constexpr int kCopies = kWarpKeys / kRowsAtOnce;
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const int key = FirstKeyOf(j), live = tile_.length - key;
    const char* const k = p_.cache + block_ * p_.block_stride + kv_head_ * p_.head_stride +
                          key % p_.block_size * S::kRowBytes + lane * kPieceBytes;
    const uint32_t to = ring_ + stage * S::kStageBytes;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = i * kRowsAtOnce + lane / S::kRowPieces;
      const uint32_t at = to + PieceOffset<S>(warp * kWarpKeys + row, lane % S::kRowPieces);
      const char* const from = k + i * kWarpSize * kPieceBytes;
      CopyAsync16OrZero(at, from, row < live);
      CopyAsync16OrZero(at + S::kTileBytes, from + p_.value_stride, row < live);
    }
  }

  const LayerParams& p_;
  const PrefillTile& tile_;
  const int kv_head_;
  const uint32_t ring_;
  int block_ = 0;  // that holds this warp's keys of the tile to load next
  int stage_ = 0;
};

}  // namespace octavo::cuda
