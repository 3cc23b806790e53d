// SiblingIndex: filed blocks by what stands before them and their first token, so that a block that
// only starts like the wanted one is found.
//
// Chains of blocks in a table of heads, the latest first. It only links; what a block holds is its
// caller's. Sized once, no call allocates. One thread.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "base/out_of_memory.h"
#include "octavo/ids.h"

namespace octavo::kv {

class SiblingIndex {
 public:
  // 0 blocks: an index that is not used.
  explicit SiblingIndex(int32_t num_blocks)
      : heads_(TakeVector<int32_t>(
            num_blocks > 0 ? std::bit_ceil(static_cast<uint32_t>(num_blocks)) : 0, kWanted, kRemedy,
            -1)),
        links_(TakeVector<Links>(num_blocks, kWanted, kRemedy)) {}

  bool enabled() const { return !heads_.empty(); }
  bool Contains(BlockId b) const { return enabled() && links_[Index(b)].chain >= 0; }

  void Add(BlockId b, uint64_t key) {
    const int32_t chain = static_cast<int32_t>(key & (heads_.size() - 1));
    Links& l = links_[Index(b)];
    l = {-1, heads_[chain], chain};
    if (l.next >= 0) links_[l.next].prev = Index(b);
    heads_[chain] = Index(b);
  }
  void Remove(BlockId b) {
    Links& l = links_[Index(b)];
    (l.prev >= 0 ? links_[l.prev].next : heads_[l.chain]) = l.next;
    if (l.next >= 0) links_[l.next].prev = l.prev;
    l = {};
  }
  // Calls `visit` with the blocks of the key's chain, the latest first, until it returns false.
  template <typename Visit>
  void ForEach(uint64_t key, Visit&& visit) const {
    int32_t at = heads_[key & (heads_.size() - 1)];
    while (at >= 0 && visit(BlockId{at})) at = links_[at].next;
  }

 private:
  struct Links {
    int32_t prev = -1;
    int32_t next = -1;
    int32_t chain = -1;  // -1: not in the index
  };
  static constexpr char kWanted[] = "the index of how blocks start";
  static constexpr char kRemedy[] = "lower num_blocks, or turn sub_block_hits off";

  std::vector<int32_t> heads_;
  std::vector<Links> links_;
};

}  // namespace octavo::kv
