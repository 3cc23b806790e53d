// What both attention kernels are told about a layer. Strides are in bytes and 64-bit: pools cross
// 2^31 elements.
#pragma once

#include <cstdint>

#include "attention/schedule.h"

namespace octavo::cuda {

struct LayerParams {
  const char* cache;  // [B, 2, Hk, bs, D]; the tokens of a head and block are dense
  int64_t block_stride;
  int64_t value_stride;  // from K to V
  int64_t head_stride;
  const int32_t* table;  // [slots, max_blocks]
  int64_t table_stride;  // elements
  int32_t block_size;
  const char* q;  // [N, Hq, D]
  int64_t q_token_stride;
  int64_t q_head_stride;
  char* out;  // as q
  int64_t out_token_stride;
  int64_t out_head_stride;
  const float* sinks;  // [Hq] or null
  int32_t kv_heads;
  int32_t group;   // query heads of a KV head
  int32_t window;  // as FirstSeen takes it
  // A score s (the bare product of q and k) counts 2^x: x = s * scale_log2, or with a soft cap
  // x = cap_log2 * tanh(s * cap_scale).
  float scale_log2;
  float cap_log2;  // 0: no soft cap
  float cap_scale;
  float value_scale;  // of what the cache holds of a value; that of a key is part of the others
};

inline constexpr float kLog2E = 1.4426950408889634f;
// Stands for "no key yet" where -infinity would make inf - inf.
inline constexpr float kNoScore = -1e30f;

}  // namespace octavo::cuda
