// Paged causal prefill and append attention for rows of many query tokens, on mma.sync.
//
// Shapes as PagedAttentionArgs; bfloat16 or float16, a cache of the same or of e4m3; D = 64, 128,
// 256; blocks of k * 16 tokens.
// Grid: persistent; CTAs take (tile, KV head) items, the most expensive first, by a ticket that the
// last CTA puts back. A tile's rows are packed queries, token * group + head, so that the heads of
// a group share the loads of their KV head. A warp owns 32 rows (16 at D = 256) and all keys.
//
// Shared memory: Q [rows, D], then two stages of {K [keys, D], V [keys, D]}, swizzled as in decode.
// Keys run from the diagonal down: masked tiles come first, and the block table is read one tile
// ahead. Slots past the row's length are filled with zeros instead of being read.
//
// Bound by FLOPs: 4 * D for each query-key pair and head. Source: FlashAttention-2 (arXiv
// 2307.08691).
#pragma once

#include "attention/prefill.h"
#include "attention/prefill_keys.cuh"
#include "attention/prefill_softmax.cuh"
#include "attention/prefill_widen.cuh"

namespace octavo::cuda {

// What thread 0 fetches for the CTA.
struct Ticket {
  PrefillTile tile;
  int next;  // item
};

// Thread 0's part: the tile of an item, and the number of the next one.
template <class S>
__device__ __forceinline__ void DrawTicket(const PrefillParams& p, int item, Ticket* ticket) {
  const int index = item / p.layer.kv_heads, window = p.layer.window;
  PrefillTile tile = p.tiles[index];
  tile.kv_head = item - index * p.layer.kv_heads;
  tile.first_keys = FirstSeen(tile.position, window) / S::kKeys;
  tile.last_keys = (tile.position + tile.tokens - 1) / S::kKeys;
  ticket->tile = tile;
  ticket->next = gridDim.x + atomicAdd(&p.prefill[kPrefillTicket], 1);
}

template <class S>
__device__ __forceinline__ void LoadQueryTile(const PrefillParams& p, const PrefillTile& tile,
                                              uint32_t queries) {
  constexpr int kRowsAtOnce = S::kThreads / S::kRowPieces;
  const int piece = threadIdx.x % S::kRowPieces;
#pragma unroll 4
  for (int row = threadIdx.x / S::kRowPieces; row < S::kRows; row += kRowsAtOnce) {
    const int token = TokenOfRow(p, row), head = row - token * p.layer.group;
    const bool live = token < tile.tokens;
    const int64_t at = (tile.first_token + (live ? token : 0)) * p.layer.q_token_stride +
                       (tile.kv_head * p.layer.group + head) * p.layer.q_head_stride;
    CopyAsync16OrZero(queries + PieceOffset<S>(row, piece), p.layer.q + at + piece * kPieceBytes,
                      live);
  }
}

// One tile of queries for its KV head.
template <class S>
__device__ __forceinline__ void PrefillItem(const PrefillParams& p, const PrefillTile& tile,
                                            uint32_t queries) {
  LoadQueryTile<S>(p, tile, queries);
  using Keys = std::conditional_t<S::kFp8, WideningStream<S>, KeyStream<S>>;
  Keys keys(p.layer, tile, queries + S::kQueryBytes);
  keys.Start();
  PrefillState<S> state;
#pragma unroll 1
  for (int j = tile.last_keys; j >= tile.first_keys; --j) {
    const uint32_t stage = keys.Next(j);
    const int key = j * S::kKeys;
    float s[S::kRowTiles][S::kKeys / 8][4];
    Scores<S>(queries, stage, s);
    if (p.layer.cap_log2 != 0.0f) SoftCap<S>(p.layer, s);
    const int last_position = tile.position + tile.tokens - 1;
    if (NeedsMask(tile.position, last_position, key, S::kKeys, p.layer.window)) {
      MaskScores<S>(p, tile, key, s);
    }
    state.Add(p.layer.cap_log2 != 0.0f ? 1.0f : p.layer.scale_log2, s, stage + S::kTileBytes);
  }
  state.Store(p, tile);
}

template <class S>
__global__ __launch_bounds__(S::kThreads, S::kCtasPerMultiprocessor) void PrefillKernel(
    const __grid_constant__ PrefillParams p) {
  unsigned char* const shared = DynamicShared();
  static_assert(sizeof(Ticket) <= S::kTicketBytes);
  // Registers are what this kernel is short of: the loop reads the tile from shared memory.
  Ticket& ticket = *reinterpret_cast<Ticket*>(shared + S::kSharedBytes - S::kTicketBytes);
  GridDependencyWait();
  GridDependencyLaunch();
  int item = blockIdx.x;
#pragma unroll 1
  while (item < p.prefill[kPrefillCount] * p.layer.kv_heads) {
    if (threadIdx.x == 0) DrawTicket<S>(p, item, &ticket);
    __syncthreads();
    PrefillItem<S>(p, ticket.tile, SharedAddress(shared));
    __syncthreads();  // the ticket is there, and nobody reads this item's shared memory any more
    item = ticket.next;
    __syncthreads();
  }
  if (threadIdx.x == 0 && atomicAdd(&p.prefill[kPrefillDone], 1) + 1 == gridDim.x) {
    p.prefill[kPrefillTicket] = 0;  // for the next layer
    p.prefill[kPrefillDone] = 0;
  }
}

template <typename T, int kHeadDim, typename Cached>
Status LaunchPrefillOf(const PrefillParams& p, const LaunchShape& launch) {
  using S = PrefillShape<T, kHeadDim, Cached>;
  LaunchShape shape = launch;
  shape.grid *= S::kCtasPerMultiprocessor;
  shape.threads = S::kThreads;
  shape.shared_bytes = S::kSharedBytes;
  return Launch(PrefillKernel<S>, shape, p);
}

}  // namespace octavo::cuda
