#include "kv/full_attention_group.h"

#include <algorithm>

namespace octavo::kv {
namespace {

// Two stages, far enough ahead to hide two misses to memory behind the compares of the blocks
// before.
constexpr int32_t kEntryDistance = 16;
constexpr int32_t kKeyDistance = 8;

}  // namespace

int32_t FullAttentionGroup::Match(const PrefixMap& map, const PrefixChain& chain,
                                  int32_t max_tokens, BlockId* hits) const {
  const int32_t limit =
      std::min<int32_t>(max_tokens / block_size_, static_cast<int32_t>(chain.hashes.size()));
  for (int32_t i = 0; i < std::min(limit, kEntryDistance); ++i) {
    map.PrefetchEntry(chain.hashes[i], group_);
  }
  for (int32_t i = 0; i < limit; ++i) {
    if (i + kEntryDistance < limit) map.PrefetchEntry(chain.hashes[i + kEntryDistance], group_);
    if (i + kKeyDistance < limit) map.PrefetchKey(chain.hashes[i + kKeyDistance], group_);
    const PrefixKey key{chain.hashes[i], i == 0 ? chain.root : chain.hashes[i - 1], group_,
                        chain.tokens.subspan(size_t(i) * block_size_, block_size_)};
    hits[i] = map.Find(key);
    if (hits[i] == kNoBlock) return i;
  }
  return limit;
}

}  // namespace octavo::kv
