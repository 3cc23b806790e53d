// SharedBlocks: how many tokens running requests read from blocks that others of them read too.
//
// Counts for each block of one group of full attention how many running requests hit it when they
// were admitted. Who took the block fresh is not counted: taking blocks is what decoding does all
// the time, and one request more or less decides nothing. What is counted is a hint, for whoever
// can read such a block once for all of them; so what few requests hit counts for nothing, nor does
// a prefix that is soon read.
//
// An admission and a release cost a few instructions for each block of the hit. Nothing allocates
// after construction. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/out_of_memory.h"
#include "octavo/ids.h"

namespace octavo::kv {

class SharedBlocks {
 public:
  // So many requests share a block at least, and so many tokens a prefix has. Longer than what a
  // chat template puts in front of every prompt.
  static constexpr int32_t kLeastRequests = 4;
  static constexpr int32_t kLeastTokens = 256;

  // Blocks of a request that so many hit, by which it is told who shares with whom; 0: none.
  struct Prefix {
    int32_t first = 0;  // at the end of the shortest prefix that counts, however it came there
    int32_t last = 0;   // the last that the request hit, or else the first
    int32_t depth = 0;  // blocks before the last
  };

  // Counts nothing.
  SharedBlocks() = default;
  // `num_blocks`: ids that a table may name.
  SharedBlocks(int32_t block_size, int32_t num_blocks, int32_t num_slots)
      : block_size_(block_size),
        first_(static_cast<size_t>((kLeastTokens - 1) / block_size)),
        counts_(TakeVector<int32_t>(static_cast<size_t>(num_blocks), kWanted, kRemedy)),
        held_(TakeVector<Held>(static_cast<size_t>(num_slots), kWanted, kRemedy)) {}

  // The slot's request is admitted with these blocks, as its table names them.
  // REQUIRES: it has entered nothing since it last left.
  void Enter(RowSlot slot, std::span<const int32_t> hit) {
    if (held_.empty() || hit.size() <= first_) return;
    held_[Index(slot)] = {static_cast<int32_t>(hit.size()), hit[first_], hit.back()};
    ++version_;
    int64_t blocks = BlocksBefore() * Step(counts_[hit[first_]] + 1);
    for (size_t i = first_; i < hit.size(); ++i) blocks += Step(++counts_[hit[i]]);
    blocks_ += blocks;
  }
  // It lets go of its blocks. `row`: of its table, which begins with what it entered.
  void Leave(RowSlot slot, std::span<const int32_t> row) {
    if (held_.empty() || held_[Index(slot)].first == 0) return;
    const auto end = static_cast<size_t>(held_[Index(slot)].entered);
    held_[Index(slot)] = {};
    ++version_;
    if (end == 0) return;
    int64_t blocks = BlocksBefore() * Step(counts_[row[first_]]);
    for (size_t i = first_; i < end; ++i) blocks += Step(counts_[row[i]]--);
    blocks_ -= blocks;
  }

  // Over all blocks that at least kLeastRequests requests hit: tokens times requests.
  int64_t tokens() const { return blocks_ * block_size_; }
  // How many leading blocks the slot's request entered; 0: none that count.
  int32_t entered(RowSlot slot) const { return held_.empty() ? 0 : held_[Index(slot)].entered; }
  // What the slot's request shares. `row_of`: a slot's row. Whoever computed a prefix has entered
  // nothing, but has its first block, which others hit.
  // REQUIRES: tokens() > 0.
  template <typename RowOf>
  Prefix PrefixOf(RowSlot slot, const RowOf& row_of) {
    Held& held = held_[Index(slot)];
    if (held.first == 0) {
      const std::span<const int32_t> row = row_of(slot);
      if (row.size() > first_) held.first = row[first_];
    }
    const int32_t first = IfShared(held.first);
    if (IfShared(held.last) == 0) return {first, first, static_cast<int32_t>(first_)};
    return {first, held.last, held.entered - 1};
  }
  // Another one wherever some slot's prefix may be another.
  uint64_t version() const { return version_; }

  // Aborts with a message unless the counts are those of what the slots entered. `row_of`: a slot's
  // row.
  template <typename RowOf>
  void CheckInvariants(const RowOf& row_of) const {
    if (held_.empty()) return;
    SharedBlocks afresh(block_size_, static_cast<int32_t>(counts_.size()),
                        static_cast<int32_t>(held_.size()));
    for (size_t s = 0; s < held_.size(); ++s) {
      const RowSlot slot{static_cast<int32_t>(s)};
      const std::span<const int32_t> row = row_of(slot);
      if (entered(slot) > 0) afresh.Enter(slot, row.first(size_t(entered(slot))));
      const Held& held = held_[s];
      OCTAVO_CHECK(held.first == 0 || row[first_] == held.first, "a prefix begins elsewhere");
      OCTAVO_CHECK(held.last == afresh.held_[s].last, "a prefix ends elsewhere");
    }
    OCTAVO_CHECK(afresh.counts_ == counts_, "a block is hit by other requests than it counts");
    OCTAVO_CHECK(afresh.blocks_ == blocks_, "other tokens are shared than are counted");
  }

 private:
  static constexpr char kWanted[] = "the counts of shared blocks";
  static constexpr char kRemedy[] = "lower num_blocks, or free some memory";

  struct Held {
    int32_t entered = 0;  // leading blocks
    int32_t first = 0;    // block at first_; 0: not known, or not there yet
    int32_t last = 0;     // block that it entered last
  };

  // What the last of a block's requests adds: nothing, then itself and those before it, then
  // itself.
  static int64_t Step(int32_t count) {
    if (count < kLeastRequests) return 0;
    return count == kLeastRequests ? kLeastRequests : 1;
  }
  int32_t IfShared(int32_t block) const { return counts_[block] >= kLeastRequests ? block : 0; }
  // The first block that counts stands for all before it too.
  int64_t BlocksBefore() const { return static_cast<int64_t>(first_); }

  int32_t block_size_ = 0;
  size_t first_ = 0;
  std::vector<int32_t> counts_;  // by block
  std::vector<Held> held_;       // by slot
  int64_t blocks_ = 0;           // times requests, over all that count
  uint64_t version_ = 0;
};

}  // namespace octavo::kv
