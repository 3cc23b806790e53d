// EngineConfig: every limit and policy of the core, checked once by Validate().
#pragma once

#include <cstdint>

#include "octavo/status.h"

namespace octavo {

enum class SchedulingPolicy { kFcfs, kPriority };

// Whom to preempt when the pool is full. kCost: the least recompute cost per freed block, later
// arrivals first among equals. kLast: the latest in scheduling order.
enum class VictimPolicy { kCost, kLast };

inline constexpr int32_t kMaxBlockSize = 256;
inline constexpr int32_t kMaxStepsInFlight = 2;

struct EngineConfig {
  // KV memory.
  int32_t num_blocks = 0;   // blocks of the pool, the null block included
  int32_t block_size = 16;  // tokens a block, a power of two <= kMaxBlockSize
  bool enable_prefix_caching = true;
  bool enable_kv_events = false;
  uint64_t hash_seed = 0;  // seed of the prefix hash; 0 draws one from the system

  // Limits.
  int32_t vocab_size = 0;
  int32_t max_model_len = 0;              // prompt + output tokens of one request
  int32_t max_num_seqs = 256;             // rows of a step
  int32_t max_num_batched_tokens = 2048;  // tokens of a step
  int32_t max_queued_requests = 1 << 20;

  // Policies.
  SchedulingPolicy policy = SchedulingPolicy::kFcfs;
  VictimPolicy victim = VictimPolicy::kCost;
  bool enable_chunked_prefill = true;
  int32_t long_prefill_token_threshold = 0;  // tokens of one prompt a step; 0: no limit
  int64_t priority_aging_ms = 10'000;  // waiting this long outweighs one priority level; 0: never
  double watermark = 0.0;        // share of the pool kept free when a waiting request is admitted
  bool full_prompt_gate = true;  // admit only what can hold all its known tokens
  int32_t max_overtakes = 8;     // how many later requests may pass a head that does not fit
};

// Names the first field that is out of range, its value and the remedy.
Status Validate(const EngineConfig& config);

}  // namespace octavo
