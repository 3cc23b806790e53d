// The blocks of encoder items: found, taken, filed and forgotten all together.
#include "base/check.h"
#include "kv/kv_manager.h"

namespace octavo::kv {

// Writes the item's blocks to the scratch lines of the cross groups. False: one is not cached.
bool KvManager::MatchCross(const PrefixChain& chain) {
  for (int g = 0; g < num_groups(); ++g) {
    const int32_t entries = groups_[g]->CrossEntries(chain.cross);
    for (int32_t i = 0; i < entries; ++i) {
      const BlockId b = map_.Find(CrossKey(*chain.cross, chain.root, *groups_[g], i).key());
      if (b == kNoBlock) return false;
      scratch_[g][i] = b;
    }
  }
  return chain.cross != nullptr;
}

// What admitting takes for the item: all of its blocks, once.
BlockNeed KvManager::CrossNeed(const Hit& hit) const {
  BlockNeed need;
  for (int g = 0; g < num_groups() && !hit.cross_cached; ++g) {
    need.of[g] = groups_[g]->CrossEntries(hit.cross);
  }
  return need;
}

// The same of a request that is not admitted yet: those of its blocks that nobody uses now.
BlockNeed KvManager::CrossNeedBeside(const PrefixChain& chain) const {
  BlockNeed need;
  for (int g = 0; g < num_groups(); ++g) {
    const int32_t entries = groups_[g]->CrossEntries(chain.cross);
    for (int32_t i = 0; i < entries; ++i) {
      const BlockId b = map_.Find(CrossKey(*chain.cross, chain.root, *groups_[g], i).key());
      need.of[g] += b == kNoBlock || pool_.refs(b) == 0;
    }
  }
  return need;
}

void KvManager::PublishCross(RowSlot slot, const PrefixChain& chain) {
  if (!config_.enable_prefix_caching) return;
  for (int g = 0; g < num_groups(); ++g) {
    if (!groups_[g]->cross()) continue;
    int32_t& done = at(slot, g).published;
    for (; done < length(slot, g); ++done) {
      const BlockId b = pool_.FromTable(row(g, slot)[done], g);
      const CrossKey content(*chain.cross, chain.root, *groups_[g], done);
      // A hash that is also that of something else: the item will not be hit, for it is not whole.
      if (!PublishBlock(b, content.key(), chain, done)) continue;
      if (publish_log_) publish_log_->push_back(b);
    }
  }
}

void KvManager::ForgetCross(const PrefixChain& chain) {
  for (int g = 0; g < num_groups(); ++g) {
    const int32_t entries = groups_[g]->CrossEntries(chain.cross);
    for (int32_t i = 0; i < entries; ++i) {
      const CrossKey content(*chain.cross, chain.root, *groups_[g], i);
      for (BlockId b; (b = map_.Find(content.key())) != kNoBlock;) Forget(b);
    }
  }
}

}  // namespace octavo::kv
