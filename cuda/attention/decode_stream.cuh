// The tiles of one warp, loaded ahead of their use into its ring of shared memory.
//
// Where a tile lies depends on its segment, then on the block table: two dependent reads. A warp
// therefore resolves 32 rounds at a time, one a lane, and keeps the next 32 ready.
#pragma once

#include "attention/decode.h"
#include "attention/tile_layout.cuh"

namespace octavo::cuda {

template <class S>
class TileStream {
 public:
  __device__ TileStream(const DecodeParams& p, const CtaWork& work, uint32_t shared)
      : p_(p), work_(work), lane_(threadIdx.x % kWarpSize), warp_(threadIdx.x / kWarpSize) {
    ring_ = shared + warp_ * S::kStages * S::kStageBytes;
  }

  // Sets the first stages going.
  __device__ __forceinline__ void Start() {
    offset_ = Resolve();
    next_offset_ = Resolve();
#pragma unroll 1
    for (int i = 0; i < S::kStages - 1; ++i) Issue();
  }

  // Waits for the next round's tile and gives its address. Frees the tile that the call before
  // gave: every lane must be done with it.
  __device__ __forceinline__ uint32_t Next() {
    __syncwarp();
    Issue();
    CopyAsyncWait<S::kStages - 1>();
    __syncwarp();
    const uint32_t tile = ring_ + read_stage_ * S::kStageBytes;
    read_stage_ = read_stage_ == S::kStages - 1 ? 0 : read_stage_ + 1;
    return tile;
  }

 private:
  // The byte offset of K's tile in round resolved_ + lane; -1 where this warp has none. Moves on to
  // the next 32 rounds.
  __device__ __forceinline__ int64_t Resolve();

  __device__ __forceinline__ void Issue() {
    if (issued_ == kWarpSize) {
      issued_ = 0;
      offset_ = next_offset_;
      next_offset_ = Resolve();
    }
    const int64_t offset = __shfl_sync(kFullWarp, offset_, issued_);
    if (offset >= 0) {
      const uint32_t stage = ring_ + write_stage_ * S::kStageBytes;
      const char* const k = p_.layer.cache + offset + lane_ * kPieceBytes;
      const char* const v = k + p_.layer.value_stride;
      constexpr int kCopies = S::kTileBytes / (kWarpSize * kPieceBytes);
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int index = i * kWarpSize + lane_;
        const uint32_t to = PieceOffset<S>(index / S::kRowPieces, index % S::kRowPieces);
        CopyAsync16(stage + to, k + i * kWarpSize * kPieceBytes);
      }
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int index = i * kWarpSize + lane_;
        const uint32_t to = PieceOffset<S>(index / S::kRowPieces, index % S::kRowPieces);
        CopyAsync16(stage + S::kTileBytes + to, v + i * kWarpSize * kPieceBytes);
      }
    }
    CopyAsyncCommit();  // also when empty: waiting counts groups
    ++issued_;
    write_stage_ = write_stage_ == S::kStages - 1 ? 0 : write_stage_ + 1;
  }

  const DecodeParams& p_;
  const CtaWork& work_;
  const int lane_;
  const int warp_;
  uint32_t ring_;
  int write_stage_ = 0;
  int read_stage_ = 0;
  int issued_ = 0;  // of the 32 rounds in offset_
  int64_t offset_ = -1;
  int64_t next_offset_ = -1;
  int resolved_ = 0;       // rounds
  int segment_ = 0;        // of the CTA: the one that round resolved_ lies in
  int segment_round_ = 0;  // where it begins
};

template <class S>
__device__ __forceinline__ int64_t TileStream<S>::Resolve() {
  // Lane l looks at segment segment_ + l; every segment has a round, so 32 of them suffice.
  int4 head{};
  const int mine = segment_ + lane_;
  if (mine == 0) {
    head = make_int4(work_.first.row_slot, work_.first.head, work_.first.first_tile,
                     work_.first.tiles);
  } else if (mine < work_.segments) {
    head = *reinterpret_cast<const int4*>(p_.segments + work_.first_segment + mine);
  }
  int end = CeilDiv(head.w, S::kWarps);  // then the round after the segment, from segment_round_
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const int other = __shfl_up_sync(kFullWarp, end, step);
    if (lane_ >= step) end += other;
  }
  const int round = resolved_ + lane_ - segment_round_;
  int owner = 0;  // segments that end at or before the round
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    if (__shfl_sync(kFullWarp, end, owner + step - 1) <= round) owner += step;
  }
  const int owner_end = __shfl_sync(kFullWarp, end, owner);
  const int before = __shfl_sync(kFullWarp, end, owner == 0 ? 0 : owner - 1);
  const int begin = owner == 0 ? 0 : before;
  const int row_slot = __shfl_sync(kFullWarp, head.x, owner);
  const int kv_head = __shfl_sync(kFullWarp, head.y, owner);
  const int first_tile = __shfl_sync(kFullWarp, head.z, owner);
  const int tiles = __shfl_sync(kFullWarp, head.w, owner);
  const int tile = (round - begin) * S::kWarps + warp_;
  int64_t offset = -1;
  if (round < owner_end && tile < tiles) {
    const int token = (first_tile + tile) * kTileTokens;
    const int block = token / p_.layer.block_size;
    const int32_t id = p_.layer.table[row_slot * p_.layer.table_stride + block];
    offset = id * p_.layer.block_stride + kv_head * p_.layer.head_stride +
             (token - block * p_.layer.block_size) * S::kRowBytes;
  }
  // The next 32 rounds begin where lane 31's round ends.
  const bool last_of_segment = round + 1 >= owner_end;
  resolved_ += kWarpSize;
  segment_ += __shfl_sync(kFullWarp, last_of_segment ? owner + 1 : owner, kWarpSize - 1);
  segment_round_ +=
      __shfl_sync(kFullWarp, last_of_segment ? owner_end : begin, kWarpSize - 1);
  return offset;
}

}  // namespace octavo::cuda
