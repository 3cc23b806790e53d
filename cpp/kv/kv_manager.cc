#include "kv/kv_manager.h"

#include <algorithm>

#include "base/check.h"
#include "kv/full_attention_group.h"

namespace octavo::kv {
namespace {

// How many blocks ahead a hit's records are fetched.
constexpr int32_t kRecordDistance = 16;
// And what filing a block of a long prompt writes.
constexpr int32_t kPublishDistance = 6;

}  // namespace

KvManager::KvManager(const KvConfig& config, HostMemory& memory)
    : config_(config),
      pool_(config.num_blocks),
      map_(config.num_blocks, config.block_size, memory),
      events_(config.enable_events),
      lengths_(config.num_slots, 0),
      released_(config.num_slots, 0),
      published_(config.num_slots, 0) {
  groups_.push_back(std::make_unique<FullAttentionGroup>(0, config.block_size));
  row_stride_ = groups_[0]->BlocksFor(config.max_tokens_per_slot);
  table_ = HostArray<int32_t>(memory, size_t(config.num_slots) * row_stride_);
  OCTAVO_CHECK(table_.data(), "no memory for the block tables");
  views_.push_back({table_.data(), row_stride_, config.block_size});
  scratch_.resize(row_stride_);
}

KvManager::Hit KvManager::Match(const PrefixChain& chain, int32_t max_tokens) {
  Hit hit;
  if (!config_.enable_prefix_caching) return hit;
  const int32_t n = groups_[0]->Match(map_, chain, max_tokens, scratch_.data());
  hit.tokens = n * config_.block_size;
  hit.blocks = {scratch_.data(), size_t(n)};
  for (int32_t i = 0; i < n; ++i) {
    if (i + kRecordDistance < n) pool_.Prefetch(scratch_[i + kRecordDistance]);
    hit.revived += pool_.refs(scratch_[i]) == 0;
  }
  return hit;
}

int32_t KvManager::BlocksFor(int32_t tokens) const {
  int32_t total = 0;
  for (const auto& group : groups_) total += group->BlocksFor(tokens);
  return total;
}

int32_t KvManager::NeedFor(RowSlot slot, int32_t tokens) const {
  return std::max(0, BlocksFor(tokens) - length(slot));
}

bool KvManager::Admit(RowSlot slot, const Hit& hit, int32_t tokens, int32_t keep_free) {
  OCTAVO_CHECK(length(slot) == 0 && released_[Index(slot)] == 0,
               "admitting into a slot that is in use");
  const int32_t held = static_cast<int32_t>(hit.blocks.size());
  const int32_t fresh = std::max(0, BlocksFor(tokens) - held);
  if (fresh + hit.revived + keep_free > pool_.free_count()) return false;
  int32_t* entries = row(slot);
  for (int32_t i = 0; i < held; ++i) {
    pool_.Ref(hit.blocks[i]);
    pool_.SetClass(hit.blocks[i], EvictionClass::kProven);
    entries[i] = Index(hit.blocks[i]);
  }
  lengths_[Index(slot)] = published_[Index(slot)] = held;
  Append(slot, fresh);
  return true;
}

bool KvManager::Grow(RowSlot slot, int32_t tokens) {
  const int32_t need = NeedFor(slot, tokens);
  if (need == 0) return true;
  if (need > pool_.free_count()) return false;
  Append(slot, need);
  return true;
}

void KvManager::Append(RowSlot slot, int32_t count) {
  int32_t& length = lengths_[Index(slot)];
  OCTAVO_CHECK(length + count <= row_stride_, "a block table row is full");
  int32_t* entries = row(slot);
  for (int32_t i = 0; i < count; ++i) entries[length++] = Index(TakeBlock());
}

BlockId KvManager::TakeBlock() {
  const BlockId b = pool_.Next();
  if (pool_.eviction_class(b) != EvictionClass::kUnhashed) {  // the same as map_.Contains, nearer
    const PrefixKey key = map_.KeyOf(b);
    if (map_.Remove(b)) events_.Removed(b, key);
    ++evictions_;
  }
  pool_.Take();
  pool_.SetClass(b, EvictionClass::kUnhashed);
  return b;
}

void KvManager::Publish(RowSlot slot, const PrefixChain& chain, int32_t tokens) {
  if (!config_.enable_prefix_caching) return;
  const int32_t bs = config_.block_size;
  int32_t& done = published_[Index(slot)];
  const int32_t limit = std::min(tokens / bs, static_cast<int32_t>(chain.hashes.size()));
  for (; done < limit; ++done) {
    if (const int32_t ahead = done + kPublishDistance; ahead < limit) {
      const BlockId soon{row(slot)[ahead]};
      map_.PrefetchInsert(soon, chain.hashes[ahead], 0);
      pool_.Prefetch(soon);
    }
    const BlockId b{row(slot)[done]};
    const PrefixKey key{chain.hashes[done], done == 0 ? chain.root : chain.hashes[done - 1], 0,
                        chain.tokens.subspan(size_t(done) * bs, bs)};
    const auto result = map_.Insert(b, key);
    // The blocks after this one hash as if they followed the other content: filed, they would
    // answer a request that has the other prefix.
    if (result == PrefixMap::InsertResult::kCollision) break;
    pool_.SetClass(b, EvictionClass::kProbationary);
    if (publish_log_) publish_log_->push_back(b);
    if (result == PrefixMap::InsertResult::kFirst) events_.Stored(b, key);
  }
}

void KvManager::PrefetchRow(RowSlot slot) const { __builtin_prefetch(row(slot) + published(slot)); }

void KvManager::PrefetchPublish(RowSlot slot, const PrefixChain& chain) const {
  const size_t next = published(slot);
  if (next >= chain.hashes.size()) return;
  const BlockId b{row(slot)[next]};
  map_.PrefetchInsert(b, chain.hashes[next], 0);
  pool_.Prefetch(b);
}

void KvManager::Unpublish(RowSlot slot, int32_t first) {
  int32_t& done = published_[Index(slot)];
  for (; done > first; --done) Forget(BlockId{row(slot)[done - 1]});
}

void KvManager::Forget(BlockId b) {
  if (!map_.Contains(b)) return;
  const PrefixKey key = map_.KeyOf(b);
  if (map_.Remove(b)) events_.Removed(b, key);
  pool_.SetClass(b, EvictionClass::kUnhashed);
}

int32_t KvManager::ExclusiveBlocks(RowSlot slot) const {
  int32_t count = 0;
  for (int32_t b : blocks(slot)) count += pool_.refs(BlockId{b}) == 1;
  return count;
}

void KvManager::Release(RowSlot slot) {
  pool_.UnrefReversed(blocks(slot));
  released_[Index(slot)] = std::max(released_[Index(slot)], length(slot));
  lengths_[Index(slot)] = published_[Index(slot)] = 0;
}

void KvManager::ClearRow(RowSlot slot) {
  OCTAVO_CHECK(length(slot) == 0, "clearing a row that holds blocks");
  std::fill_n(row(slot), released_[Index(slot)], Index(kNullBlock));
  released_[Index(slot)] = 0;
}

bool KvManager::Reset() {
  if (pool_.free_count() != pool_.num_blocks() - 1) return false;
  for (int32_t b = 1; b < pool_.num_blocks(); ++b) {
    if (!map_.Contains(BlockId{b})) continue;
    map_.Remove(BlockId{b});
    pool_.SetClass(BlockId{b}, EvictionClass::kUnhashed);
  }
  events_.Cleared();
  return true;
}

void KvManager::CheckInvariants() const {
  std::vector<int32_t> refs(pool_.num_blocks(), 0);
  refs[Index(kNullBlock)] = 1;
  for (size_t s = 0; s < lengths_.size(); ++s) {
    const int32_t* entries = row(RowSlot{static_cast<int32_t>(s)});
    for (int64_t i = 0; i < row_stride_; ++i) {
      if (i < lengths_[s]) {
        OCTAVO_CHECK(entries[i] != Index(kNullBlock), "a row names the null block");
        ++refs[entries[i]];
      } else if (i >= released_[s]) {
        OCTAVO_CHECK(entries[i] == Index(kNullBlock), "an entry past the row's length is set");
      }
    }
  }
  int32_t filed = 0;
  int32_t used = 0;
  for (int32_t b = 0; b < pool_.num_blocks(); ++b) {
    OCTAVO_CHECK(pool_.refs(BlockId{b}) == refs[b], "references differ from the tables");
    const bool hashed = map_.Contains(BlockId{b});
    OCTAVO_CHECK(hashed == (pool_.eviction_class(BlockId{b}) != EvictionClass::kUnhashed),
                 "eviction class and prefix map disagree");
    if (hashed) {
      OCTAVO_CHECK(map_.Find(map_.KeyOf(BlockId{b})) != kNoBlock, "a filed block is not found");
    }
    filed += hashed;
    used += b > 0 && refs[b] > 0;
  }
  OCTAVO_CHECK(filed == map_.size(), "the map counts other blocks than it holds");
  OCTAVO_CHECK(used + pool_.free_count() == pool_.num_blocks() - 1, "blocks leaked");
  for (int c = 0; c < kEvictionClasses; ++c) {
    const auto list = pool_.FreeList(static_cast<EvictionClass>(c));
    OCTAVO_CHECK(int32_t(list.size()) == pool_.free_count(static_cast<EvictionClass>(c)),
                 "a free list and its count disagree");
    for (BlockId b : list) {
      OCTAVO_CHECK(pool_.refs(b) == 0, "a used block is on a free list");
      OCTAVO_CHECK(int(pool_.eviction_class(b)) == c, "a block is on another class's list");
    }
  }
}

}  // namespace octavo::kv
