#include "kv/kv_manager.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace octavo::kv {
namespace {

// How many blocks ahead the records of a hit are fetched, and what filing a block of a long prompt
// writes.
constexpr int32_t kRecordDistance = 16;
constexpr int32_t kPublishDistance = 6;

std::vector<GroupSpec> GroupsOf(const KvConfig& config) {
  if (!config.groups.empty()) return config.groups;
  GroupSpec full;
  full.block_size = config.block_size;
  return {full};
}

int32_t UnitOf(const KvConfig& config) {
  int32_t unit = 0;
  for (const GroupSpec& spec : GroupsOf(config)) unit = std::gcd(unit, spec.block_size);
  return unit;
}

std::vector<int32_t> SplitsOf(const KvConfig& config) {
  std::vector<int32_t> splits;
  for (const GroupSpec& spec : GroupsOf(config)) splits.push_back(spec.split);
  return splits;
}

}  // namespace

KvManager::KvManager(const KvConfig& config, HostMemory& memory)
    : config_(config),
      unit_(UnitOf(config)),
      align_(1),
      pool_(config.num_blocks, SplitsOf(config)),
      map_(pool_.num_places(), unit_, memory),
      events_(config.enable_events) {
  for (const GroupSpec& spec : GroupsOf(config)) {
    groups_.push_back(MakeGroup(spec, static_cast<int>(groups_.size()), unit_));
    align_ = std::lcm(align_, spec.block_size);
    keeps_everything_ = keeps_everything_ && spec.kind == GroupKind::kFull;
    has_states_ = has_states_ || spec.kind == GroupKind::kState;
    const int64_t stride = groups_.back()->Entries(config.max_tokens_per_slot);
    tables_.emplace_back(memory, size_t(config.num_slots) * stride);
    OCTAVO_CHECK(tables_.back().data(), "no memory for the block tables");
    views_.push_back({tables_.back().data(), stride, spec.block_size});
    scratch_.emplace_back(stride);
  }
  rows_.resize(size_t(config.num_slots) * groups_.size());
  clips_ = has_states_ && config.enable_prefix_caching && config.clip_chunks;
  if (has_states_) junctions_.resize(config.num_slots);
}

KvManager::Hit KvManager::Match(const PrefixChain& chain, int32_t max_tokens) {
  if (!config_.enable_prefix_caching) return {};
  Hit hit;
  hit.retention = chain.retention;
  if (has_states_) hit.junction = MatchGroups(chain, max_tokens, /*states=*/false);
  hit.tokens = MatchGroups(chain, max_tokens, /*states=*/true);
  return hit;
}

int32_t KvManager::MatchGroups(const PrefixChain& chain, int32_t max_tokens, bool states) {
  // Every group shortens the candidate until none does. Full groups have found their longest run
  // at once; a shorter candidate only trims it.
  int32_t tokens = max_tokens / align_ * align_;
  bool found_any = false;
  for (bool shortened = true; shortened && tokens > 0;) {
    shortened = false;
    for (int g = 0; g < num_groups(); ++g) {
      if (!states && groups_[g]->WritesOnlyLast()) continue;
      const int32_t found = groups_[g]->Match(map_, chain, tokens, align_, scratch_[g].data());
      shortened = shortened || (found < tokens && num_groups() > 1);
      tokens = found;
      found_any = true;
    }
  }
  return found_any ? tokens : 0;
}

BlockNeed KvManager::GrowthNeed(const BlockNeed& lengths, int32_t tokens) const {
  BlockNeed need;
  for (int g = 0; g < num_groups(); ++g) {
    const int32_t fresh = std::max(0, groups_[g]->Entries(tokens) - lengths.of[g]);
    need.of[g] = groups_[g]->WritesOnlyLast() ? std::min(1, fresh) : fresh;
  }
  return need;
}

BlockNeed KvManager::LengthsOf(RowSlot slot) const {
  BlockNeed lengths;
  for (int g = 0; g < num_groups(); ++g) lengths.of[g] = length(slot, g);
  return lengths;
}

BlockNeed KvManager::AdmissionNeed(const Hit& hit, int32_t tokens) const {
  BlockNeed lengths;
  for (int g = 0; g < num_groups(); ++g) lengths.of[g] = groups_[g]->Entries(hit.tokens);
  return GrowthNeed(lengths, tokens);
}

BlockNeed KvManager::PeakNeed(const Hit& hit, int32_t tokens) const {
  BlockNeed need;
  for (int g = 0; g < num_groups(); ++g) {
    const CacheGroup& group = *groups_[g];
    const int32_t entries = group.Entries(hit.tokens);
    const int32_t dead = std::max(0, group.FirstLive(hit.tokens) - group.Head());
    need.of[g] = std::max(0, group.Peak(tokens, config_.max_chunk) - (entries - dead));
  }
  return need;
}

