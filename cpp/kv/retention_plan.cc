#include "kv/retention_plan.h"

#include <algorithm>

namespace octavo::kv {

void RetentionPlan::Assign(const Retention& retention, int32_t prompt_len) {
  constexpr int64_t kMicros = 1000;  // in a millisecond
  prompt_len_ = prompt_len;
  ranges_.clear();
  decode_ = {retention.decode_priority, retention.decode_duration_ms * kMicros};
  timed_ = decode_.duration_us > 0 && decode_.priority != kOrdinaryPriority;
  for (const RetentionRange& r : retention.prompt) {
    ranges_.push_back({r.begin, r.end, {r.priority, r.duration_ms * kMicros}});
    timed_ = timed_ || r.duration_ms > 0;
  }
}

const RetentionPlan::Wish* RetentionPlan::Of(int32_t position) const {
  if (position >= prompt_len_) {
    return decode_.priority == kOrdinaryPriority ? nullptr : &decode_;
  }
  const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), position,
                                      [](int32_t p, const Range& r) { return p < r.begin; });
  if (after == ranges_.begin()) return nullptr;
  const Range& range = *(after - 1);
  return position < range.end ? &range.wish : nullptr;
}

}  // namespace octavo::kv
