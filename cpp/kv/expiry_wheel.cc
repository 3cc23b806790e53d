#include "kv/expiry_wheel.h"

#include <algorithm>

#include "base/check.h"

namespace octavo::kv {

void ExpiryWheel::Enable(int32_t num_blocks) {
  if (enabled()) return;
  num_blocks_ = num_blocks;
  nodes_.resize(static_cast<size_t>(num_blocks) + kLevels * kSlots);
  for (int32_t slot = 0; slot < kLevels * kSlots; ++slot) {
    const int32_t s = Sentinel(slot);
    nodes_[s].prev = nodes_[s].next = s;
  }
}

void ExpiryWheel::Set(BlockId b, int64_t duration_us) {
  OCTAVO_CHECK(enabled(), "a wheel that was not enabled has no room");
  Cancel(b);
  nodes_[Index(b)].duration_us = duration_us;
  Insert(Index(b), now_, duration_us);
}

void ExpiryWheel::Restart(BlockId b, int64_t now_us) {
  if (!Contains(b)) return;
  Unlink(Index(b));
  Insert(Index(b), std::max(now_, now_us / kTickMicros), nodes_[Index(b)].duration_us);
}

void ExpiryWheel::Cancel(BlockId b) {
  if (Contains(b)) Unlink(Index(b));
}

void ExpiryWheel::Insert(int32_t at, int64_t from, int64_t duration_us) {
  // At least one tick, so that Advance ends.
  const int64_t ticks = std::max<int64_t>(1, (duration_us + kTickMicros - 1) / kTickMicros);
  nodes_[at].due = from + ticks;
  Place(at);
}

void ExpiryWheel::Place(int32_t at) {
  Node& node = nodes_[at];
  // The highest digit in which the deadline differs from now.
  const int level = (std::bit_width(static_cast<uint64_t>(node.due ^ now_)) - 1) / kBits;
  const int64_t digit = node.due >> (level * kBits) & (kSlots - 1);
  node.slot = level * kSlots + static_cast<int32_t>(digit);
  const int32_t s = Sentinel(node.slot);
  node.prev = nodes_[s].prev;
  node.next = s;
  nodes_[node.prev].next = at;
  nodes_[s].prev = at;
  occupied_[level] |= uint64_t{1} << digit;
  ++size_;
}

void ExpiryWheel::Unlink(int32_t at) {
  Node& node = nodes_[at];
  nodes_[node.prev].next = node.next;
  nodes_[node.next].prev = node.prev;
  const int32_t s = Sentinel(node.slot);
  if (nodes_[s].next == s) occupied_[node.slot / kSlots] &= ~(uint64_t{1} << node.slot % kSlots);
  node.slot = node.prev = node.next = -1;
  --size_;
}

}  // namespace octavo::kv
