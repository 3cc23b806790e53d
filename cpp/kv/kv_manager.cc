#include "kv/kv_manager.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace octavo::kv {
namespace {

// A hit that ends inside a block is copied when it has at least one of so many parts of it.
constexpr int32_t kLeastShare = 4;

// How many blocks ahead the records of a hit are fetched.
constexpr int32_t kRecordDistance = 16;

std::vector<GroupSpec> GroupsOf(const KvConfig& config) {
  if (!config.groups.empty()) return config.groups;
  GroupSpec full;
  full.block_size = config.block_size;
  return {full};
}

int32_t UnitOf(const KvConfig& config) {
  int32_t unit = 0;
  for (const GroupSpec& spec : GroupsOf(config)) {
    if (spec.kind != GroupKind::kCross) unit = std::gcd(unit, spec.block_size);
  }
  return unit;
}

std::vector<int32_t> SplitsOf(const KvConfig& config) {
  std::vector<int32_t> splits;
  for (const GroupSpec& spec : GroupsOf(config)) splits.push_back(spec.split);
  return splits;
}

// Of all keys of the prefix map, in tokens.
int32_t WidestOf(const KvConfig& config) {
  int32_t widest = 1;
  for (const GroupSpec& spec : GroupsOf(config)) {
    const bool cross = spec.kind == GroupKind::kCross;
    widest = std::max(widest, cross ? CrossKey::kWords : spec.block_size);
  }
  return widest;
}

// Hits end inside a block where every group keeps every token, in blocks of one size.
bool FindsPartial(const KvConfig& config) {
  bool can = config.sub_block_hits && config.enable_prefix_caching;
  for (const GroupSpec& spec : GroupsOf(config)) {
    can = can && KeepsEveryToken(spec.kind) && spec.block_size == UnitOf(config);
  }
  return can && UnitOf(config) == WidestOf(config);
}

}  // namespace

KvManager::KvManager(const KvConfig& config, HostMemory& memory)
    : config_(config),
      unit_(UnitOf(config)),
      align_(1),
      pool_(config.num_blocks, SplitsOf(config)),
      map_(pool_.num_places(), WidestOf(config), memory, FindsPartial(config)),
      events_(config.enable_events, pool_.num_places(), static_cast<size_t>(config.max_events)),
      sub_block_hits_(FindsPartial(config)) {
  for (const GroupSpec& spec : GroupsOf(config)) {
    groups_.push_back(MakeGroup(spec, static_cast<int>(groups_.size()), unit_));
    const CacheGroup& group = *groups_.back();
    if (!group.cross()) align_ = std::lcm(align_, spec.block_size);
    keeps_everything_ = keeps_everything_ && (group.KeepsEverything() || group.cross());
    has_states_ = has_states_ || spec.kind == GroupKind::kState;
    has_cross_ = has_cross_ || group.cross();
    const CrossItem longest{{}, spec.encoder_len};
    const int64_t stride = group.Entries(config.max_tokens_per_slot) + group.CrossEntries(&longest);
    tables_.push_back(
        TakeArray<int32_t>(memory, size_t(config.num_slots) * stride, "the block tables",
                           "lower max_num_seqs or max_model_len, or free some memory"));
    views_.push_back({tables_.back().data(), stride, spec.block_size});
    scratch_.emplace_back(stride);
  }
  rows_ = TakeVector<Row>(size_t(config.num_slots) * groups_.size(), "the rows of block tables",
                          "lower max_num_seqs, or free some memory");
  clips_ = has_states_ && config.enable_prefix_caching && config.clip_chunks;
  if (has_states_) {
    junctions_.resize(config.num_slots);
    trails_.resize(rows_.size());
  }
  sources_.resize(groups_.size());
  const int32_t copies = std::max(config.max_open_copies, config.num_slots) * num_groups();
  if (sub_block_hits_) open_copies_.reserve(static_cast<size_t>(copies));
  LinkGroups();
  CountShared();
}

