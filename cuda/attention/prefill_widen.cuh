// The same as prefill_keys.cuh from a cache of e4m3: codes arrive in a stage of their own, and are
// widened to 16 bits, exactly, in the one that the CTA reads.
//
// A thread widens what it has copied itself, so its codes need no barrier, and the next tile's are
// set going as soon as they are read. Every warp takes all of K and V from shared memory: widening
// once for all of them costs a quarter of doing so at each load.
#pragma once

#include "attention/prefill.h"
#include "attention/tile_layout.cuh"
#include "common/e4m3.cuh"
#include "common/ptx.cuh"

namespace octavo::cuda {

template <class S>
class WideningStream {
 public:
  __device__ __forceinline__ WideningStream(const LayerParams& p, const PrefillTile& tile,
                                            uint32_t ring)
      : p_(p), tile_(tile), stage_(ring) {}

  // Sets the last tile going; the tiles run down to the first.
  __device__ __forceinline__ void Start() {
    const int last = tile_.last_keys;
    block_ = Lookup(last);
    Load(last);
    CopyAsyncCommit();
    if (last > tile_.first_keys) block_ = Lookup(last - 1);
  }

  // Waits for tile j and gives its address; sets j - 1 going.
  __device__ __forceinline__ uint32_t Next(int j) {
    CopyAsyncWait<0>();
    __syncthreads();  // nobody reads the tile before any more, and the queries are there
    Widen();
    if (j > tile_.first_keys) {
      Load(j - 1);
      if (j - 1 > tile_.first_keys) block_ = Lookup(j - 2);
    }
    CopyAsyncCommit();
    __syncthreads();
    return stage_;
  }

 private:
  static constexpr int kWarpKeys = S::kKeys / kPrefillWarps;
  static constexpr int kRowsAtOnce = 8;
  static constexpr int kLanesOfRow = kWarpSize / kRowsAtOnce;
  static constexpr int kColumns = S::kCachedBytes / kPieceBytes / kLanesOfRow;  // pieces of a row
  static constexpr int kRows = kWarpKeys / kRowsAtOnce;                         // of a lane
  static_assert(kColumns >= 1 && kRows >= 1);

  // This warp's first key of tile j.
  __device__ __forceinline__ int FirstKeyOf(int j) const {
    return j * S::kKeys + ThreadAfresh() / kWarpSize * kWarpKeys;
  }

  __device__ __forceinline__ int Lookup(int j) const {
    const int key = FirstKeyOf(j);
    if (key >= tile_.length) return 0;
    return p_.table[tile_.row_slot * p_.table_stride + key / p_.block_size];
  }

  // Where this thread's piece number `i` of K (or V) waits: neighbours' pieces side by side.
  __device__ __forceinline__ uint32_t Waiting(int kv, int i, int thread) const {
    return stage_ + S::kStageBytes +
           ((kv * kColumns * kRows + i) * S::kThreads + thread) * kPieceBytes;
  }

  // A lane copies pieces l % 4, l % 4 + 4, ... of rows l / 4 and l / 4 + 8.
  __device__ __forceinline__ void Load(int j) {
    const int thread = ThreadAfresh(), lane = thread % kWarpSize;
    const int row = lane / kLanesOfRow, piece = lane % kLanesOfRow;
    const int key = FirstKeyOf(j), live = tile_.length - key - row;
    const char* const k = p_.cache + block_ * p_.block_stride + tile_.kv_head * p_.head_stride +
                          (key % p_.block_size + row) * S::kCachedBytes + piece * kPieceBytes;
    const char* const v = k + p_.value_stride;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int from = r * kRowsAtOnce * S::kCachedBytes + c * kLanesOfRow * kPieceBytes;
        const bool there = r * kRowsAtOnce < live;
        CopyAsync16OrZero(Waiting(0, r * kColumns + c, thread), k + from, there);
        CopyAsync16OrZero(Waiting(1, r * kColumns + c, thread), v + from, there);
      }
    }
  }

  // Sixteen codes of a piece are two pieces of 16-bit numbers. A lane's rows differ by eight and
  // its pieces by eight: one address, an exclusive or and constants.
  __device__ __forceinline__ void Widen() {
    const int thread = ThreadAfresh(), lane = thread % kWarpSize, warp = thread / kWarpSize;
    static_assert(kLanesOfRow * 2 == 8 && S::kRowPieces >= 8);
    const int row = warp * kWarpKeys + lane / kLanesOfRow;
    const uint32_t even = stage_ + PieceOffset<S>(row, lane % kLanesOfRow * 2);
    const uint32_t odd = even ^ static_cast<uint32_t>(kPieceBytes);
#pragma unroll
    for (int kv = 0; kv < 2; ++kv) {
#pragma unroll
      for (int i = 0; i < kRows * kColumns; ++i) {
        const uint4 codes = LoadShared16(Waiting(kv, i, thread));
        const int step = kv * S::kTileBytes + i / kColumns * kRowsAtOnce * S::kRowBytes +
                         i % kColumns * kLanesOfRow * 2 * kPieceBytes;
        StoreShared16(even + step, Wide(codes.x, codes.y));
        StoreShared16(odd + step, Wide(codes.z, codes.w));
      }
    }
  }

  static __device__ __forceinline__ uint4 Wide(uint32_t low, uint32_t high) {
    using T = typename S::Element;
    return make_uint4(
        Widened<T>(static_cast<uint16_t>(low)), Widened<T>(static_cast<uint16_t>(low >> 16)),
        Widened<T>(static_cast<uint16_t>(high)), Widened<T>(static_cast<uint16_t>(high >> 16)));
  }

  const LayerParams& p_;
  const PrefillTile& tile_;
  const uint32_t stage_;  // of numbers, then one of codes
  int block_ = 0;         // that holds this warp's keys of the tile to load next
};

}  // namespace octavo::cuda