BlockNeed KvManager::RemainingNeed(RowSlot slot, int32_t tokens) const {
  BlockNeed need;
  for (int g = 0; g < num_groups(); ++g) {
    need.of[g] = std::max(0, groups_[g]->Peak(tokens, config_.max_chunk) - at(slot, g).held);
  }
  return need;
}

bool KvManager::Admit(RowSlot slot, const Hit& hit, int32_t tokens, const BlockNeed& keep,
                      int32_t keep_parents) {
  for (int g = 0; g < num_groups(); ++g) {
    OCTAVO_CHECK(length(slot, g) == 0 && at(slot, g).released == 0,
                 "admitting into a slot that is in use");
  }
  // The hit's blocks are taken first: only then is it known what reviving them leaves.
  AttachHit(slot, hit);
  const BlockNeed need = GrowthNeed(LengthsOf(slot), tokens);
  BlockNeed all = need;
  all += keep;
  if (!pool_.Fits(all, keep_parents)) {
    Release(slot);
    ClearRow(slot);
    return false;
  }
  ProveHit(slot, hit);
  Append(slot, tokens, need);
  return true;
}

void KvManager::ProveHit(RowSlot slot, const Hit& hit) {
  for (int g = 0; g < num_groups(); ++g) {
    at(slot, g).timed = hit.retention && hit.retention->timed();
    for (int32_t i = 0; i < length(slot, g); ++i) {
      const int32_t entry = row(g, slot)[i];
      if (entry == Index(kNullBlock)) continue;
      const BlockId b = pool_.FromTable(entry, g);
      pool_.Prove(b);
      if (!hit.retention) continue;
      const auto* wish = hit.retention->Of(i * groups_[g]->block_size());
      if (wish) Retain(b, *wish);
    }
  }
}

void KvManager::Retain(BlockId b, const RetentionPlan::Wish& wish) {
  expiry_.Cancel(b);
  if (wish.priority == kOrdinaryPriority) {
    pool_.SetClass(b, pool_.OrdinaryClass(b));
    return;
  }
  pool_.SetClass(b, ClassOf(wish.priority));
  if (wish.duration_us > 0) expiry_.Set(b, wish.duration_us);
}

void KvManager::Expire(int64_t now_us) {
  expiry_.Advance(now_us, [this](BlockId b) {
    if (pool_.refs(b) > 0) return false;
    pool_.SetClass(b, pool_.OrdinaryClass(b));
    return true;
  });
}

void KvManager::AttachHit(RowSlot slot, const Hit& hit) {
  if (has_states_) junctions_[Index(slot)] = hit.junction;
  for (int g = 0; g < num_groups(); ++g) {
    Row& r = at(slot, g);
    r.length = r.published = groups_[g]->Entries(hit.tokens);
    r.dead = std::max(0, groups_[g]->FirstLive(hit.tokens));
    for (int32_t i = 0; i < r.length; ++i) {
      if (const int32_t ahead = i + kRecordDistance; ahead < r.length) {
        pool_.Prefetch(scratch_[g][ahead] == kNoBlock ? kNullBlock : scratch_[g][ahead]);
      }
      const BlockId b = scratch_[g][i];
      row(g, slot)[i] = Index(kNullBlock);
      if (b == kNoBlock) continue;
      pool_.Ref(b);
      row(g, slot)[i] = pool_.TableId(b, g);
      ++r.held;
    }
  }
}

bool KvManager::Grow(RowSlot slot, int32_t tokens) {
  const BlockNeed need = GrowthNeed(LengthsOf(slot), tokens);
  if (!pool_.Fits(need)) return false;
  Append(slot, tokens, need);
  return true;
}

bool KvManager::GrowSparing(RowSlot slot, int32_t tokens, const BlockNeed& keep) {
  const BlockNeed need = GrowthNeed(LengthsOf(slot), tokens);
  BlockNeed all = need;
  all += keep;
  if (need.total() > 0 && !pool_.Fits(all)) return false;
  Append(slot, tokens, need);
  return true;
}

void KvManager::Append(RowSlot slot, int32_t tokens, BlockNeed need) {
  for (int g = 0; g < num_groups(); ++g) {
    Row& r = at(slot, g);
    const int32_t entries = std::max(r.length, groups_[g]->Entries(tokens));
    OCTAVO_CHECK(entries <= views_[g].row_stride, "a block table row is full");
    int32_t* const table = row(g, slot);
    // A state group skips what the chunk passes over; those entries are null already.
    r.length = entries - need.of[g];
    while (need.of[g] > 0) {
      --need.of[g];
      table[r.length++] = pool_.TableId(pool_.Take(g, need, *this), g);
      ++r.held;
    }
  }
}

