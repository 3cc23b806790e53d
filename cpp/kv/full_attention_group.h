// FullAttentionGroup: every token sees every earlier one, so a request keeps all of its blocks and
// a prefix matches from the left up to the first block that is missing.
#pragma once

#include "kv/cache_group.h"

namespace octavo::kv {

class FullAttentionGroup final : public CacheGroup {
 public:
  FullAttentionGroup(int32_t group, int32_t block_size) : group_(group), block_size_(block_size) {}

  int32_t block_size() const override { return block_size_; }
  int32_t BlocksFor(int32_t tokens) const override {
    return (tokens + block_size_ - 1) / block_size_;
  }
  int32_t Match(const PrefixMap& map, const PrefixChain& chain, int32_t max_tokens,
                BlockId* hits) const override;

 private:
  int32_t group_;
  int32_t block_size_;
};

}  // namespace octavo::kv
