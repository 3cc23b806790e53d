// ExpiryWheel: which blocks' retention ends when.
//
// A hierarchical timing wheel: 64 slots a level, each level 64 times as coarse as the one below. A
// block stands on the list of the slot that its deadline falls into; when that slot begins, the
// block is due or moves down a level. So setting and cancelling are O(1), and so is expiring,
// amortised (a block moves down at most as often as its duration has digits to the base of 64);
// time that passes over empty slots costs nothing. Nothing allocates after Enable. One thread.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "octavo/ids.h"

namespace octavo::kv {

class ExpiryWheel {
 public:
  static constexpr int64_t kTickMicros = 1024;  // deadlines are rounded up to whole ticks
  static constexpr int64_t kRetryMicros = 1'000'000;

  // Makes room for the blocks 0 to num_blocks - 1; the wheel stands still until then.
  void Enable(int32_t num_blocks);
  bool enabled() const { return !nodes_.empty(); }
  int32_t size() const { return size_; }
  bool Contains(BlockId b) const { return enabled() && nodes_[Index(b)].slot >= 0; }

  // The block is due `duration_us` after the latest Advance. REQUIRES: enabled().
  void Set(BlockId b, int64_t duration_us);
  // Its time begins anew, at `now_us` if that is later than the latest Advance. Nothing happens to
  // a block that is not in the wheel.
  void Restart(BlockId b, int64_t now_us = 0);
  void Cancel(BlockId b);
  // Calls `expire` with each block that is due by now and takes it out, unless that returns false:
  // then its time begins anew, and lasts kRetryMicros at least.
  template <typename Expire>
  void Advance(int64_t now_us, Expire&& expire);

 private:
  static constexpr int kBits = 6;
  static constexpr int kSlots = 1 << kBits;
  static constexpr int kLevels = 11;  // 66 bits hold any time

  struct Node {
    int32_t prev = -1;
    int32_t next = -1;
    int32_t slot = -1;  // -1: not in the wheel
    int64_t due = 0;    // ticks
    int64_t duration_us = 0;
  };

  int32_t Sentinel(int32_t slot) const { return num_blocks_ + slot; }
  void Insert(int32_t at, int64_t from, int64_t duration_us);
  void Place(int32_t at);
  void Unlink(int32_t at);

  int32_t num_blocks_ = 0;
  int32_t size_ = 0;
  int64_t now_ = 0;                              // ticks
  std::array<uint64_t, kLevels> occupied_ = {};  // slots with a block, one bit each
  std::vector<Node> nodes_;                      // one a block, then one a slot: its list's ends
};

template <typename Expire>
void ExpiryWheel::Advance(int64_t now_us, Expire&& expire) {
  const int64_t target = now_us / kTickMicros;
  while (size_ > 0) {
    // Slots of a lower level begin before those of a higher one.
    int level = 0;
    while (occupied_[level] == 0) ++level;
    const int64_t digit = std::countr_zero(occupied_[level]);
    const int shift = level * kBits;
    const int64_t begin = (now_ >> shift >> kBits << kBits | digit) << shift;
    if (begin > target) break;
    now_ = begin;
    const int32_t list = Sentinel(level * kSlots + static_cast<int32_t>(digit));
    while (nodes_[list].next != list) {
      const int32_t at = nodes_[list].next;
      Unlink(at);
      if (nodes_[at].due > now_) {
        Place(at);
      } else if (!expire(BlockId{at})) {
        // From the present on: a clock that jumped far would else be followed second by second.
        Insert(at, target, std::max(kRetryMicros, nodes_[at].duration_us));
      }
    }
  }
  if (target > now_) now_ = target;
}

}  // namespace octavo::kv
