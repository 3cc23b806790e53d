#include "kv/cache_group.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kv/cross_group.h"
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

namespace {

// The hash of an item's `index`-th block. The root is secret and uniform already: it only has to
// move, and differently for every index.
Hash128 CrossHash(const Hash128& root, int32_t index) {
  const uint64_t step = static_cast<uint64_t>(index) + 1;
  return {root.lo + step * 0x9E3779B97F4A7C15ull, root.hi ^ step * 0xD6E8FEB86659FD93ull};
}

}  // namespace

CrossKey::CrossKey(const CrossItem& item, const Hash128& root, const CacheGroup& group,
                   int32_t index) {
  static_assert(sizeof(item.hash) == 4 * sizeof(int32_t));
  std::memcpy(words_, &item.hash, sizeof(item.hash));
  words_[4] = item.embeddings;
  words_[5] = index;
  key_ = {CrossHash(root, index),
          index == 0 ? root : CrossHash(root, index - 1),
          group.index(),
          words_,
          index * group.block_size(),
          kUnlinked};
}

int64_t ParentsFor(std::span<const GroupSpec> groups, int32_t block_size, int32_t tokens,
                   const Ahead& ahead) {
  GroupSpec full;
  full.block_size = block_size;
  if (groups.empty()) groups = {&full, 1};
  int64_t parents = 0;
  for (const GroupSpec& spec : groups) {
    const CrossItem longest{{}, spec.encoder_len};
    const auto group = MakeGroup(spec, 0, spec.block_size);
    const int32_t peak = group->Peak(tokens, ahead) + group->CrossEntries(&longest);
    parents += (peak + spec.split - 1) / spec.split;
  }
  return parents;
}

std::unique_ptr<CacheGroup> MakeGroup(const GroupSpec& spec, int index, int32_t unit) {
  switch (spec.kind) {
    case GroupKind::kFull:
    case GroupKind::kLatent:
      return std::make_unique<FullAttentionGroup>(index, spec.block_size, unit);
    case GroupKind::kSlidingWindow:
    case GroupKind::kChunkedLocal:
      return std::make_unique<WindowGroup>(spec, index, unit);
    case GroupKind::kState:
      return std::make_unique<StateGroup>(index, spec.block_size, unit);
    case GroupKind::kCross:
      return std::make_unique<CrossGroup>(spec, index);
  }
  OCTAVO_CHECK(false, "a group kind without a class");
}

}  // namespace octavo::kv
