// What enters the prefix map, and what is taken out of it again.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "kv/kv_manager.h"

namespace octavo::kv {
namespace {

// How many blocks ahead is fetched what filing a block of a long prompt writes.
constexpr int32_t kPublishDistance = 6;

}  // namespace

std::optional<int64_t> KvManager::SerialBefore(RowSlot slot, int group, int32_t index) const {
  const int anchor = anchors_[group];
  if (anchor < 0) return kUnlinked;
  if (index == 0) return kRootSerial;
  const BlockId before = pool_.FromTable(row(anchor, slot)[index - 1], anchor);
  if (!map_.Contains(before) || !map_.Whole(before)) return std::nullopt;
  return map_.SerialOf(before);
}

// The same of a chain that nobody holds: what the map has under the hash before.
std::optional<int64_t> KvManager::SerialBefore(const PrefixChain& chain, int group,
                                               int32_t index) const {
  const int anchor = anchors_[group];
  if (anchor < 0) return kUnlinked;
  if (index == 0) return kRootSerial;
  const BlockId before = map_.FindUnlinked(groups_[anchor]->KeyOf(chain, index - 1));
  if (before == kNoBlock) return std::nullopt;
  return map_.SerialOf(before);
}

BlockId KvManager::Find(const PrefixChain& chain, int group, int32_t index) const {
  const std::optional<int64_t> before = SerialBefore(chain, group, index);
  return before ? map_.Find(groups_[group]->KeyOf(chain, index, *before)) : kNoBlock;
}

// False: the block stays out, because it would answer a request with another prefix: its hash is
// also the hash of something else.
bool KvManager::PublishBlock(BlockId b, int group, const PrefixChain& chain, int32_t index,
                             int64_t before) {
  return PublishBlock(b, groups_[group]->KeyOf(chain, index, before), chain, index);
}

bool KvManager::PublishBlock(BlockId b, const PrefixKey& key, const PrefixChain& chain,
                             int32_t index) {
  auto result = map_.Insert(b, key);
  while (result == PrefixMap::InsertResult::kOrphan) {
    Forget(map_.Place(key));
    result = map_.Insert(b, key);
  }
  if (result == PrefixMap::InsertResult::kCollision) return false;
  pool_.SetClass(b, EvictionClass::kProbationary);
  RetainBlock(b, chain.retention, key.group, index);
  events_.Filed(b, key, chain.extra, result == PrefixMap::InsertResult::kFirst);
  return true;
}

void KvManager::Publish(RowSlot slot, const PrefixChain& chain, int32_t tokens) {
  if (!config_.enable_prefix_caching) return;
  for (int g : order_) {
    const CacheGroup& group = *groups_[g];
    if (group.WritesOnlyLast()) continue;
    int32_t& done = at(slot, g).published;
    const int32_t limit = std::min(tokens / group.block_size(), group.Covered(chain));
    for (; done < limit; ++done) {
      if (const int32_t ahead = done + kPublishDistance; ahead < limit) {
        PrefetchPublish(g, row(g, slot)[ahead], chain, ahead);
      }
      const int32_t entry = row(g, slot)[done];
      if (entry == Index(kNullBlock)) continue;
      const BlockId b = pool_.FromTable(entry, g);
      // Nothing follows a block that stays out: it would hash as if it followed other content.
      const std::optional<int64_t> before = SerialBefore(slot, g, done);
      if (!before || !PublishBlock(b, g, chain, done, *before)) break;
      if (publish_log_) publish_log_->push_back(b);
    }
  }
}

// Whether an open step has yet to fill the block from another.
bool KvManager::IsCopied(BlockId b) const {
  return std::any_of(open_copies_.begin(), open_copies_.end(),
                     [b](const BlockCopy& copy) { return copy.target == b; });
}

void KvManager::PublishTail(RowSlot slot, const PrefixChain& chain, int32_t processed) {
  if (!sub_block_hits_) return;
  // It has run, so no step takes it back.
  std::vector<BlockId>* const log = std::exchange(publish_log_, nullptr);
  Publish(slot, chain, processed);
  publish_log_ = log;
  const int32_t index = processed / groups_[0]->block_size();
  const int32_t start = index * groups_[0]->block_size();
  if (processed == start || at(slot, 0).published != index) return;
  for (int g = 0; g < num_groups(); ++g) {
    const std::optional<int64_t> before = SerialBefore(slot, g, index);
    if (!before) continue;
    const BlockId b = pool_.FromTable(row(g, slot)[index], g);
    if (IsCopied(b)) continue;
    const auto tokens = chain.tokens.subspan(static_cast<size_t>(start), processed - start);
    if (!map_.InsertStart(b, {{}, groups_[g]->ParentOf(chain, index), g, tokens, start, *before})) {
      continue;
    }
    pool_.SetClass(b, EvictionClass::kProbationary);
    RetainBlock(b, chain.retention, g, index);
  }
}

void KvManager::PrefetchCounts(RowSlot slot) const {
  for (int g = 0; g < num_groups(); g += 2) __builtin_prefetch(&at(slot, g), 1);
}

void KvManager::PrefetchRow(RowSlot slot) const {
  for (int g = 0; g < num_groups(); ++g) {
    __builtin_prefetch(row(g, slot) + at(slot, g).published, 1);
  }
  for (int g : passing_) __builtin_prefetch(row(g, slot) + at(slot, g).dead, 1);
}

// The block that the slot gives back next; the null block when it has none.
BlockId KvManager::NextDead(RowSlot slot, int group) const {
  const Row& r = at(slot, group);
  return r.dead < r.length ? pool_.FromTable(row(group, slot)[r.dead], group) : kNullBlock;
}

void KvManager::PrefetchDead(RowSlot slot) const {
  for (int g : passing_) {
    const BlockId b = NextDead(slot, g);
    pool_.Prefetch(b);
    map_.PrefetchSerial(b);
  }
}

void KvManager::PrefetchForget(RowSlot slot) const {
  for (int g : passing_) map_.PrefetchRemove(NextDead(slot, g));
}

void KvManager::PrefetchPublish(RowSlot slot, const PrefixChain& chain) const {
  for (int g = 0; g < num_groups(); ++g) {
    const int32_t next = at(slot, g).published;
    if (next >= std::min(length(slot, g), groups_[g]->Covered(chain))) continue;
    PrefetchPublish(g, row(g, slot)[next], chain, next);
    if (next > 0) map_.PrefetchSerial(pool_.FromTable(row(g, slot)[next - 1], g));
  }
}

void KvManager::PrefetchPublish(int group, int32_t entry, const PrefixChain& chain,
                                int32_t index) const {
  const BlockId b = pool_.FromTable(entry, group);
  map_.PrefetchInsert(b, groups_[group]->KeyOf(chain, index).hash, group);
  pool_.Prefetch(b);
}

void KvManager::PublishStates(RowSlot slot, const PrefixChain& chain, int32_t processed) {
  if (!config_.enable_prefix_caching || !has_states_) return;
  for (int g = 0; g < num_groups(); ++g) {
    const CacheGroup& group = *groups_[g];
    const int32_t index = processed / group.block_size() - 1;
    if (!group.WritesOnlyLast() || processed % group.block_size() != 0 || index < 0) continue;
    const int32_t entry = index < length(slot, g) ? row(g, slot)[index] : Index(kNullBlock);
    if (entry == Index(kNullBlock) || index >= group.Covered(chain)) continue;
    const BlockId b = pool_.FromTable(entry, g);
    const std::optional<int64_t> before = SerialBefore(slot, g, index);
    if (before && !map_.Contains(b)) PublishBlock(b, g, chain, index, *before);
    at(slot, g).published = index + 1;
  }
}

void KvManager::ForgetPast(const PrefixChain& chain, int32_t tokens) {
  if (!config_.enable_prefix_caching) return;
  for (int g = 0; g < num_groups(); ++g) {
    const int32_t kept = tokens / groups_[g]->block_size();
    for (int32_t i = groups_[g]->Covered(chain) - 1; i >= kept; --i) {
      const PrefixKey key = groups_[g]->KeyOf(chain, i);
      BlockId b = map_.FindUnlinked(key);
      for (; b != kNoBlock; b = map_.FindUnlinked(key)) Forget(b);
    }
    if (tokens > 0 || !sub_block_hits_) continue;
    // What would be copied for the first block may be what it was copied from. What followed the
    // others is found no more.
    const auto first = static_cast<size_t>(groups_[g]->block_size());
    const auto start = chain.tokens.first(std::min(first, chain.tokens.size()));
    const PrefixMap::Start found =
        map_.FindStart({{}, chain.root, g, start, 0, kRootSerial}, map_.next_serial());
    if (found.tokens > 0) Forget(found.block);
  }
}

void KvManager::Forget(BlockId b) {
  if (!map_.Contains(b)) return;
  const PrefixKey key = map_.KeyOf(b);
  const bool whole = map_.Whole(b);
  const bool last = map_.Remove(b);
  if (whole) events_.Left(b, key, last);
  pool_.SetClass(b, EvictionClass::kUnhashed);
  expiry_.Cancel(b);
}

}  // namespace octavo::kv
