// FullAttentionGroup: every token sees every earlier one, so a request keeps all of its blocks and
// a prefix matches from the left up to the first block that is missing.
#pragma once

#include <algorithm>

#include "kv/cache_group.h"

namespace octavo::kv {

class FullAttentionGroup final : public CacheGroup {
 public:
  using CacheGroup::CacheGroup;

  bool KeepsEverything() const override { return true; }
  int32_t FirstLive(int32_t) const override { return 0; }
  int32_t Peak(int32_t tokens, const Ahead&) const override { return Entries(tokens); }
  int32_t Match(const PrefixMap& map, const PrefixChain& chain, int32_t tokens, int32_t align,
                const Links&, BlockId* hits) const override {
    const int32_t limit = std::min(tokens / block_size(), Covered(chain));
    const int32_t found = MatchRun(map, chain, limit, Links(map, hits), hits) * block_size();
    return found / align * align;
  }
};

}  // namespace octavo::kv
