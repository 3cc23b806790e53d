// KvManager: the block tables of all running requests, and the only place where blocks change
// hands.
//
// It owns the pool, the prefix map and one table a group ([slot, entries], the very array an
// executor reads). Admit and Grow count the need of every group first and then commit: they succeed
// whole or change nothing. Release gives blocks back last to first, so a prefix outlives its
// suffix. Entries that hold no block (past a slot's length, behind a window, passed over by a
// state) are the null block, but for a released row that a step in flight may still read: it keeps
// its entries until ClearRow. Nothing allocates after construction. One thread.
//
// Invariants (CheckInvariants, after every operation in tests):
//   refs(b) = table entries, holds and open copies that name b; what is not used is free; the map
//   and the hashed blocks are a bijection; filed blocks are full and never written again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/host_memory.h"
#include "kv/block_pool.h"
#include "kv/cache_group.h"
#include "kv/expiry_wheel.h"
#include "kv/kv_events.h"
#include "kv/prefix_map.h"
#include "kv/prefix_order.h"
#include "kv/shared_blocks.h"
#include "octavo/config.h"
#include "octavo/kv_connector.h"
#include "octavo/step.h"

namespace octavo::kv {

struct KvConfig {
  int32_t num_blocks = 0;  // parents, with several groups
  int32_t block_size = 16;
  int32_t num_slots = 0;
  int32_t max_tokens_per_slot = 0;
  Ahead ahead;
  std::vector<GroupSpec> groups;  // empty: one of full attention
  int32_t snapshot_interval = 0;  // see EngineConfig
  bool enable_prefix_caching = true;
  bool clip_chunks = true;  // false: prompts are computed whole, also where states would be kept
  bool sub_block_hits = false;  // see EngineConfig
  int32_t max_open_copies = 0;  // 0: as many as there are slots
  bool orders_rows = false;     // OrderByPrefix is called
  bool enable_events = false;
  int32_t max_events = KvEventLog::kCapacity;
};

// Told of cached content before it is overwritten.
class EvictionListener {
 public:
  virtual ~EvictionListener() = default;
  virtual void OnEvict(BlockId block, const PrefixKey& key) = 0;
};

// The first `tokens` tokens of a block are to be copied to another one of the same group.
struct BlockCopy {
  int32_t group = 0;
  BlockId source{};
  BlockId target{};
  int32_t tokens = 0;
};

class KvManager final : private EvictionSink {
 public:
  explicit KvManager(const KvConfig& config, HostMemory& memory = SystemMemory());
  KvManager(KvManager&&) = default;

  // The longest cached prefix of at most `max_tokens` tokens on which all groups agree; its blocks,
  // kept in a scratch of the manager, are valid until the next call. Takes no reference.
  // With sub-block hits `partial` more tokens stand at the start of a block that was filed before
  // the step that is being planned: admitting copies them.
  struct Hit {
    int32_t tokens = 0;
    int32_t partial = 0;
    // Where the keys and values that are cached end, when states are not cached as far: others may
    // part from the prefix there too.
    int32_t junction = 0;
    const RetentionPlan* retention = nullptr;  // of whoever asked
    const CrossItem* cross = nullptr;          // of whoever asked
    bool cross_cached = false;                 // all of its blocks are
  };
  // An item's blocks are hit, all or none, whatever the prompt hits; never when `fresh`.
  Hit Match(const PrefixChain& chain, int32_t max_tokens, bool fresh = false);

  // Blocks that admitting with `hit` up to `tokens` tokens takes besides the hit's, and the most it
  // will ever hold on the way there.
  BlockNeed AdmissionNeed(const Hit& hit, int32_t tokens) const;
  BlockNeed PeakNeed(const Hit& hit, int32_t tokens) const;
  // What a running slot may still have to take until `tokens` tokens are computed.
  BlockNeed RemainingNeed(RowSlot slot, int32_t tokens) const;

