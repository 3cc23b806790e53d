// Rows of one query whose heads no kernel has normed, turned or stored yet.
//
// The CTA's groups of lanes take the heads of a segment: the queries of its KV head, and where the
// segment ends with the row's newest key, that key and its value. What they leave in shared memory
// has the bits of norm_rope_cache, because it is made by the same function. Every warp then reads
// the queries as operands of its products, and the warp that has the row's last tile puts the
// newest key and value into it.
//
// Both lie where the warps' states are merged later: queries in the first warp's part, key and
// value in the part of the warp that needs them, behind room for the queries.
#pragma once

#include "attention/decode_softmax.cuh"
#include "attention/fresh.h"
#include "rows/head_piece.cuh"

namespace octavo::cuda {

template <class S>
class FreshRows {
 public:
  using T = typename S::Element;
  static constexpr int kWidth = kWideElements<T>;
  static constexpr int kHalf = S::kHeadDim / 2;
  static constexpr int kLanes = kHalf / kWidth;          // of a head
  static constexpr int kAtOnce = S::kThreads / kLanes;   // heads
  static constexpr int kQueryBytes = S::kRowBytes + 16;  // neighbours begin in different banks
  static constexpr int kRoom = kColumnsOfMma * kQueryBytes;
  static constexpr int kPartBytes = kColumnsOfMma * S::kMergeRow * 4;  // a warp's, of the merge
  static_assert(!S::kFp8 && S::kColumnTiles == 1);
  static_assert(kWarpSize % kLanes == 0, "no head crosses warps");
  static_assert(S::kRowPieces <= kWarpSize, "a lane moves one piece of a key");
  static_assert(kRoom + 2 * S::kRowBytes <= kPartBytes);

  __device__ __forceinline__ FreshRows(const FreshDecodeParams& p, float* merge)
      : p_(p.rows), layer_(p.decode.layer), staged_(reinterpret_cast<unsigned char*>(merge)) {}

  // Finds the angles of a segment's token, its slot, and the norm's weight of this thread's first
  // head: two dependent reads, of what is older than the projections.
  __device__ __forceinline__ void Find(const Segment& g, SoftmaxState<S>*) {
    FindWeight(static_cast<int>(threadIdx.x) / kLanes);
    const float* const cos = p_.table.Of(p_.position[g.first_token]);
    slot_ = SlotOffset(p_.place, p_.slot[g.first_token]);
    turn_ = cos != nullptr;
    if (!turn_) return;
    const int at = static_cast<int>(threadIdx.x) % kLanes * kWidth;
    LoadFloats(cos + at, cos_);
    LoadFloats(cos + kHalf + at, sin_);
  }

  // Norms and turns a segment's queries, and its newest key, which goes to the cache with its
  // value. Every thread of the CTA comes. REQUIRES: Find, and nobody uses the merge buffer.
  __device__ __forceinline__ void Begin(const Segment& g, SoftmaxState<S>* state) {
    const int group = layer_.group, heads = group + (Owns(g) ? 2 : 0);
    const int mine = static_cast<int>(threadIdx.x) / kLanes;
#pragma unroll 1
    for (int first = 0; first < heads; first += kAtOnce) {
      const int head = Min(first + mine, heads - 1);
      if (first > 0) FindWeight(head);
      Finish(g, head, first + mine < heads);
    }
    __syncthreads();
    ReadQueries(state);
    __syncthreads();  // the first warp leaves its state where they lay
  }

  // Puts the newest key and value into tile number `number` of the row, at `tile`, if it is theirs.
  __device__ __forceinline__ void Complete(const Segment& g, int number, uint32_t tile) const {
    const int newest = g.length - 1;
    if (number != newest / kTileTokens) return;
    const int lane = threadIdx.x % kWarpSize, row = newest % kTileTokens;
    if (lane < S::kRowPieces) {
      const uint32_t key = SharedAddress(Newest(g)) + lane * kPieceBytes;
      const uint32_t to = tile + PieceOffset<S>(row, lane);
      StoreShared16(to, LoadShared16(key));
      StoreShared16(to + S::kTileBytes, LoadShared16(key + S::kRowBytes));
    }
    __syncwarp();
  }

