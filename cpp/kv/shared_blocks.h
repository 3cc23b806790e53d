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

  // Counts nothing.
  SharedBlocks() = default;
  // `num_blocks`: ids that a table may name.
  SharedBlocks(int32_t block_size, int32_t num_blocks, int32_t num_slots)
      : block_size_(block_size),
        first_(static_cast<size_t>((kLeastTokens - 1) / block_size)),
        counts_(TakeVector<int32_t>(static_cast<size_t>(num_blocks), kWanted, kRemedy)),
        hits_(TakeVector<int32_t>(static_cast<size_t>(num_slots), kWanted, kRemedy)) {}

  // The slot's request is admitted with these blocks, as its table names them.
  // REQUIRES: it has entered nothing since it last left.
  void Enter(RowSlot slot, std::span<const int32_t> hit) {
    if (hits_.empty() || hit.size() <= first_) return;
    hits_[Index(slot)] = static_cast<int32_t>(hit.size());
    int64_t blocks = BlocksBefore() * Step(counts_[hit[first_]] + 1);
    for (size_t i = first_; i < hit.size(); ++i) blocks += Step(++counts_[hit[i]]);
    blocks_ += blocks;
  }
  // It lets go of its blocks. `row`: of its table, which begins with what it entered.
  void Leave(RowSlot slot, std::span<const int32_t> row) {
    if (hits_.empty() || hits_[Index(slot)] == 0) return;
    const auto end = static_cast<size_t>(hits_[Index(slot)]);
    hits_[Index(slot)] = 0;
    int64_t blocks = BlocksBefore() * Step(counts_[row[first_]]);
    for (size_t i = first_; i < end; ++i) blocks += Step(counts_[row[i]]--);
    blocks_ -= blocks;
  }

  // Over all blocks that at least kLeastRequests requests hit: tokens times requests.
  int64_t tokens() const { return blocks_ * block_size_; }
  // How many leading blocks the slot's request entered; 0: none that count.
  int32_t entered(RowSlot slot) const { return hits_.empty() ? 0 : hits_[Index(slot)]; }

  // Aborts with a message unless the counts are those of what the slots entered. `row_of`: a slot's
  // row.
  template <typename RowOf>
  void CheckInvariants(const RowOf& row_of) const {
    if (hits_.empty()) return;
    SharedBlocks afresh(block_size_, static_cast<int32_t>(counts_.size()),
                        static_cast<int32_t>(hits_.size()));
    for (size_t s = 0; s < hits_.size(); ++s) {
      const RowSlot slot{static_cast<int32_t>(s)};
      if (entered(slot) > 0) afresh.Enter(slot, row_of(slot).first(size_t(entered(slot))));
    }
    OCTAVO_CHECK(afresh.counts_ == counts_, "a block is hit by other requests than it counts");
    OCTAVO_CHECK(afresh.blocks_ == blocks_, "other tokens are shared than are counted");
  }

 private:
  static constexpr char kWanted[] = "the counts of shared blocks";
  static constexpr char kRemedy[] = "lower num_blocks, or free some memory";

  // What the last of a block's requests adds: nothing, then itself and those before it, then
  // itself.
  static int64_t Step(int32_t count) {
    if (count < kLeastRequests) return 0;
    return count == kLeastRequests ? kLeastRequests : 1;
  }
  // The first block that counts stands for all before it too.
  int64_t BlocksBefore() const { return static_cast<int64_t>(first_); }

  int32_t block_size_ = 0;
  size_t first_ = 0;
  std::vector<int32_t> counts_;  // by block
  std::vector<int32_t> hits_;    // by slot: leading blocks that it entered
  int64_t blocks_ = 0;           // times requests, over all that count
};

}  // namespace octavo::kv