  // Gives an empty slot the latest hit's blocks and new ones up to `tokens`. False when fewer than
  // that need, `keep` and `keep_parents` are free; then only the hit's recency has changed, so that
  // what a waiting request will use is not the next of its class to go.
  bool Admit(RowSlot slot, const Hit& hit, int32_t tokens, const BlockNeed& keep = {},
             int32_t keep_parents = 0);
  // Makes room for `tokens` tokens. False, and no change, when the pool cannot.
  bool Grow(RowSlot slot, int32_t tokens);
  // The same, but new blocks are taken only when `keep` stays free beside them.
  bool GrowSparing(RowSlot slot, int32_t tokens, const BlockNeed& keep);
  // Gives back the blocks that no token after the first `processed` ones reads. Of these, windows
  // and states stay findable where a request is likely to resume: at the end of the prompt (before
  // its last token) and every snapshot_interval tokens, and the latest state until the next one is
  // let go of; `packed`: nowhere, so that what is left fills as few parents as it can.
  void FreeDead(RowSlot slot, int32_t processed, int32_t prompt_len, bool packed = false);
  // Shortens a chunk so that it ends where a state is worth keeping: at the last boundary before
  // the end of the tokens, every snapshot_interval tokens, and where the hit's prefix parts from
  // what others cached of it. A request that is being admitted, and one that runs.
  int32_t ClipChunk(const Hit& hit, int32_t start, int32_t count, int32_t num_tokens) const {
    return clips_ ? Clip(hit.junction, start, count, num_tokens) : count;
  }
  int32_t ClipChunk(RowSlot slot, int32_t start, int32_t count, int32_t num_tokens) const {
    return clips_ ? Clip(junctions_[Index(slot)], start, count, num_tokens) : count;
  }

  // Files the slot's full blocks of the first `tokens` tokens under their content, as soon as the
  // step that writes them is planned. A state is filed once that step has run: the one after the
  // first `processed` tokens, when these end on a boundary.
  void Publish(RowSlot slot, const PrefixChain& chain, int32_t tokens);
  void PublishStates(RowSlot slot, const PrefixChain& chain, int32_t processed);
  // Files the blocks of the slot's item, all at once, as soon as the step that encodes it is
  // planned.
  void PublishCross(RowSlot slot, const PrefixChain& chain);
  // Takes every copy of the chain's item out of the map, whoever holds it.
  void ForgetCross(const PrefixChain& chain);
  // Bring the cache lines on their way that a Grow and a FreeDead by one block will need, each some
  // requests after the one before, because it reads what that fetched.
  void PrefetchCounts(RowSlot slot) const;
  void PrefetchRow(RowSlot slot) const;
  void PrefetchDead(RowSlot slot) const;
  void PrefetchForget(RowSlot slot) const;
  // The same for a Publish of the slot's next block: after PrefetchRow, what the block's hash
  // names.
  void PrefetchPublish(RowSlot slot, const PrefixChain& chain) const;
  // Files what the slot holds of the first `processed` tokens, which a step has computed, up to and
  // with a last block that is not full. For a slot that is about to be released.
  void PublishTail(RowSlot slot, const PrefixChain& chain, int32_t processed);
  // Takes the chain's full blocks that reach past its first `tokens` tokens out of the map, every
  // copy of them, whoever holds them; with 0 tokens also what the first may be a copy of.
  void ForgetPast(const PrefixChain& chain, int32_t tokens);
  // Takes one block out of the map, whoever holds it.
  void Forget(BlockId block);
  // Gives the slot's blocks back. Its row still reads as before, until ClearRow. `now_us`: when
  // what was retained for a time begins to count; not before the latest Expire.
  void Release(RowSlot slot, int64_t now_us = 0);
  // No step reads the released row any more; the slot may be admitted into again.
  // REQUIRES: length(slot) == 0.
  void ClearRow(RowSlot slot);

  // Makes room for retention that ends; from then on Expire must be told the time.
  void EnableExpiry() { expiry_.Enable(pool_.num_places()); }
  bool timed() const { return expiry_.enabled(); }
  // What was retained until now becomes ordinary again, unless somebody holds it.
  void Expire(int64_t now_us);

  // Holds: references outside any table, of blocks that are being loaded or saved (holds.cc).
  // Holds all that a token after the first `tokens` (a multiple of align()) reads: cached blocks as
  // they are, and new ones, appended to `missing`, for the rest. kDoesNotFit, and no change, when
  // they do not fit beside what growing to `gate` tokens takes, `keep` and `keep_parents`;
  // kNoMemory, and no change, when there is none for the list of them.
  static constexpr int32_t kDoesNotFit = -1;
  static constexpr int32_t kNoMemory = -2;
  int32_t HoldPrefix(const PrefixChain& chain, int32_t tokens, int32_t gate, const BlockNeed& keep,
                     int32_t keep_parents, std::vector<KvBlock>* missing);
  // Holds the filed blocks that lie within a slot's first `tokens` tokens; appends them. kNoMemory
  // as above.
  int32_t HoldFiled(RowSlot slot, int32_t tokens, std::vector<KvBlock>* blocks);
  // Files new blocks of a hold that lie within the first `valid` tokens.
  void FileLoaded(const PrefixChain& chain, std::span<const KvBlock> blocks, int32_t valid);
  void DropHold(int32_t hold);
  // Whether the map holds this block of the chain.
  bool Cached(const PrefixChain& chain, int group, int32_t index) const;

