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
  __device__ __forceinline__ KeyStream(const LayerParams& p, const PrefillTile& tile, uint32_t ring)
      : p_(p), tile_(tile), ring_(ring) {}

  // Sets the last tile going; the tiles run down to the first.
  __device__ __forceinline__ void Start() {
    const int last = tile_.last_keys;
    block_ = Lookup(last);
    Load(last);
    CopyAsyncCommit();
    if (last > tile_.first_keys) block_ = Lookup(last - 1);
  }

  // Waits for tile j, sets j - 1 going, and gives the address of j's stage. The stage of j + 1 is
  // free from here on.
  __device__ __forceinline__ uint32_t Next(int j) {
    CopyAsyncWait<0>();
    __syncthreads();
    if (j > tile_.first_keys) {
      Load(j - 1);
      if (j - 1 > tile_.first_keys) block_ = Lookup(j - 2);
    }
    CopyAsyncCommit();
    return StageOf(j);
  }

 private:
  static constexpr int kWarpKeys = S::kKeys / kPrefillWarps;
  static constexpr int kRowsAtOnce = 8;
  static constexpr int kLanesOfRow = kWarpSize / kRowsAtOnce;

  static_assert(kPrefillStages == 2);
  __device__ __forceinline__ uint32_t StageOf(int j) const {
    return ring_ + (j & 1) * S::kStageBytes;
  }

  // This warp's first key of tile j.
  __device__ __forceinline__ int FirstKeyOf(int j) const {
    return j * S::kKeys + static_cast<int>(threadIdx.x) / kWarpSize * kWarpKeys;
  }

  __device__ __forceinline__ int Lookup(int j) const {
    const int key = FirstKeyOf(j);
    if (key >= tile_.length) return 0;
    return p_.table[tile_.row_slot * p_.table_stride + key / p_.block_size];
  }

  // A lane copies pieces l % 4, l % 4 + 4, ... of rows l / 4 and l / 4 + 8: its rows differ by
  // eight, so that all its addresses are one register, an exclusive or and constants.
  __device__ __forceinline__ void Load(int j) {
    const int thread = ThreadAfresh(), lane = thread % kWarpSize, warp = thread / kWarpSize;
    const int row = lane / kLanesOfRow, piece = lane % kLanesOfRow;
    const int key = FirstKeyOf(j), live = tile_.length - key - row;
    const char* const k = p_.cache + block_ * p_.block_stride + tile_.kv_head * p_.head_stride +
                          (key % p_.block_size + row) * S::kRowBytes + piece * kPieceBytes;
    const char* const v = k + p_.value_stride;
    const uint32_t to = StageOf(j) + PieceOffset<S>(warp * kWarpKeys + row, piece);
#pragma unroll
    for (int i = 0; i < S::kRowPieces / kLanesOfRow; ++i) {
      const uint32_t at = to ^ static_cast<uint32_t>(i * kLanesOfRow * kPieceBytes);
#pragma unroll
      for (int r = 0; r < kWarpKeys; r += kRowsAtOnce) {
        const int from = r * S::kRowBytes + i * kLanesOfRow * kPieceBytes;
        CopyAsync16OrZero(at + r * S::kRowBytes, k + from, r < live);
        CopyAsync16OrZero(at + r * S::kRowBytes + S::kTileBytes, v + from, r < live);
      }
    }
  }

  const LayerParams& p_;
  const PrefillTile& tile_;
  const uint32_t ring_;
  int block_ = 0;  // that holds this warp's keys of the tile to load next
};

}  // namespace octavo::cuda
