// Holds: blocks that belong to a transfer and to no table. A prefix that is being loaded becomes an
// ordinary cached prefix, which requests find by its content; so a load needs no row, and what was
// loaded can be given up again without anybody noticing but for the work.
#include <algorithm>

#include "base/check.h"
#include "base/out_of_memory.h"
#include "kv/kv_manager.h"

namespace octavo::kv {

int32_t KvManager::NewHold(size_t blocks, std::vector<KvBlock>* listed) {
  if (!TryReserve(*listed, listed->size() + blocks)) return -1;
  if (free_holds_.empty()) {
    const size_t more = std::max<size_t>(8, 2 * holds_.size());
    if (holds_.size() == holds_.capacity() && !TryReserve(holds_, more)) return -1;
    // A hold that is dropped finds a place here.
    if (!TryReserve(free_holds_, holds_.capacity())) return -1;
    free_holds_.push_back(static_cast<int32_t>(holds_.size()));
    holds_.emplace_back();
  }
  const int32_t hold = free_holds_.back();
  if (!TryReserve(holds_[hold], blocks)) return -1;
  free_holds_.pop_back();
  return hold;
}

bool KvManager::Cached(const PrefixChain& chain, int group, int32_t index) const {
  return !groups_[group]->cross() && Find(chain, group, index) != kNoBlock;
}

int32_t KvManager::HoldPrefix(const PrefixChain& chain, int32_t tokens, int32_t gate,
                              const BlockNeed& keep, int32_t keep_parents,
                              std::vector<KvBlock>* missing) {
  size_t entries_of_all = 0;
  for (const auto& group : groups_) entries_of_all += size_t(group->Entries(tokens));
  const int32_t hold = NewHold(entries_of_all, missing);
  if (hold < 0) return kNoMemory;
  std::vector<BlockId>& held = holds_[hold];
  const size_t first = missing->size();
  BlockNeed need;
  BlockNeed all = keep;
  // What is cached is taken first: only then is it known what reviving it leaves.
  for (int g = 0; g < num_groups(); ++g) {
    const CacheGroup& group = *groups_[g];
    if (group.cross()) continue;
    OCTAVO_CHECK(tokens % group.block_size() == 0, "a load ends inside a block");
    const int32_t entries = std::min(group.Entries(tokens), group.Covered(chain));
    OCTAVO_CHECK(entries == group.Entries(tokens), "a load reaches past the known tokens");
    int32_t live = 0;
    for (int32_t i = 0; i < entries; ++i) {
      if (i >= group.Head() && i < group.FirstLive(tokens)) continue;
      ++live;
      const BlockId b = Find(chain, g, i);
      if (b == kNoBlock) {
        ++need.of[g];
        missing->push_back({g, i, Index(kNoBlock)});
        continue;
      }
      pool_.Ref(b);
      pool_.Prove(b);
      held.push_back(b);
    }
    all.of[g] += need.of[g] + std::max(0, group.Peak(gate, config_.ahead) - live);
  }
  if (has_cross_) all += CrossNeedBeside(chain);
  if (!pool_.Fits(all, keep_parents)) {
    DropHold(hold);
    missing->resize(first);
    return kDoesNotFit;
  }
  for (size_t i = first; i < missing->size(); ++i) {
    KvBlock& m = (*missing)[i];
    --need.of[m.group];
    const BlockId b = pool_.Take(m.group, need, *this);
    m.block = pool_.TableId(b, m.group);
    held.push_back(b);
  }
  return hold;
}

int32_t KvManager::HoldFiled(RowSlot slot, int32_t tokens, std::vector<KvBlock>* blocks) {
  size_t most = 0;
  for (int g = 0; g < num_groups(); ++g) most += size_t(length(slot, g));
  const int32_t hold = NewHold(most, blocks);
  if (hold < 0) return kNoMemory;
  for (int g = 0; g < num_groups(); ++g) {
    if (groups_[g]->cross()) continue;
    const int32_t whole = std::min(length(slot, g), tokens / groups_[g]->block_size());
    for (int32_t i = 0; i < whole; ++i) {
      const int32_t entry = row(g, slot)[i];
      if (entry == Index(kNullBlock)) continue;
      const BlockId b = pool_.FromTable(entry, g);
      if (!map_.Contains(b)) continue;
      pool_.Ref(b);
      holds_[hold].push_back(b);
      blocks->push_back({g, i, entry});
    }
  }
  return hold;
}

void KvManager::FileLoaded(const PrefixChain& chain, std::span<const KvBlock> blocks,
                           int32_t valid) {
  // Those first that the others are linked through.
  for (int g : order_) {
    for (const KvBlock& loaded : blocks) {
      if (loaded.group != g || (loaded.index + 1) * groups_[g]->block_size() > valid) continue;
      const BlockId b = pool_.FromTable(loaded.block, g);
      const std::optional<int64_t> before = SerialBefore(chain, g, loaded.index);
      // A collision: what follows belongs to another prefix.
      if (!before || !PublishBlock(b, g, chain, loaded.index, *before)) return;
    }
  }
}

void KvManager::DropHold(int32_t hold) {
  std::vector<BlockId>& held = holds_[hold];
  while (!held.empty()) {
    pool_.Unref(held.back());
    held.pop_back();
  }
  free_holds_.push_back(hold);
}

}  // namespace octavo::kv