void KvManager::OnEvict(BlockId block) {
  const PrefixKey key = map_.KeyOf(block);
  if (eviction_listener_) eviction_listener_->OnEvict(block, key);
  if (map_.Remove(block)) events_.Removed(block, key);
  expiry_.Cancel(block);
  ++evictions_;
}

void KvManager::FreeDead(RowSlot slot, int32_t processed, int32_t prompt_len, bool packed) {
  const int32_t junction = has_states_ ? junctions_[Index(slot)] : 0;
  for (int g = 0; g < num_groups(); ++g) {
    const CacheGroup& group = *groups_[g];
    Row& r = at(slot, g);
    const int32_t live = std::min(group.FirstLive(processed), r.length);
    for (int32_t i = std::max(r.dead, group.Head()); i < live; ++i) {
      int32_t& entry = row(g, slot)[i];
      if (entry == Index(kNullBlock)) continue;
      const BlockId b = pool_.FromTable(entry, g);
      // What it hit or others hit has proven its worth; the rest of its trail has not.
      const bool own = pool_.refs(b) == 1 && pool_.OrdinaryClass(b) != EvictionClass::kProven;
      if (packed || (own && !Retained(group, i, prompt_len, junction))) Forget(b);
      pool_.Unref(b);
      entry = Index(kNullBlock);
      --r.held;
    }
    r.dead = std::max(r.dead, live);
  }
}

bool KvManager::Retained(const CacheGroup& group, int32_t index, int32_t prompt_len,
                         int32_t junction) const {
  if (config_.snapshot_interval < 0) return true;
  const int32_t end = (index + 1) * group.block_size();
  const int32_t at_prompt = (prompt_len - 1) / align_ * align_;
  if (end <= at_prompt && group.FirstLive(at_prompt) <= index) return true;
  if (end <= junction && group.FirstLive(junction) <= index) return true;
  if (config_.snapshot_interval == 0) return false;
  const int32_t step = SnapshotStep();
  const int32_t next = (end + step - 1) / step * step;
  return group.FirstLive(next) <= index;
}

int32_t KvManager::Clip(int32_t junction, int32_t start, int32_t count, int32_t num_tokens) const {
  const int32_t last = (num_tokens - 1) / align_ * align_;  // the last boundary one can resume at
  if (start >= last) return count;
  int32_t end = std::min(start + count, last);
  if (start < junction) end = std::min(end, junction);
  if (config_.snapshot_interval > 0) {
    end = std::min(end, (start / SnapshotStep() + 1) * SnapshotStep());
  }
  end = end / align_ * align_;
  return end > start ? end - start : count;
}

void KvManager::PublishBlock(BlockId b, int group, const PrefixChain& chain, int32_t index) {
  const PrefixKey key = groups_[group]->KeyOf(chain, index);
  const auto result = map_.Insert(b, key);
  if (result == PrefixMap::InsertResult::kCollision) return;
  pool_.SetClass(b, EvictionClass::kProbationary);
  if (chain.retention) {
    const auto* wish = chain.retention->Of(index * groups_[group]->block_size());
    if (wish) Retain(b, *wish);
  }
  if (result == PrefixMap::InsertResult::kFirst) events_.Stored(b, key);
}

void KvManager::Publish(RowSlot slot, const PrefixChain& chain, int32_t tokens) {
  if (!config_.enable_prefix_caching) return;
  for (int g = 0; g < num_groups(); ++g) {
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
      PublishBlock(b, g, chain, done);
      // A collision: the blocks after this one hash as if they followed the other content. Filed,
      // they would answer a request that has the other prefix.
      if (!map_.Contains(b)) break;
      if (publish_log_) publish_log_->push_back(b);
    }
  }
}

void KvManager::PrefetchRow(RowSlot slot) const {
  __builtin_prefetch(row(0, slot) + at(slot, 0).published);
}

void KvManager::PrefetchPublish(RowSlot slot, const PrefixChain& chain) const {
  const int32_t next = at(slot, 0).published;
  if (next < std::min(length(slot), groups_[0]->Covered(chain))) {
    PrefetchPublish(0, row(0, slot)[next], chain, next);
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
    if (!map_.Contains(b)) PublishBlock(b, g, chain, index);
    at(slot, g).published = index + 1;
  }
}

void KvManager::Unpublish(RowSlot slot, int32_t tokens) {
  for (int g = 0; g < num_groups(); ++g) {
    int32_t& done = at(slot, g).published;
    for (; done > tokens / groups_[g]->block_size(); --done) {
      const int32_t entry = row(g, slot)[done - 1];
      if (entry != Index(kNullBlock)) Forget(pool_.FromTable(entry, g));
    }
  }
}