  // Forgets all cached content. False, and no change, while any slot holds a block.
  bool Reset();

  void set_eviction_listener(EvictionListener* listener) { eviction_listener_ = listener; }
  // A step is planned: Publish appends what it files to `published`, Admit what it copies to
  // `copies`. What is filed from now on is written by this step, so it is no source for a copy.
  void BeginStep(std::vector<BlockId>* published, std::vector<BlockCopy>* copies) {
    publish_log_ = published;
    copy_log_ = copies;
    fence_ = map_.next_serial();
  }
  // What Publish files is in no step's hands.
  void StopLogging() { publish_log_ = nullptr; }
  // The step that makes these copies is over. They are the oldest that are open.
  void EndCopies(std::span<const BlockCopy> copies);

  std::span<const int32_t> blocks(RowSlot slot, int group = 0) const {
    return {row(group, slot), static_cast<size_t>(at(slot, group).length)};
  }
  // How many blocks would become free if this slot let go of all of its own.
  int32_t ExclusiveBlocks(RowSlot slot) const;
  int32_t length(RowSlot slot, int group = 0) const { return at(slot, group).length; }
  // How many leading tokens every group (of keys and values) has offered to the map.
  int32_t published_tokens(RowSlot slot) const;
  // Tokens that running requests hit in blocks that several of them hit, of the first group of full
  // attention; each counts for every request (shared_blocks.h). 0 without such a group.
  int64_t shared_tokens() const { return shared_.tokens(); }
  // In which order rows of these slots stand next to those they share a prefix with
  // (prefix_order.h); empty: in this one. Valid until the next call.
  // REQUIRES: shared_tokens() > 0, and the configuration says that rows are ordered.
  std::span<const int32_t> OrderByPrefix(std::span<const int32_t> slots) {
    const auto row_of = [this](RowSlot slot) { return blocks(slot, shared_group_); };
    return by_prefix_.Of(slots, shared_.version(),
                         [this, row_of](RowSlot slot) { return shared_.PrefixOf(slot, row_of); });
  }
  int32_t free_blocks() const { return pool_.free_parents(); }
  // Blocks that each group could take if no other did, summed: it grows with every block let go.
  int64_t room() const {
    int64_t sum = 0;
    for (int g = 0; g < num_groups(); ++g) sum += pool_.free_blocks(g);
    return sum;
  }
  std::span<const BlockTableView> tables() const { return views_; }
  const BlockPool& pool() const { return pool_; }
  const PrefixMap& map() const { return map_; }
  // Everything the map holds, as the events that would store it: one for each content, a prefix
  // before what follows it. What a reader who missed events starts afresh from.
  void CachedContent(std::vector<KvEvent>* events) const;
  KvEventLog& events() { return events_; }
  const KvEventLog& events() const { return events_; }
  uint64_t evictions() const { return evictions_; }
  // Tokens of a hash unit, and the tokens that every hit is a multiple of.
  int32_t unit() const { return unit_; }
  int32_t align() const { return align_; }
  int32_t num_groups() const { return static_cast<int32_t>(groups_.size()); }
  int32_t num_slots() const { return config_.num_slots; }
  int32_t max_tokens_per_slot() const { return config_.max_tokens_per_slot; }
  bool caching() const { return config_.enable_prefix_caching; }
  bool keeps_everything() const { return keeps_everything_; }
  bool has_states() const { return has_states_; }
  bool has_cross() const { return has_cross_; }
  bool is_cross(int group) const { return groups_[group]->cross(); }

  // Aborts with a message when an invariant does not hold. O(pool + tables).
  void CheckInvariants() const;

 private:
  struct Row {
    int32_t length = 0;     // entries
    int32_t released = 0;   // entries of a released row that are not cleared yet
    int32_t published = 0;  // leading entries that were offered to the map
    int32_t dead = 0;       // leading entries (after the head) that were given back
    int32_t held = 0;       // entries that name a block
    bool timed = false;     // some may be retained for a time that starts with their release
  };

  // The latest state that a row let go of, while the block's serial is this.
  struct Trail {
    BlockId block = kNoBlock;
    int64_t serial = 0;
  };

