// The loading warpgroup of the wgmma prefill kernel: a warp that draws items, and one each that
// sets the boxes of keys, of values and of queries going.
#pragma once

#include "attention/prefill_softmax.cuh"
#include "attention/prefill_wgmma_pipe.cuh"

namespace octavo::cuda {

// One thread draws items in their order, up to kTickets ahead of the slowest reader, and writes an
// empty ticket behind the last. The last CTA to end puts the counters back for the next layer.
template <class S>
__device__ __forceinline__ void DrawTickets(const PrefillParams& p, const WgmmaPipe<S>& pipe,
                                            PrefillTile* tickets) {
  const int heads = p.layer.kv_heads, window = p.layer.window;
  const int items = p.prefill[kPrefillCount] * heads;
  RingPlace<S::kTickets> place;
  int item = static_cast<int>(blockIdx.x);
  bool more = true;
#pragma unroll 1
  while (more) {
    PrefillTile tile{};
    more = item < items;
    if (more) {
      const int index = item / heads;
      tile = p.tiles[index];
      tile.kv_head = item - index * heads;
      if (!tile.shared()) tile.first_keys = FirstSeen(tile.position, window) / S::kKeys;
      tile.last_keys = tile.PositionOf(tile.tokens - 1) / S::kKeys;
      item = static_cast<int>(gridDim.x) + atomicAdd(&p.prefill[kPrefillTicket], 1);
    }
    WaitBarrier(pipe.ticket_empty(place.at), place.parity ^ 1);
    tickets[place.at] = tile;
    ArriveBarrier(pipe.ticket_full(place.at));
    place.Step();
  }
  if (atomicAdd(&p.prefill[kPrefillDone], 1) + 1 == static_cast<int>(gridDim.x)) {
    p.prefill[kPrefillTicket] = 0;
    p.prefill[kPrefillDone] = 0;
  }
}

// The queries of a tile: a box of its tokens x the group's heads x 64 dims for each part. Behind
// the tile's tokens it brings others' queries, whose sums nobody stores.
template <class S>
__device__ __forceinline__ void LoadQueries(const WgmmaParams& p, const WgmmaPipe<S>& pipe,
                                            const PrefillTile* tickets) {
  const int group = p.prefill.layer.group;
  const int bytes = S::kParts * (kWgmmaRows / group) * group * kSwizzledRow;
  TicketReader<S> reader(pipe, tickets);
  uint32_t parity = 0;
#pragma unroll 1
  for (;;) {
    const PrefillTile& tile = reader.Next();
    if (tile.tokens == 0) return;
    const int first_token = tile.first_token, head = tile.kv_head * group;
    reader.Done();
    WaitBarrier(pipe.query_empty(), parity ^ 1);
    parity ^= 1;
    if (threadIdx.x % kWarpSize == 0) {
      ArriveBarrierExpecting(pipe.query_full(), bytes);
#pragma unroll
      for (int part = 0; part < S::kParts; ++part) {
        CopyBox5(pipe.queries() + part * S::kQueryPart, p.queries, pipe.query_full(),
                 part * kBoxDims, head, first_token, 0, 0);
      }
    }
    __syncwarp();
  }
}

// A walk down a row's blocks, a group of keys at a time, for one of the pages of such a group. The
// entry of the block table that comes next is on its way while this one is used.
template <class S>
class BlockWalk {
 public:
  // Blocks that lie behind the row's last one are asked for outside of the cache, as zeros.
  static constexpr int kNoBlock = -1;

  // Begins at token `key`.
  __device__ __forceinline__ BlockWalk(const LayerParams& layer, const PrefillTile& tile, int key)
      : table_(layer.table + tile.row_slot * layer.table_stride),
        block_size_(layer.block_size),
        step_(S::kKeys / block_size_),
        step_tokens_(S::kKeys - step_ * block_size_),
        index_(key / block_size_),
        token_(key - index_ * block_size_),
        block_(key < tile.length ? table_[index_] : kNoBlock) {}

  __device__ __forceinline__ int token() const { return token_; }  // within the block
  __device__ __forceinline__ int block() const { return block_; }

  // REQUIRES: the row has keys kKeys further down.
  __device__ __forceinline__ void Step() {
    index_ -= step_;
    token_ -= step_tokens_;
    if (token_ < 0) {
      token_ += block_size_;
      --index_;
    }
    block_ = table_[index_];
  }

