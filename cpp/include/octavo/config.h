// EngineConfig: every limit and policy of the core, checked once by Validate().
#pragma once

#include <cstdint>
#include <vector>

#include "octavo/status.h"

namespace octavo {

enum class SchedulingPolicy { kFcfs, kPriority };

// Whom to preempt when the pool is full. kCost: the least recompute cost per freed block, later
// arrivals first among equals. kLast: the latest in scheduling order.
enum class VictimPolicy { kCost, kLast };

// What becomes of a request whose KV a connector promised and failed to load. kFail: it ends with
// kError. kRecompute: it computes what did not arrive.
enum class KvLoadFailurePolicy { kFail, kRecompute };

// What a pause holds back. kNewRequests: whoever was never admitted; who runs goes on, and who was
// preempted comes back. kAll: everything.
enum class PauseMode : uint8_t { kNone, kNewRequests, kAll };

inline constexpr int32_t kMaxBlockSize = 256;
inline constexpr int32_t kMaxStepsInFlight = 3;
// A row of 64 tokens is the most that decoding takes.
inline constexpr int32_t kMaxDraftTokens = 63;
inline constexpr int32_t kMaxPromptLookup = 64;

// What one group of layers keeps of the past.
enum class GroupKind : uint8_t {
  kFull,           // keys and values of every token
  kSlidingWindow,  // of the last `window` tokens
  kChunkedLocal,   // of the current chunk of `window` tokens
  kState,          // one recurrent state; snapshots at block boundaries
  kCross,          // keys and values of a request's encoder item; every token sees all of them
  kLatent,         // one vector of every token, keys and values at once; kept like kFull
};

// Whether a running request of this kind never gives a block back, and every token sees all before.
constexpr bool KeepsEveryToken(GroupKind kind) {
  return kind == GroupKind::kFull || kind == GroupKind::kLatent;
}

// Layers that share block tables. Their blocks take 1 / split of a parent of the pool, so that
// groups whose blocks differ in bytes share it. A block of kCross holds `block_size` embeddings.
struct GroupSpec {
  GroupKind kind = GroupKind::kFull;
  int32_t block_size = 16;  // tokens a block, a power of two <= kMaxBlockSize
  int32_t window = 0;       // tokens; kSlidingWindow and kChunkedLocal only
  int32_t sink = 0;         // leading tokens that stay visible; windows only
  int32_t split = 1;        // blocks of this group in one parent, 1 to 64
  int32_t encoder_len = 0;  // embeddings of the longest item; kCross only
};

inline constexpr int32_t kMaxCacheGroups = 8;
inline constexpr int32_t kMaxGroupSplit = 64;
inline constexpr int32_t kMaxSplitGrid = 4096;  // bounds the least common multiple of all splits

struct EngineConfig {
  // KV memory.
  int32_t num_blocks = 0;   // parents of the pool, the null one included; blocks, with one group
  int32_t block_size = 16;  // tokens a block, a power of two <= kMaxBlockSize
  std::vector<GroupSpec> groups;  // empty: one group of full attention with `block_size`
  // Window and state groups keep a snapshot of their past every so many tokens, besides those at a
  // prompt's end and behind the latest token; 0: only these; -1: keep whatever is not evicted.
  int32_t snapshot_interval = 0;
  bool enable_prefix_caching = true;
  // A hit may end inside a block, which is then copied: the executor must make the copies of a step
  // (StepPlan::num_copies) before anything else. Only groups of full attention with blocks of one
  // size can; with others this changes nothing.
  bool sub_block_hits = false;
  bool enable_kv_events = false;
  int32_t max_kv_events = 1 << 16;  // kept until they are taken; more are dropped, and counted
  uint64_t hash_seed = 0;           // seed of the prefix hash; 0 draws one from the system

  // Limits.
  int32_t vocab_size = 0;
  int32_t max_model_len = 0;              // prompt + output tokens of one request
  int32_t max_num_seqs = 256;             // rows of a step
  int32_t max_num_batched_tokens = 2048;  // tokens of a step
  int32_t max_queued_requests = 1 << 20;
  int32_t max_steps_in_flight = 2;  // steps that may be open at once, 1 to kMaxStepsInFlight
  int32_t max_draft_tokens = 0;     // drafts of one row, up to kMaxDraftTokens; 0: no drafts
  // Drafts of the engine's own: what followed the last time that a request's latest tokens, as many
  // of the last prompt_lookup_max as match and no fewer than prompt_lookup_min, stood together.
  int32_t prompt_lookup_min = 0;
  int32_t prompt_lookup_max = 0;  // up to kMaxPromptLookup; 0: no drafts of its own

  // Encoders. In embeddings; 0: requests bring no images or audio.
  int32_t encoder_cache_size = 0;  // kept at once
  // Computed a step; 0: encoder_cache_size or, where that is 0 too, the longest encoder_len.
  int32_t encoder_budget = 0;

  // Policies.
  SchedulingPolicy policy = SchedulingPolicy::kFcfs;
  VictimPolicy victim = VictimPolicy::kCost;
  bool enable_chunked_prefill = true;
  int32_t long_prefill_token_threshold = 0;  // tokens of one prompt a step; 0: no limit
  int64_t priority_aging_ms = 10'000;  // waiting this long outweighs one priority level; 0: never
  double watermark = 0.0;        // share of the pool kept free when a waiting request is admitted
  bool full_prompt_gate = true;  // admit only what can hold all its known tokens
  int32_t max_overtakes = 8;     // how many later requests may pass a head that does not fit

  // What an executor gains from rows that share a prefix and stand together. Rows that decode are
  // put in such an order, and the plan says so (StepPlan::shares), where there are so many of them
  // and the running requests share so many tokens (StepPlan::num_shared_tokens).
  int64_t sharing_min_tokens = 0;  // 0: none are
  int32_t sharing_min_rows = 1;

  // KV from elsewhere; without a connector they change nothing.
  KvLoadFailurePolicy kv_load_failure_policy = KvLoadFailurePolicy::kFail;
  // A load or save that is not reported within this time has failed, and a connector that does not
  // know an answer for so long has none; one that does not let go of a cancelled transfer's blocks
  // within as long again is given up. 0: never.
  int64_t kv_load_timeout_ms = 30'000;
};

// Names the first field that is out of range, its value and the remedy.
Status Validate(const EngineConfig& config);

}  // namespace octavo
