// StateGroup: a recurrent layer keeps one state, not a key for each token.
//
// Entry i of the table is the state after block i's last computed token. A step reads the state
// before its first token and writes only the block of its last one, so entries that a chunk passes
// over stay null, and a state is a snapshot that others may resume from exactly when the chunk
// ended on a block boundary (the scheduler cuts chunks accordingly). Writing goes on in the next
// block: a snapshot is never written again.
#pragma once

#include <algorithm>

#include "kv/cache_group.h"

namespace octavo::kv {

class StateGroup final : public CacheGroup {
 public:
  using CacheGroup::CacheGroup;

  // The state before the next token is the one of the last token processed.
  int32_t FirstLive(int32_t processed) const override {
    return std::max(0, Entries(processed) - 1);
  }
  bool WritesOnlyLast() const override { return true; }
  // The state that the first open step reads, and those that all of them write.
  int32_t Peak(int32_t tokens, const Ahead& ahead) const override {
    return std::min(1 + ahead.steps, Entries(tokens));
  }
  int32_t Match(const PrefixMap& map, const PrefixChain& chain, int32_t tokens, int32_t align,
                const Links& links, BlockId* hits) const override {
    const int32_t limit = std::min(tokens / block_size(), Covered(chain));
    for (int32_t end = limit * block_size() / align * align; end > 0; end -= align) {
      const int32_t last = end / block_size() - 1;
      hits[last] = map.Find(KeyOf(chain, last, links.Before(last)));
      if (hits[last] == kNoBlock) continue;
      std::fill(hits, hits + last, kNoBlock);
      return end;
    }
    return 0;
  }
};

}  // namespace octavo::kv
