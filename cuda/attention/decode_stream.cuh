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
  __device__ TileStream(const DecodeParams& p, uint32_t shared)
      : p_(p), lane_(threadIdx.x % kWarpSize), warp_(threadIdx.x / kWarpSize) {
    ring_ = shared + warp_ * S::kStages * S::kStageBytes;
  }

  // Begins with the segments of `work` and finds their first tiles, for which the plan and the
  // block table are read. REQUIRES: no tile of those before is still to come.
  __device__ __forceinline__ void Find(const CtaWork& work) {
    first_segment_ = work.first_segment;
    segments_ = work.segments;
    current_ =
        make_int4(work.first.row_slot, work.first.head, work.first.first_tile, work.first.tiles);
    segment_ = segment_round_ = resolved_ = 0;
    issued_ = write_stage_ = read_stage_ = 0;
    offset_ = Resolve();
  }

  // Asks L2 for the first tiles. Nothing is read, so that the kernel in front may still be writing
  // the newest keys of some.
  __device__ __forceinline__ void Prefetch() const {
#pragma unroll 1
    for (int i = 0; i < S::kStages; ++i) {
      const int64_t offset = __shfl_sync(kFullWarp, offset_, i);
      if (offset < 0) continue;
      const char* const k = p_.layer.cache + offset;
      for (int at = lane_ * kLineBytes; at < S::kTileBytes; at += kWarpSize * kLineBytes) {
        PrefetchL2(k + at);
        PrefetchL2(k + p_.layer.value_stride + at);
      }
    }
  }

  // Sets the first stages going.
  __device__ __forceinline__ void Start() {
#pragma unroll 1
    for (int i = 0; i < S::kStages - 1; ++i) Issue();
    next_offset_ = Resolve();
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
  __device__ __forceinline__ int64_t ResolveAcross();

  // The offset of tile `tile` of the segment `head` (the first four words of a Segment).
  __device__ __forceinline__ int64_t Locate(int4 head, int tile) const {
    if (tile >= head.w) return -1;
    const int token = (head.z + tile) * kTileTokens, block = token / p_.layer.block_size;
    const int32_t id = p_.layer.table[head.x * p_.layer.table_stride + block];
    return id * p_.layer.block_stride + head.y * p_.layer.head_stride +
           (token - block * p_.layer.block_size) * S::kRowBytes;
  }

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
  const int lane_;
  const int warp_;
  uint32_t ring_;
  int first_segment_, segments_;  // as CtaWork
  int write_stage_, read_stage_;
  int issued_;  // of the 32 rounds in offset_
  int64_t offset_;
  int64_t next_offset_;
  int resolved_;       // rounds
  int segment_;        // of the CTA: the one that round resolved_ lies in
  int segment_round_;  // where it begins
  int4 current_;       // its first four words
};

template <class S>
__device__ __forceinline__ int64_t TileStream<S>::Resolve() {
  if (segment_ >= segments_) return -1;
  const int round = resolved_ - segment_round_, rounds = CeilDiv(current_.w, S::kWarps);
  const bool last = segment_ + 1 == segments_;
  if (!last && round + kWarpSize >= rounds) return ResolveAcross();
  resolved_ += kWarpSize;
  return Locate(current_, (round + lane_) * S::kWarps + warp_);
}

// Where the 32 rounds reach the end of their segment, lane l looks at segment segment_ + l; every
// segment has a round, so 32 of them suffice.
template <class S>
__device__ __forceinline__ int64_t TileStream<S>::ResolveAcross() {
  int4 head = lane_ == 0 ? current_ : make_int4(0, 0, 0, 0);
  const int mine = segment_ + lane_;
  const Segment* const segments = p_.segments + first_segment_;
  if (lane_ > 0 && mine < segments_) head = *reinterpret_cast<const int4*>(segments + mine);
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
  const int4 mine_head =
      make_int4(__shfl_sync(kFullWarp, head.x, owner), __shfl_sync(kFullWarp, head.y, owner),
                __shfl_sync(kFullWarp, head.z, owner), __shfl_sync(kFullWarp, head.w, owner));
  const bool live = round < owner_end;
  const int64_t offset =
      live ? Locate(mine_head, (round - begin) * S::kWarps + warp_) : int64_t{-1};
  // The next 32 rounds begin where lane 31's round ends.
  const bool ends = round + 1 >= owner_end;
  resolved_ += kWarpSize;
  segment_ += __shfl_sync(kFullWarp, ends ? owner + 1 : owner, kWarpSize - 1);
  segment_round_ += __shfl_sync(kFullWarp, ends ? owner_end : begin, kWarpSize - 1);
  if (segment_ < segments_) current_ = *reinterpret_cast<const int4*>(segments + segment_);
  return offset;
}

}  // namespace octavo::cuda
