// Taking blocks from a pool without a manager: a sink that remembers what was evicted.
#pragma once

#include <vector>

#include "kv/block_pool.h"

namespace octavo::kv {

class RecordingSink final : public EvictionSink {
 public:
  void OnEvict(BlockId block) override { evicted.push_back(Index(block)); }
  std::vector<int32_t> evicted;
};

// One block, with nothing else to take after it.
inline BlockId Take(BlockPool& pool, int group = 0) {
  RecordingSink sink;
  return pool.Take(group, {}, sink);
}

// One class of every kind, for random tests.
inline constexpr EvictionClass kSomeClasses[] = {
    EvictionClass::kUnhashed, ClassOf(0),  ClassOf(20), EvictionClass::kProbationary,
    EvictionClass::kProven,   ClassOf(50), ClassOf(99), EvictionClass::kPinned};

}  // namespace octavo::kv
