#include "kv/cache_group.h"

#include <algorithm>

#include "base/check.h"
#include "kv/full_attention_group.h"
#include "kv/state_group.h"
#include "kv/window_group.h"

namespace octavo::kv {
namespace {

// Two stages, far enough ahead to hide two misses to memory behind the compares of the blocks
// before.
constexpr int32_t kEntryDistance = 16;
constexpr int32_t kKeyDistance = 8;

}  // namespace

PrefixKey CacheGroup::KeyOf(const PrefixChain& chain, int32_t block, int64_t before) const {
  const int32_t start = block * block_size_;
  return {chain.hashes[LastUnit(block)],
          ParentOf(chain, block),
          index_,
          chain.tokens.subspan(static_cast<size_t>(start), block_size_),
          start,
          before};
}

int32_t CacheGroup::MatchRun(const PrefixMap& map, const PrefixChain& chain, int32_t limit,
                             const Links& links, BlockId* hits) const {
  for (int32_t i = 0; i < std::min(limit, kEntryDistance); ++i) {
    map.PrefetchEntry(chain.hashes[LastUnit(i)], index_);
  }
  for (int32_t i = 0; i < limit; ++i) {
    if (i + kEntryDistance < limit) {
      map.PrefetchEntry(chain.hashes[LastUnit(i + kEntryDistance)], index_);
    }
    if (i + kKeyDistance < limit) {
      map.PrefetchKey(chain.hashes[LastUnit(i + kKeyDistance)], index_);
    }
    hits[i] = map.Find(KeyOf(chain, i, links.Before(i)));
    if (hits[i] == kNoBlock) return i;
  }
  return limit;
}

int64_t ParentsFor(std::span<const GroupSpec> groups, int32_t block_size, int32_t tokens,
                   const Ahead& ahead) {
  GroupSpec full;
  full.block_size = block_size;
  if (groups.empty()) groups = {&full, 1};
  int64_t parents = 0;
  for (const GroupSpec& spec : groups) {
    const int32_t peak = MakeGroup(spec, 0, spec.block_size)->Peak(tokens, ahead);
    parents += (peak + spec.split - 1) / spec.split;
  }
  return parents;
}

std::unique_ptr<CacheGroup> MakeGroup(const GroupSpec& spec, int index, int32_t unit) {
  switch (spec.kind) {
    case GroupKind::kFull:
      return std::make_unique<FullAttentionGroup>(index, spec.block_size, unit);
    case GroupKind::kSlidingWindow:
    case GroupKind::kChunkedLocal:
      return std::make_unique<WindowGroup>(spec, index, unit);
    case GroupKind::kState:
      return std::make_unique<StateGroup>(index, spec.block_size, unit);
  }
  OCTAVO_CHECK(false, "a group kind without a class");
}

}  // namespace octavo::kv
