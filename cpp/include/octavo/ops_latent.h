// The ops of multi-head latent attention (DeepSeek-V2, 2024): of each token and layer the cache
// holds one vector for all heads, a compressed latent and a rotated part of the key beside it.
// Conventions are those of ops.h; C is the width of the latent, R of the rotated part.
//
// Attention is in the absorbed form: the products that would make keys and values of a latent are
// folded into queries and outputs, so that all heads read the vector as it lies in the cache.
#pragma once

#include "octavo/status.h"
#include "octavo/tensor_view.h"

namespace octavo {

// Stores the two parts of new tokens' vectors into their slots. A negative slot is skipped.
struct LatentCacheWriteArgs {
  TensorView latent;  // [N, C] of T
  TensorView rope;    // [N, R] of T
  TensorView cache;   // [B, bs, C + R] of T: one layer's view of the pool
  TensorView slot;    // [N] int64, < B * bs
};

// Causal attention of each row's newest tokens: a key is a whole vector, its value the first C
// entries. Rows, positions and what is left alone are as in PagedAttentionArgs.
struct LatentAttentionArgs {
  TensorView out;          // [N, H, C] of T
  TensorView q;            // [N, H, C + R] of T; C + R up to 1024
  TensorView cache;        // [B, bs, C + R] of T
  TensorView block_table;  // [slots, max_blocks] int32
  TensorView row_slot;     // [R] int32
  TensorView query_start;  // [R + 1] int32, from 0, never falling
  TensorView seq_len;      // [R] int32: cached tokens of the row, its new ones included
  float scale = 1.0f;
};

Status Validate(const LatentCacheWriteArgs& a);
Status Validate(const LatentAttentionArgs& a);

// REQUIRES: Validate(a) is ok and the index tensors lie in host memory.
Status ValidateIndices(const LatentCacheWriteArgs& a);
Status ValidateIndices(const LatentAttentionArgs& a);

namespace cpu {

Status LatentCacheWrite(const LatentCacheWriteArgs& a);
Status LatentAttention(const LatentAttentionArgs& a);

}  // namespace cpu
}  // namespace octavo
