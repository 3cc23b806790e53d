// KvManager: the block tables of all running requests, and the only place where blocks change
// hands.
//
// It owns the pool, the prefix map and one table a group ([slot, max_blocks], the very array an
// executor reads). Admit and Grow count the need of every group first and then commit: they succeed
// whole or change nothing. Release gives blocks back last to first, so a prefix outlives its
// suffix. Entries past a slot's length are the null block, but for a released row that a step in
// flight may still read: it keeps its entries until ClearRow. Nothing allocates after construction.
// One thread.
//
// Invariants (CheckInvariants, after every operation in tests):
//   used + free = num_blocks - 1; refs(b) = tables that name b; the map and the hashed blocks are a
//   bijection; a free block is on the list of its class; filed blocks are full and never written
//   again.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/host_memory.h"
#include "kv/block_pool.h"
#include "kv/cache_group.h"
#include "kv/kv_events.h"
#include "kv/prefix_map.h"
#include "octavo/step.h"

namespace octavo::kv {

struct KvConfig {
  int32_t num_blocks = 0;
  int32_t block_size = 16;
  int32_t num_slots = 0;
  int32_t max_tokens_per_slot = 0;
  bool enable_prefix_caching = true;
  bool enable_events = false;
};

class KvManager {
 public:
  explicit KvManager(const KvConfig& config, HostMemory& memory = SystemMemory());

  // The longest cached prefix of at most `max_tokens` tokens on which all groups agree; its blocks,
  // kept in a scratch of the manager, are valid until the next call. Takes no reference.
  struct Hit {
    int32_t tokens = 0;
    std::span<const BlockId> blocks;
    int32_t revived = 0;  // how many of them lie on a free list
  };
  Hit Match(const PrefixChain& chain, int32_t max_tokens);

  // Blocks a request of `tokens` tokens holds, all groups together.
  int32_t BlocksFor(int32_t tokens) const;
  // How many free blocks growing this slot to `tokens` takes.
  int32_t NeedFor(RowSlot slot, int32_t tokens) const;
  int32_t free_blocks() const { return pool_.free_count(); }

  // Gives an empty slot the hit's blocks and new ones up to `tokens`. False, and no change, when
  // fewer than that need plus `keep_free` blocks are free.
  bool Admit(RowSlot slot, const Hit& hit, int32_t tokens, int32_t keep_free);
  // Makes room for `tokens` tokens. False, and no change, when the pool cannot.
  bool Grow(RowSlot slot, int32_t tokens);
  // Files the slot's full blocks of the first `tokens` tokens under their content.
  void Publish(RowSlot slot, const PrefixChain& chain, int32_t tokens);
  // Brings the cache lines on their way that a Publish of the slot's next block will need. The
  // first call is for its row, the second, some requests later, for what the block's hash names.
  void PrefetchRow(RowSlot slot) const;
  void PrefetchPublish(RowSlot slot, const PrefixChain& chain) const;
  // Takes blocks from `first` on out of the map: their content was never written.
  void Unpublish(RowSlot slot, int32_t first);
  // Takes one block out of the map, whoever holds it.
  void Forget(BlockId block);
  // Gives the slot's blocks back. Its row still reads as before, until ClearRow.
  void Release(RowSlot slot);
  // No step reads the released row any more; the slot may be admitted into again.
  // REQUIRES: length(slot) == 0.
  void ClearRow(RowSlot slot);

  // Forgets all cached content. False, and no change, while any slot holds a block.
  bool Reset();

  // Publish appends what it files to `log`; null: nowhere.
  void set_publish_log(std::vector<BlockId>* log) { publish_log_ = log; }

  std::span<const int32_t> blocks(RowSlot slot) const {
    return {row(slot), static_cast<size_t>(length(slot))};
  }
  // How many blocks would become free if this slot let go of all of its own.
  int32_t ExclusiveBlocks(RowSlot slot) const;
  int32_t length(RowSlot slot) const { return lengths_[Index(slot)]; }
  int32_t published(RowSlot slot) const { return published_[Index(slot)]; }
  std::span<const BlockTableView> tables() const { return views_; }
  const BlockPool& pool() const { return pool_; }
  const PrefixMap& map() const { return map_; }
  KvEventLog& events() { return events_; }
  const KvEventLog& events() const { return events_; }
  uint64_t evictions() const { return evictions_; }
  int32_t block_size() const { return config_.block_size; }
  int32_t num_slots() const { return config_.num_slots; }
  int32_t max_tokens_per_slot() const { return config_.max_tokens_per_slot; }
  bool caching() const { return config_.enable_prefix_caching; }

  // Aborts with a message when an invariant does not hold. O(pool + tables).
  void CheckInvariants() const;

 private:
  int32_t* row(RowSlot slot) const { return &table_[size_t(Index(slot)) * row_stride_]; }
  void Append(RowSlot slot, int32_t count);
  BlockId TakeBlock();

  KvConfig config_;
  std::vector<std::unique_ptr<CacheGroup>> groups_;
  BlockPool pool_;
  PrefixMap map_;
  KvEventLog events_;
  int64_t row_stride_;
  HostArray<int32_t> table_;
  std::vector<BlockTableView> views_;
  std::vector<int32_t> lengths_;    // blocks in a slot's row
  std::vector<int32_t> released_;   // entries of a released row that are not cleared yet
  std::vector<int32_t> published_;  // of these, leading blocks that were offered to the map
  std::vector<BlockId> scratch_;
  std::vector<BlockId>* publish_log_ = nullptr;
  uint64_t evictions_ = 0;
};

}  // namespace octavo::kv
