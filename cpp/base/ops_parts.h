// What several ops need of their arguments: the limits of a block table, and the plain ops that a
// fused one stands for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "base/ops_check.h"
#include "octavo/ops.h"
#include "octavo/ops_latent.h"

namespace octavo {

// A block of more tokens than a position can count is a mistake, and its products leave 64 bits.
inline Status CheckBlockSize(const char* op, int64_t block_size) {
  if (block_size >= 1 && block_size <= INT32_MAX) return Status::Ok();
  return InvalidOp(op,
                   "block_size is " + std::to_string(block_size) + ", need 1 to 2147483647 tokens");
}

// Positions that a line of a block table has room for, as far as 32 bits count them.
// REQUIRES: block_size > 0.
inline int64_t TableRoom(const TensorView& table, int64_t block_size) {
  constexpr int64_t kMost = INT64_C(1) << 31;
  return std::min(kMost, std::min(table.shape[1], kMost) * std::min(block_size, kMost));
}

inline RmsNormArgs NormOf(const NormRopeCacheArgs& a, const TensorView& x,
                          const TensorView& weight) {
  return {x, x, weight, a.eps, a.weight_offset};
}

inline RopeArgs RopeOf(const NormRopeCacheArgs& a) {
  return {a.q, a.k, a.position, a.cos_sin, a.interleaved};
}

inline CacheWriteArgs CacheWriteOf(const NormRopeCacheArgs& a) {
  return {a.k, a.v, a.cache, a.slot, a.k_scale, a.v_scale};
}

inline NormRopeCacheArgs NormRopeCacheOf(const NormRopeAttentionArgs& a) {
  const PagedAttentionArgs& p = a.attention;
  return {p.q,      a.k,      a.v,   a.position,      a.cos_sin,     p.cache,   a.slot,
          a.q_norm, a.k_norm, a.eps, a.weight_offset, a.interleaved, p.k_scale, p.v_scale};
}

// Latent attention is attention of all heads over one key head, whose values are the leading part
// of its keys: the cache's K and V are the same memory.
inline PagedAttentionArgs AttentionOf(const LatentAttentionArgs& a) {
  PagedAttentionArgs p;
  p.out = a.out;
  p.q = a.q;
  p.cache = a.cache;
  p.cache.rank = 5;
  const int64_t shape[] = {a.cache.shape[0], 2, 1, a.cache.shape[1], a.cache.shape[2]};
  const int64_t stride[] = {a.cache.stride[0], 0, 0, a.cache.stride[1], 1};
  for (int i = 0; i < p.cache.rank; ++i) {
    p.cache.shape[i] = shape[i];
    p.cache.stride[i] = stride[i];
  }
  p.block_table = a.block_table;
  p.row_slot = a.row_slot;
  p.query_start = a.query_start;
  p.seq_len = a.seq_len;
  p.scale = a.scale;
  return p;
}

// ValidateIndices of an attention, its faults under the name of `op`.
Status CheckAttentionIndices(const char* op, const PagedAttentionArgs& a);
// Slots of tokens below `slots`; negative ones are skipped.
Status CheckSlots(const char* op, const TensorView& slot, int64_t slots);

}  // namespace octavo
