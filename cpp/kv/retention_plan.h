// RetentionPlan: what one request asked to be kept, ready to be asked block by block.
//
// Assign copies the ranges (submitting may allocate); everything else only reads. One thread.
#pragma once

#include <cstdint>
#include <vector>

#include "octavo/retention.h"

namespace octavo::kv {

class RetentionPlan {
 public:
  struct Wish {
    int32_t priority = kOrdinaryPriority;
    int64_t duration_us = 0;  // 0: no end
  };

  // REQUIRES: the ranges lie in the prompt, rise and do not overlap.
  void Assign(const Retention& retention, int32_t prompt_len);

  // Whether it asks for nothing at all, and whether for something that ends.
  bool empty() const { return ranges_.empty() && decode_.priority == kOrdinaryPriority; }
  bool timed() const { return timed_; }
  // What was asked for the block whose first token stands at `position`. Null: nothing.
  const Wish* Of(int32_t position) const;

 private:
  struct Range {
    int32_t begin;
    int32_t end;
    Wish wish;
  };
  std::vector<Range> ranges_;
  Wish decode_;
  int32_t prompt_len_ = 0;
  bool timed_ = false;
};

}  // namespace octavo::kv
