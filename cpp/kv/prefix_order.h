// PrefixOrder: the order in which rows whose requests share a prefix stand together.
//
// Rows are told apart by the last block that they share. Rows of one last block are a part, parts
// whose prefixes begin alike are a group. Groups stand in the order of their first rows; within
// them parts that share more stand before those that share less, because a kernel that reads rows
// together reads what the row before has in common with them all. What shares nothing comes last,
// so that shared rows begin where a kernel's first tile does. Otherwise rows keep the order they
// came in, all of them where no part is in pieces.
//
// Linear in rows, and sorts the parts. Of the same rows as in the step before it only compares
// these. Nothing allocates after construction. One thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kv/shared_blocks.h"
#include "octavo/ids.h"

namespace octavo::kv {

class PrefixOrder {
 public:
  // Orders nothing.
  PrefixOrder() = default;
  // `num_blocks`: ids that a prefix may name. `num_rows`: the most that are ordered at once.
  PrefixOrder(int32_t num_blocks, int32_t num_rows);

  // Which of the rows of these slots stands first, second and so on; empty: none moves. Valid until
  // the next call. `version`: equal only where `prefix_of` says the same of every slot as it did
  // then.
  template <typename PrefixOf>
  std::span<const int32_t> Of(std::span<const int32_t> slots, uint64_t version,
                              const PrefixOf& prefix_of) {
    if (version != version_ || !std::ranges::equal(slots, std::span(slots_).first(count_))) {
      version_ = version;
      count_ = slots.size();
      std::ranges::copy(slots, slots_.begin());
      moves_ = Divide(prefix_of);
      if (moves_) Sort();
    }
    return std::span<const int32_t>(order_).first(moves_ ? count_ : 0);
  }

 private:
  struct Part {
    int32_t block = 0;  // that its rows share last
    int32_t group = 0;
    int32_t depth = 0;  // of the block, in blocks
    int32_t rows = 0;
    int32_t next = 0;  // where its next row goes
  };
  // Where a block was last seen. It is a part or group of the latest order if that says so too, so
  // nothing has to be cleared.
  struct Seen {
    int32_t part = 0;
    int32_t group = 0;
  };

  // Finds the part of each row; whether some part is in pieces.
  template <typename PrefixOf>
  bool Divide(const PrefixOf& prefix_of) {
    num_parts_ = num_groups_ = 0;
    int32_t pieces = 0;
    int32_t before = -1;
    for (size_t i = 0; i < count_; ++i) {
      const int32_t part = FindPart(prefix_of(RowSlot{slots_[i]}));
      ++parts_[part].rows;
      pieces += part != before;
      part_of_[i] = before = part;
    }
    return pieces > num_parts_;
  }
  int32_t FindPart(const SharedBlocks::Prefix& prefix) {
    const int32_t part = seen_[prefix.last].part;
    return part < num_parts_ && parts_[part].block == prefix.last ? part : AddPart(prefix);
  }
  int32_t AddPart(const SharedBlocks::Prefix& prefix);
  int32_t GroupOf(int32_t first);
  void Sort();

  // What the latest order was made of.
  uint64_t version_ = 0;
  size_t count_ = 0;
  std::vector<int32_t> slots_;

  bool moves_ = false;
  std::vector<int32_t> order_;
  std::vector<int32_t> part_of_;  // by row
  std::vector<Part> parts_;       // the first num_parts_ count, in the order of their first rows
  std::vector<int32_t> sorted_;   // of these, as they are to stand
  std::vector<int32_t> groups_;   // the block where its prefixes begin to count
  int32_t num_parts_ = 0;
  int32_t num_groups_ = 0;
  std::vector<Seen> seen_;  // by block
};

}  // namespace octavo::kv
