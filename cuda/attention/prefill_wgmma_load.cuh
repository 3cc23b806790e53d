// The loading warpgroup of the wgmma prefill kernel: a warp that draws items, two that copy queries
// and one that sets K and V going, a box of 16 tokens x 64 dims at a time.
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
      tile.first_keys = FirstSeen(tile.position, window) / S::kKeys;
      tile.last_keys = (tile.position + tile.tokens - 1) / S::kKeys;
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

// Rows that no query owns become zeros.
template <class S>
__device__ __forceinline__ void LoadQueries(const PrefillParams& p, const WgmmaPipe<S>& pipe,
                                            const PrefillTile* tickets, int thread) {
  constexpr int kRowsAtOnce = kQueryWarps * kWarpSize / S::kRowPieces;
  const int piece = thread % S::kRowPieces;
  const uint32_t part = pipe.queries() + piece / 8 * S::kQueryPart;
  TicketReader<S> reader(pipe, tickets);
  uint32_t parity = 0;
#pragma unroll 1
  for (;;) {
    const PrefillTile& tile = reader.Next();
    const int tokens = tile.tokens;
    if (tokens == 0) return;
    WaitBarrier(pipe.query_empty(), parity ^ 1);
    parity ^= 1;
    const char* const first = p.layer.q + tile.first_token * p.layer.q_token_stride +
                              tile.kv_head * p.layer.group * p.layer.q_head_stride +
                              piece * kPieceBytes;
    reader.Done();
#pragma unroll 1
    for (int row = thread / S::kRowPieces; row < kWgmmaRows; row += kRowsAtOnce) {
      const int token = TokenOfRow(p, row), head = row - token * p.layer.group;
      const bool live = token < tokens;
      const char* const from =
          first + (live ? token : 0) * p.layer.q_token_stride + head * p.layer.q_head_stride;
      CopyAsync16OrZero(part + row * kSwizzledRow + ((piece ^ row) & 7) * kPieceBytes, from, live);
    }
    CopyAsyncCommit();
    CopyAsyncWait<0>();
    FenceAsyncShared();
    ArriveWarp(pipe.query_full());
  }
}

// The producer warp. Lane l owns box l of every tile: page l / kParts, dims of part l % kParts.
template <class S>
class KeyProducer {
 public:
  __device__ __forceinline__ KeyProducer(const WgmmaParams& p, const WgmmaPipe<S>& pipe)
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
  // Boxes that lie behind the row's last block are asked for outside of the cache, as zeros.
  static constexpr int kNoBlock = -1;

  __device__ __forceinline__ int KeyOf(int j) const {
    return j * S::kKeys + lane_ / S::kParts * kTileTokens;
  }

  __device__ __forceinline__ int Lookup(const PrefillTile& tile, int j) const {
    const LayerParams& layer = p_.prefill.layer;
    const int key = KeyOf(j);
    if (lane_ >= S::kBoxes || key >= tile.length) return kNoBlock;
    return layer.table[tile.row_slot * layer.table_stride + key / layer.block_size];
  }

  // Sets this lane's box of K (`value` 0) or V going.
  __device__ __forceinline__ void Copy(const PrefillTile& tile, int j, int block, int value,
                                       uint32_t to, uint32_t full) const {
    if (lane_ >= S::kBoxes) return;
    const int part = lane_ % S::kParts;
    to += part * S::kKeyPart + lane_ / S::kParts * S::kBoxBytes;
    CopyBox5(to, p_.cache, full, part * kBoxDims, KeyOf(j) % p_.prefill.layer.block_size,
             tile.kv_head, value, block);
  }

  // The row's last block may end with slots that nobody has written, and a weight of zero times
  // what lies there would be NaN. Such values go to a barrier of their own first.
  __device__ __forceinline__ void Item(const PrefillTile& tile) {
    const int last = tile.last_keys, first = tile.first_keys;
    const bool ragged = tile.length % kTileTokens != 0 && tile.length < (last + 1) * S::kKeys;
    int block = Lookup(tile, last);
#pragma unroll 1
    for (int j = last; j >= first; --j) {
      const int here = block;
      if (j > first) block = Lookup(tile, j - 1);
      WaitBarrier(pipe_.key_empty(stage_.at), stage_.parity ^ 1);
      if (lane_ == 0) ArriveBarrierExpecting(pipe_.key_full(stage_.at), S::kTileBytes);
      __syncwarp();
      Copy(tile, j, here, 0, pipe_.keys(stage_.at), pipe_.key_full(stage_.at));
      if (ragged && j == last - 1) ClearTail(tile);
      WaitBarrier(pipe_.value_empty(stage_.at), stage_.parity ^ 1);
      const bool tail = ragged && j == last;
      const uint32_t full = tail ? pipe_.value_landed() : pipe_.value_full(stage_.at);
      if (lane_ == 0) ArriveBarrierExpecting(full, S::kTileBytes);
      __syncwarp();
      Copy(tile, j, here, 1, pipe_.values(stage_.at), full);
      if (tail) tail_stage_ = stage_.at;
      stage_.Step();
    }
    if (ragged && last == first) ClearTail(tile);
  }

  // Waits for the last values, writes zeros over the dead rows of their block and hands the tile
  // on.
  __device__ __forceinline__ void ClearTail(const PrefillTile& tile) {
    WaitBarrier(pipe_.value_landed(), landed_);
    landed_ ^= 1;
    const int begin = tile.length - tile.last_keys * S::kKeys;
    const int pieces = (-begin & (kTileTokens - 1)) * S::kRowPieces;
    const uint32_t row = pipe_.values(tail_stage_) + begin * kSwizzledRow;
#pragma unroll 1
    for (int i = lane_; i < pieces; i += kWarpSize) {
      const int r = i / S::kRowPieces, piece = i % S::kRowPieces;
      StoreSharedZero16(row + r * kSwizzledRow + piece / 8 * S::kKeyPart + piece % 8 * kPieceBytes);
    }
    FenceAsyncShared();
    ArriveWarp(pipe_.value_full(tail_stage_));
  }

  const WgmmaParams& p_;
  const WgmmaPipe<S>& pipe_;
  const int lane_;
  typename WgmmaPipe<S>::Stage stage_;
  int tail_stage_ = 0;
  uint32_t landed_ = 0;
};

}  // namespace octavo::cuda