 private:
  // The row's last tile, counted from the segment's first.
  __device__ __forceinline__ int LastTile(const Segment& g) const {
    return (g.length - 1) / kTileTokens - g.first_tile;
  }
  // A tile belongs to one segment of a KV head, so one CTA stores each key and value.
  __device__ __forceinline__ bool Owns(const Segment& g) const { return LastTile(g) < g.tiles; }

  __device__ __forceinline__ unsigned char* Newest(const Segment& g) const {
    return staged_ + LastTile(g) % S::kWarps * kPartBytes + kRoom;
  }

  // Of a head of Finish; a value has none.
  __device__ __forceinline__ void FindWeight(int head) {
    if (p_.q_norm == nullptr || head > layer_.group) return;
    const int at = static_cast<int>(threadIdx.x) % kLanes * kWidth;
    weight_ = LoadWeight<T>(head < layer_.group ? p_.q_norm : p_.k_norm, S::kHeadDim, at);
  }

  // Heads of a segment: its queries, then the key, then the value.
  __device__ __forceinline__ void Finish(const Segment& g, int head, bool there) const {
    const int at = static_cast<int>(threadIdx.x) % kLanes * kWidth, group = layer_.group;
    const bool is_q = head < group, is_k = head == group;
    const int64_t token = g.first_token;
    const char* source = p_.v + token * p_.v_stride.token + g.head * p_.v_stride.head;
    if (is_k) source = p_.k + token * p_.k_stride.token + g.head * p_.k_stride.head;
    if (is_q) {
      source = p_.q + token * p_.q_stride.token + (g.head * group + head) * p_.q_stride.head;
    }
    const T* const from = reinterpret_cast<const T*>(source) + at;
    const HeadPiece<T> piece{LoadPackPastL1<T, kWidth>(from),
                             LoadPackPastL1<T, kWidth>(from + kHalf)};
    float a[kWidth], b[kWidth];
    const auto weight = [&] { return weight_; };
    NormAndTurn(p_, piece, is_q || is_k, weight, kLanes, cos_, sin_, turn_ && (is_q || is_k), a, b);
    if (!there) return;
    unsigned char* const newest = Newest(g) + (is_k ? 0 : S::kRowBytes);
    StoreHalves(is_q ? staged_ + head * kQueryBytes : newest, at, a, b);
    if (is_q || slot_ < 0) return;
    char* const slot = p_.place.cache + slot_ + g.head * p_.place.head_stride;
    StoreHalves(is_k ? slot : slot + p_.place.value_stride, at, a, b);
  }

  static __device__ __forceinline__ void StoreHalves(void* to, int at, const float (&a)[kWidth],
                                                     const float (&b)[kWidth]) {
    StoreElements<T, kWidth>(static_cast<T*>(to) + at, a);
    StoreElements<T, kWidth>(static_cast<T*>(to) + kHalf + at, b);
  }

  // As SoftmaxState::LoadQueries, of an item's only column tile.
  __device__ __forceinline__ void ReadQueries(SoftmaxState<S>* state) const {
    const int lane = threadIdx.x % kWarpSize, column = lane / 4;
    const bool live = column < layer_.group;
    const auto* const words =
        reinterpret_cast<const uint32_t*>(staged_ + (live ? column : 0) * kQueryBytes) + lane % 4;
#pragma unroll
    for (int k = 0; k < SoftmaxState<S>::kSteps; ++k) {
      state->q[k][0][0] = live ? words[8 * k] : 0u;
      state->q[k][0][1] = live ? words[8 * k + 4] : 0u;
    }
  }

  const QkvParams& p_;
  const LayerParams& layer_;
  unsigned char* const staged_;
  HeadPiece<T> weight_ = {};
  float cos_[kWidth] = {};
  float sin_[kWidth] = {};
  int64_t slot_ = -1;
  bool turn_ = false;
};

}  // namespace octavo::cuda