 private:
  const int32_t* table_;
  int block_size_, step_, step_tokens_;
  int index_, token_, block_;
};

// A warp that sets all keys (kValues false) or all values going. Lane l owns box l of every tile:
// page l / kParts, dims of part l % kParts.
template <class S, bool kValues>
class BoxProducer {
 public:
  __device__ __forceinline__ BoxProducer(const WgmmaParams& p, const WgmmaPipe<S>& pipe)
      : p_(p), pipe_(pipe), lane_(threadIdx.x % kWarpSize) {}

  __device__ __forceinline__ void Run(const PrefillTile* tickets) {
    TicketReader<S> reader(pipe_, tickets);
#pragma unroll 1
    for (;;) {
      const PrefillTile& tile = reader.Next();
      if (tile.tokens == 0) return;
      Item(tile);
      reader.Done();
    }
  }

 private:
  __device__ __forceinline__ uint32_t Full(int stage) const {
    return kValues ? pipe_.value_full(stage) : pipe_.key_full(stage);
  }
  __device__ __forceinline__ uint32_t Empty(int stage) const {
    return kValues ? pipe_.value_empty(stage) : pipe_.key_empty(stage);
  }
  __device__ __forceinline__ uint32_t Tile(int stage) const {
    return kValues ? pipe_.values(stage) : pipe_.keys(stage);
  }

  // The row's last block may end with slots that nobody has written, and a weight of zero times
  // what lies there would be NaN. Such values go to a barrier of their own first, and are cleared
  // when the next ones are on their way.
  __device__ __forceinline__ void Item(const PrefillTile& tile) {
    const int last = tile.last_keys, groups = last - tile.first_keys + 1, head = tile.kv_head;
    // A lane without a box walks with lane 0: further on it might leave the block table.
    const int box = lane_ < S::kBoxes ? lane_ : 0;
    const int page = box / S::kParts * kTileTokens, dims = box % S::kParts * kBoxDims;
    const uint32_t to = box % S::kParts * S::kKeyPart + box / S::kParts * S::kBoxBytes;
    const bool ragged =
        kValues && tile.length % kTileTokens != 0 && tile.length < (last + 1) * S::kKeys;
    BlockWalk<S> walk(p_.prefill.layer, tile, last * S::kKeys + page);
    int tail_stage = 0;
#pragma unroll 1
    for (int i = 0; i < groups; ++i) {
      const int block = walk.block(), token = walk.token();
      if (i + 1 < groups) walk.Step();
      const bool tail = ragged && i == 0;
      const uint32_t full = tail ? pipe_.value_landed() : Full(stage_.at);
      WaitBarrier(Empty(stage_.at), stage_.parity ^ 1);
      if (lane_ == 0) ArriveBarrierExpecting(full, S::kTileBytes);
      __syncwarp();
      if (lane_ < S::kBoxes) {
        CopyBox5(Tile(stage_.at) + to, p_.cache, full, dims, token, head, kValues ? 1 : 0, block);
      }
      if (tail) tail_stage = stage_.at;
      if (ragged && i == Min(1, groups - 1)) ClearTail(tile, tail_stage);
      stage_.Step();
    }
  }

  // Waits for the last values, writes zeros over the dead rows of their block and hands the tile
  // on.
  __device__ __forceinline__ void ClearTail(const PrefillTile& tile, int stage) {
    WaitBarrier(pipe_.value_landed(), landed_);
    landed_ ^= 1;
    const int begin = tile.length - tile.last_keys * S::kKeys;
    const int pieces = (-begin & (kTileTokens - 1)) * S::kRowPieces;
    const uint32_t row = pipe_.values(stage) + begin * kSwizzledRow;
#pragma unroll 1
    for (int i = lane_; i < pieces; i += kWarpSize) {
      const int r = i / S::kRowPieces, piece = i % S::kRowPieces;
      StoreSharedZero16(row + r * kSwizzledRow + piece / 8 * S::kKeyPart + piece % 8 * kPieceBytes);
    }
    FenceAsyncShared();
    ArriveWarp(pipe_.value_full(stage));
  }

  const WgmmaParams& p_;
  const WgmmaPipe<S>& pipe_;
  const int lane_;
  typename WgmmaPipe<S>::Stage stage_;
  uint32_t landed_ = 0;
};

}  // namespace octavo::cuda
