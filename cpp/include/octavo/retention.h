// Retention: how long a request's KV is worth keeping, as the request itself says.
#pragma once

#include <cstdint>
#include <span>

#include "octavo/status.h"

namespace octavo {

inline constexpr int32_t kOrdinaryPriority = 35;  // what nobody spoke for
inline constexpr int32_t kMaxPriority = 100;      // pinned: evicted after everything else
inline constexpr int32_t kMaxRetentionRanges = 64;
inline constexpr int64_t kMaxRetentionMs = 1'000'000'000;  // 11.5 days

// The blocks whose first token lies in [begin, end) of the prompt are evicted by `priority`, lower
// ones first, for `duration_ms` after the request has let go of them; then they are ordinary.
struct RetentionRange {
  int32_t begin = 0;
  int32_t end = 0;
  int32_t priority = kOrdinaryPriority;
  int64_t duration_ms = 0;  // 0: for as long as they stay cached
};

struct Retention {
  std::span<const RetentionRange> prompt;  // rising, none overlaps another
  // Of the blocks whose first token the request has generated.
  int32_t decode_priority = kOrdinaryPriority;
  int64_t decode_duration_ms = 0;
};

// Names the first field that is out of range, its value and the remedy.
Status Validate(const Retention& retention, int32_t prompt_len);

}  // namespace octavo
