// EvictionClass: how soon a free block is given to other content. Lower classes go first.
//
// Content without a retention priority is probationary until somebody hits it, then proven. A
// priority below the ordinary one goes before both, one above it after both, and the highest is
// pinned.
#pragma once

#include <bit>
#include <cstdint>

#include "octavo/retention.h"

namespace octavo::kv {

enum class EvictionClass : uint8_t {
  kUnhashed = 0,
  // 1 + p: priority p below kOrdinaryPriority
  kProbationary = kOrdinaryPriority + 1,
  kProven = kOrdinaryPriority + 2,
  // p + 2: priority p above kOrdinaryPriority
  kPinned = kMaxPriority + 2,
};
inline constexpr int kEvictionClasses = static_cast<int>(EvictionClass::kPinned) + 1;

// REQUIRES: 0 <= priority <= kMaxPriority and priority != kOrdinaryPriority.
constexpr EvictionClass ClassOf(int32_t priority) {
  return EvictionClass(priority + (priority < kOrdinaryPriority ? 1 : 2));
}

// Which classes have something: a bit each, so that the lowest is found at once.
class ClassSet {
 public:
  void Add(EvictionClass c) { words_[Index(c) / 64] |= Bit(c); }
  void Remove(EvictionClass c) { words_[Index(c) / 64] &= ~Bit(c); }
  bool operator==(const ClassSet&) const = default;
  bool empty() const { return (words_[0] | words_[1]) == 0; }
  // REQUIRES: !empty().
  EvictionClass First() const {
    return words_[0] != 0 ? EvictionClass(std::countr_zero(words_[0]))
                          : EvictionClass(64 + std::countr_zero(words_[1]));
  }

 private:
  static_assert(kEvictionClasses <= 128, "two words hold every class");
  static constexpr int Index(EvictionClass c) { return static_cast<int>(c); }
  static constexpr uint64_t Bit(EvictionClass c) { return uint64_t{1} << (Index(c) % 64); }

  uint64_t words_[2] = {};
};

}  // namespace octavo::kv