void KvManager::Forget(BlockId b) {
  if (!map_.Contains(b)) return;
  const PrefixKey key = map_.KeyOf(b);
  if (map_.Remove(b)) events_.Removed(b, key);
  pool_.SetClass(b, EvictionClass::kUnhashed);
  expiry_.Cancel(b);
}

int32_t KvManager::ExclusiveBlocks(RowSlot slot) const {
  int32_t count = 0;
  for (int g = 0; g < num_groups(); ++g) {
    for (int32_t entry : blocks(slot, g)) {
      if (entry != Index(kNullBlock)) count += pool_.refs(pool_.FromTable(entry, g)) == 1;
    }
  }
  return count;
}

int32_t KvManager::published_tokens(RowSlot slot) const {
  int32_t tokens = config_.max_tokens_per_slot;
  for (int g = 0; g < num_groups(); ++g) {
    if (groups_[g]->WritesOnlyLast()) continue;
    tokens = std::min(tokens, at(slot, g).published * groups_[g]->block_size());
  }
  return tokens;
}

void KvManager::Release(RowSlot slot) {
  for (int g = 0; g < num_groups(); ++g) {
    pool_.UnrefReversed(blocks(slot, g), g);
    Row& r = at(slot, g);
    if (r.timed) {
      for (int32_t entry : blocks(slot, g)) expiry_.Restart(pool_.FromTable(entry, g));
    }
    r.released = std::max(r.released, r.length);
    r.length = r.published = r.dead = r.held = 0;
    r.timed = false;
  }
}

void KvManager::ClearRow(RowSlot slot) {
  for (int g = 0; g < num_groups(); ++g) {
    Row& r = at(slot, g);
    OCTAVO_CHECK(r.length == 0, "clearing a row that holds blocks");
    std::fill_n(row(g, slot), r.released, Index(kNullBlock));
    r.released = 0;
  }
}

bool KvManager::Reset() {
  if (pool_.free_parents() != pool_.num_parents() - 1) return false;
  for (int32_t b = 1; b < pool_.num_places(); ++b) {
    if (!map_.Contains(BlockId{b})) continue;
    map_.Remove(BlockId{b});
    pool_.SetClass(BlockId{b}, EvictionClass::kUnhashed);
    expiry_.Cancel(BlockId{b});
  }
  events_.Cleared();
  return true;
}

void KvManager::CachedContent(std::vector<KvEvent>* events) const {
  events->clear();
  for (int32_t b = 1; b < pool_.num_places(); ++b) {
    const BlockId block{b};
    if (!map_.IsNamed(block)) continue;
    events->push_back(MakeKvEvent(KvEventKind::kStored, block, map_.KeyOf(block)));
  }
  std::stable_sort(events->begin(), events->end(),
                   [](const KvEvent& a, const KvEvent& b) { return a.start < b.start; });
}

void KvManager::CheckTables(std::vector<int32_t>* refs) const {
  for (int32_t s = 0; s < config_.num_slots; ++s) {
    for (int g = 0; g < num_groups(); ++g) {
      const RowSlot slot{s};
      const Row& r = at(slot, g);
      int32_t held = 0;
      for (int64_t i = 0; i < views_[g].row_stride; ++i) {
        const int32_t entry = row(g, slot)[i];
        if (i >= r.length) {
          OCTAVO_CHECK(i < r.released || entry == Index(kNullBlock),
                       "an entry past the row's length is set");
          continue;
        }
        OCTAVO_CHECK(entry != Index(kNullBlock) || !keeps_everything_,
                     "a row names the null block");
        if (entry == Index(kNullBlock)) continue;
        ++held;
        ++(*refs)[Index(pool_.FromTable(entry, g))];
      }
      OCTAVO_CHECK(held == r.held, "a row holds other blocks than it counts");
    }
  }
}

void KvManager::CheckInvariants() const {
  std::vector<int32_t> refs(pool_.num_places(), 0);
  refs[Index(kNullBlock)] = 1;
  CheckTables(&refs);
  for (const auto& hold : holds_) {
    for (BlockId b : hold) ++refs[Index(b)];
  }
  int32_t filed = 0;
  for (int32_t b = 0; b < pool_.num_places(); ++b) {
    OCTAVO_CHECK(pool_.refs(BlockId{b}) == refs[b], "references differ from tables and holds");
    const bool hashed = map_.Contains(BlockId{b});
    OCTAVO_CHECK(hashed == (pool_.eviction_class(BlockId{b}) != EvictionClass::kUnhashed),
                 "eviction class and prefix map disagree");
    if (hashed) {
      OCTAVO_CHECK(map_.Find(map_.KeyOf(BlockId{b})) != kNoBlock, "a filed block is not found");
    }
    filed += hashed;
  }
  OCTAVO_CHECK(filed == map_.size(), "the map counts other blocks than it holds");
  pool_.CheckInvariants();
}

}  // namespace octavo::kv