void KvManager::LinkGroups() {
  for (int g = 0; g < num_groups(); ++g) {
    if (groups_[g]->KeepsEverything()) order_.push_back(g);
  }
  const std::vector<int> whole = order_;
  for (int g = 0; g < num_groups(); ++g) {
    if (!groups_[g]->KeepsEverything() && !groups_[g]->cross()) {
      order_.push_back(g);
      passing_.push_back(g);
    }
    const auto same = [&](int other) {
      return groups_[other]->block_size() == groups_[g]->block_size();
    };
    const auto anchor = std::find_if(whole.begin(), whole.end(), same);
    const int linked = anchor != whole.end() && !groups_[g]->cross() ? *anchor : -1;
    anchors_.push_back(groups_[g]->KeepsEverything() ? g : linked);
  }
}

void KvManager::CountShared() {
  const bool hits =
      config_.enable_prefix_caching && config_.max_tokens_per_slot > SharedBlocks::kLeastTokens;
  for (int g = 0; g < num_groups() && hits && shared_group_ < 0; ++g) {
    if (groups_[g]->KeepsEverything()) shared_group_ = g;
  }
  if (shared_group_ < 0) return;
  const int32_t num_blocks = pool_.num_parents() * pool_.split(shared_group_);
  shared_ = SharedBlocks(groups_[shared_group_]->block_size(), num_blocks, config_.num_slots);
  if (config_.orders_rows) by_prefix_ = PrefixOrder(num_blocks, config_.num_slots);
}

KvManager::Hit KvManager::Match(const PrefixChain& chain, int32_t max_tokens, bool fresh) {
  Hit hit;
  hit.cross = chain.cross;
  if (!config_.enable_prefix_caching) return hit;
  hit.retention = chain.retention;
  hit.cross_cached = has_cross_ && !fresh && MatchCross(chain);
  if (has_states_) hit.junction = MatchGroups(chain, max_tokens, /*states=*/false);
  hit.tokens = MatchGroups(chain, max_tokens, /*states=*/true);
  if (sub_block_hits_) hit.partial = FindPartial(chain, hit.tokens, max_tokens);
  return hit;
}

int32_t KvManager::MatchGroups(const PrefixChain& chain, int32_t max_tokens, bool states) {
  // Every group shortens the candidate until none does. Full groups have found their longest run
  // at once; a shorter candidate only trims it.
  int32_t tokens = max_tokens / align_ * align_;
  bool found_any = false;
  for (bool shortened = true; shortened && tokens > 0;) {
    shortened = false;
    for (int g : order_) {
      if (!states && groups_[g]->WritesOnlyLast()) continue;
      const int32_t found =
          groups_[g]->Match(map_, chain, tokens, align_, LinksOf(g), scratch_[g].data());
      shortened = shortened || (found < tokens && num_groups() > 1);
      tokens = found;
      found_any = true;
    }
  }
  return found_any ? tokens : 0;
}

int32_t KvManager::FindPartial(const PrefixChain& chain, int32_t tokens, int32_t max_tokens) {
  const int32_t block_size = groups_[0]->block_size();
  const int32_t known = std::min(max_tokens, static_cast<int32_t>(chain.tokens.size()));
  const int32_t most = std::min(known - tokens, block_size - 1);
  if (most <= 0) return 0;
  const int32_t index = tokens / block_size;
  int32_t found = most;
  for (int g = 0; g < num_groups(); ++g) {
    const PrefixKey wanted{{},     groups_[g]->ParentOf(chain, index),
                           g,      chain.tokens.subspan(static_cast<size_t>(tokens), most),
                           tokens, Links(map_, scratch_[g].data()).Before(index)};
    const PrefixMap::Start start = map_.FindStart(wanted, fence_);
    sources_[g] = start.block;
    found = std::min(found, start.tokens);
  }
  // A few tokens are not worth a copy, unless they are all there are to find.
  const int32_t least = std::max(1, block_size / kLeastShare);
  return found >= least || found == known - tokens ? found : 0;
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
  BlockNeed need = GrowthNeed(lengths, tokens);
  if (has_cross_) need += CrossNeed(hit);
  return need;
}