  Row& at(RowSlot slot, int group) { return rows_[size_t(Index(slot)) * groups_.size() + group]; }
  const Row& at(RowSlot slot, int group) const {
    return rows_[size_t(Index(slot)) * groups_.size() + group];
  }
  int32_t* row(int group, RowSlot slot) const {
    return &tables_[group][size_t(Index(slot)) * views_[group].row_stride];
  }
  BlockNeed GrowthNeed(const BlockNeed& lengths, int32_t tokens) const;
  BlockNeed LengthsOf(RowSlot slot) const;
  void Append(RowSlot slot, int32_t tokens, BlockNeed need);
  void AttachHit(RowSlot slot, const Hit& hit);
  void ProveHit(RowSlot slot, const Hit& hit);
  void Retain(BlockId block, const RetentionPlan::Wish& wish);
  BlockId NextDead(RowSlot slot, int group) const;
  void PrefetchPublish(int group, int32_t entry, const PrefixChain& chain, int32_t index) const;
  bool PublishBlock(BlockId block, int group, const PrefixChain& chain, int32_t index,
                    int64_t before);
  bool PublishBlock(BlockId block, const PrefixKey& key, const PrefixChain& chain, int32_t index);
  bool MatchCross(const PrefixChain& chain);
  BlockNeed CrossNeed(const Hit& hit) const;
  BlockNeed CrossNeedBeside(const PrefixChain& chain) const;
  std::optional<int64_t> SerialBefore(RowSlot slot, int group, int32_t index) const;
  std::optional<int64_t> SerialBefore(const PrefixChain& chain, int group, int32_t index) const;
  BlockId Find(const PrefixChain& chain, int group, int32_t index) const;
  Links LinksOf(int group) const {
    return anchors_[group] < 0 ? Links() : Links(map_, scratch_[anchors_[group]].data());
  }
  int32_t FindPartial(const PrefixChain& chain, int32_t tokens, int32_t max_tokens);
  void TakeCopies(RowSlot slot, const Hit& hit);
  void LinkGroups();
  void CountShared();
  bool IsCopied(BlockId block) const;
  void RetainBlock(BlockId block, const RetentionPlan* plan, int group, int32_t index);
  void LeaveTrail(RowSlot slot, int group, BlockId block);
  bool Retained(const CacheGroup& group, int32_t index, int32_t prompt_len, int32_t junction) const;
  int32_t MatchGroups(const PrefixChain& chain, int32_t tokens, bool states);
  int32_t Clip(int32_t junction, int32_t start, int32_t count, int32_t num_tokens) const;
  int32_t SnapshotStep() const {
    return std::max(align_, config_.snapshot_interval / align_ * align_);
  }
  void OnEvict(BlockId block) override;
  // Makes room for so many blocks in a hold and in the list beside it. Negative: no memory.
  int32_t NewHold(size_t blocks, std::vector<KvBlock>* listed);
  void CheckTables(std::vector<int32_t>* refs) const;

  KvConfig config_;
  int32_t unit_;
  int32_t align_;
  bool keeps_everything_ = true;  // no group ever gives blocks of a running request back
  bool has_states_ = false;
  bool has_cross_ = false;
  bool clips_ = false;              // chunks end where a state can be resumed from
  std::vector<int32_t> junctions_;  // [slot], of the hit it was admitted with; states only
  std::vector<Trail> trails_;       // [slot, group]; states only
  std::vector<std::unique_ptr<CacheGroup>> groups_;
  BlockPool pool_;
  PrefixMap map_;
  KvEventLog events_;
  ExpiryWheel expiry_;
  std::vector<HostArray<int32_t>> tables_;
  std::vector<BlockTableView> views_;
  std::vector<Row> rows_;                      // [slot, group]
  std::vector<std::vector<BlockId>> scratch_;  // the latest hit, one line a group
  std::vector<std::vector<BlockId>> holds_;
  std::vector<int32_t> free_holds_;
  EvictionListener* eviction_listener_ = nullptr;
  std::vector<int> order_;    // groups, those that keep everything first
  std::vector<int> passing_;  // of these, those that give blocks back while a request runs
  std::vector<int> anchors_;  // of each group: the one that links its blocks, -1: none
  bool sub_block_hits_;
  std::vector<BlockId> sources_;  // of the latest partial hit, one a group
  std::vector<BlockCopy> open_copies_;
  int64_t fence_ = 0;
  std::vector<BlockId>* publish_log_ = nullptr;
  std::vector<BlockCopy>* copy_log_ = nullptr;
  uint64_t evictions_ = 0;
  int shared_group_ = -1;  // whose blocks `shared_` counts, -1: none
  SharedBlocks shared_;
  PrefixOrder by_prefix_;
};

}  // namespace octavo::kv