BlockNeed KvManager::PeakNeed(const Hit& hit, int32_t tokens) const {
  BlockNeed need;
  for (int g = 0; g < num_groups(); ++g) {
    const CacheGroup& group = *groups_[g];
    const int32_t entries = group.Entries(hit.tokens);
    const int32_t dead = std::max(0, group.FirstLive(hit.tokens) - group.Head());
    need.of[g] = std::max(0, group.Peak(tokens, config_.ahead) - (entries - dead));
  }
  if (has_cross_) need += CrossNeed(hit);
  return need;
}

BlockNeed KvManager::RemainingNeed(RowSlot slot, int32_t tokens) const {
  BlockNeed need;
  for (int g = 0; g < num_groups(); ++g) {
    need.of[g] = std::max(0, groups_[g]->Peak(tokens, config_.ahead) - at(slot, g).held);
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
  for (int g = 0; g < num_groups() && hit.partial > 0; ++g) pool_.Ref(sources_[g]);
  BlockNeed need = GrowthNeed(LengthsOf(slot), tokens);
  if (has_cross_) need += CrossNeed(hit);
  BlockNeed all = need;
  all += keep;
  if (!pool_.Fits(all, keep_parents)) {
    for (int g = 0; g < num_groups() && hit.partial > 0; ++g) pool_.Unref(sources_[g]);
    Release(slot);
    ClearRow(slot);
    return false;
  }
  ProveHit(slot, hit);
  if (shared_group_ >= 0) shared_.Enter(slot, blocks(slot, shared_group_));
  Append(slot, tokens, need);
  if (hit.partial > 0) TakeCopies(slot, hit);
  return true;
}

void KvManager::TakeCopies(RowSlot slot, const Hit& hit) {
  const int32_t index = hit.tokens / groups_[0]->block_size();
  for (int g = 0; g < num_groups(); ++g) {
    // Both stay referenced until the step is over; the source is since Admit.
    const BlockCopy copy{g, sources_[g], pool_.FromTable(row(g, slot)[index], g), hit.partial};
    pool_.Ref(copy.target);
    pool_.Prove(copy.source);
    RetainBlock(copy.source, hit.retention, g, index);
    open_copies_.push_back(copy);
    if (copy_log_) copy_log_->push_back(copy);
  }
}

void KvManager::EndCopies(std::span<const BlockCopy> copies) {
  for (const BlockCopy& copy : copies) {
    pool_.Unref(copy.target);
    pool_.Unref(copy.source);
  }
  open_copies_.erase(open_copies_.begin(),
                     open_copies_.begin() + static_cast<std::ptrdiff_t>(copies.size()));
}

void KvManager::ProveHit(RowSlot slot, const Hit& hit) {
  for (int g = 0; g < num_groups(); ++g) {
    at(slot, g).timed = hit.retention && hit.retention->timed();
    for (int32_t i = 0; i < length(slot, g); ++i) {
      const int32_t entry = row(g, slot)[i];
      if (entry == Index(kNullBlock)) continue;
      const BlockId b = pool_.FromTable(entry, g);
      pool_.Prove(b);
      RetainBlock(b, hit.retention, g, i);
    }
  }
}

void KvManager::RetainBlock(BlockId b, const RetentionPlan* plan, int group, int32_t index) {
  if (!plan) return;
  // What an encoder made of an item is worth as much as the start of the prompt.
  const auto* wish = plan->Of(groups_[group]->cross() ? 0 : index * groups_[group]->block_size());
  if (wish) Retain(b, *wish);
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
    const int32_t cross = hit.cross_cached ? groups_[g]->CrossEntries(hit.cross) : 0;
    r.length = r.published = groups_[g]->Entries(hit.tokens) + cross;
    r.dead = std::max(0, groups_[g]->FirstLive(hit.tokens));
    if (has_states_) trails_[size_t(Index(slot)) * groups_.size() + g] = {};
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
    const int32_t entries = groups_[g]->cross() ? r.length + need.of[g]
                                                : std::max(r.length, groups_[g]->Entries(tokens));
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
  const bool whole = map_.Whole(block);
  // An item's blocks are in no connector's tier.
  const bool offered = whole && !groups_[key.group]->cross();
  if (offered && eviction_listener_) eviction_listener_->OnEvict(block, key);
  const bool last = map_.Remove(block);
  if (whole) events_.Left(block, key, last);
  expiry_.Cancel(block);
  ++evictions_;
}

void KvManager::FreeDead(RowSlot slot, int32_t processed, int32_t prompt_len, bool packed) {
  const int32_t junction = has_states_ ? junctions_[Index(slot)] : 0;
  for (int g : passing_) {
    const CacheGroup& group = *groups_[g];
    Row& r = at(slot, g);
    const int32_t live = std::min(group.FirstLive(processed), r.length);
    const bool states = has_states_ && group.WritesOnlyLast();
    for (int32_t i = std::max(r.dead, group.Head()); i < live; ++i) {
      int32_t& entry = row(g, slot)[i];
      if (entry == Index(kNullBlock)) continue;
      const BlockId b = pool_.FromTable(entry, g);
      // What it hit or others hit has proven its worth; the rest of its trail has not.
      const bool own = pool_.refs(b) == 1 && pool_.OrdinaryClass(b) != EvictionClass::kProven;
      const bool kept = !packed && (!own || Retained(group, i, prompt_len, junction));
      const bool trails = !kept && states && !packed && map_.Contains(b);
      if (!kept && !trails) Forget(b);
      pool_.Unref(b);
      if (trails) LeaveTrail(slot, g, b);
      entry = Index(kNullBlock);
      --r.held;
    }
    r.dead = std::max(r.dead, live);
  }
}

// A conversation resumes from the last state it passed. Keeping that one costs nothing: its block
// is free, and only stays cached until somebody needs it.
void KvManager::LeaveTrail(RowSlot slot, int group, BlockId b) {
  Trail& trail = trails_[size_t(Index(slot)) * groups_.size() + group];
  const BlockId old = trail.block;
  const bool there = old != kNoBlock && map_.Contains(old) && map_.SerialOf(old) == trail.serial;
  if (there && pool_.refs(old) == 0 && pool_.OrdinaryClass(old) != EvictionClass::kProven) {
    Forget(old);
  }
  trail = {b, map_.SerialOf(b)};
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
    if (groups_[g]->WritesOnlyLast() || groups_[g]->cross()) continue;
    tokens = std::min(tokens, at(slot, g).published * groups_[g]->block_size());
  }
  return tokens;
}

void KvManager::Release(RowSlot slot, int64_t now_us) {
  if (shared_group_ >= 0) shared_.Leave(slot, blocks(slot, shared_group_));
  for (int g = 0; g < num_groups(); ++g) {
    pool_.UnrefReversed(blocks(slot, g), g);
    Row& r = at(slot, g);
    if (r.timed) {
      for (int32_t entry : blocks(slot, g)) expiry_.Restart(pool_.FromTable(entry, g), now_us);
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
    events->push_back(events_.StoredEvent(block, map_.KeyOf(block)));
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
  for (const BlockCopy& copy : open_copies_) {
    ++refs[Index(copy.source)];
    ++refs[Index(copy.target)];
  }
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
    if (hashed && map_.Whole(BlockId{b})) {
      OCTAVO_CHECK(map_.Find(map_.KeyOf(BlockId{b})) != kNoBlock, "a filed block is not found");
    }
    filed += hashed;
  }
  OCTAVO_CHECK(filed == map_.size(), "the map counts other blocks than it holds");
  pool_.CheckInvariants();
  shared_.CheckInvariants([this](RowSlot slot) { return blocks(slot, shared_group_); });
}

}  // namespace octavo::kv
