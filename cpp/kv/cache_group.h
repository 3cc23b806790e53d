// CacheGroup: how one kind of attention uses blocks. Layers that share block tables form a group.
//
// A group answers questions; it owns no blocks. The manager asks every group before it commits
// anything, so that one call can grow all of them or none. All positions are in tokens, all indices
// in blocks of this group.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>

#include "kv/prefix_map.h"
#include "kv/retention_plan.h"
#include "octavo/config.h"
#include "octavo/kv_event.h"

namespace octavo::kv {

// The encoder item whose keys and values a request sees through the cross groups.
struct CrossItem {
  Hash128 hash;            // of its content, as it was submitted
  int32_t embeddings = 0;  // 0: none
};

// The chain of a request's full units, as far as its tokens are known. A unit is the greatest
// common divisor of all groups' block sizes; a larger block is filed under the hash of its last
// unit, which covers everything before it, and its parent's is that of the unit before its first.
struct PrefixChain {
  std::span<const int32_t> tokens;
  std::span<const Hash128> hashes;  // one a full unit
  Hash128 root;
  const RetentionPlan* retention = nullptr;  // null: nothing was asked for
  const CrossItem* cross = nullptr;          // null without cross groups; part of the root
  const KvExtraKeys* extra = nullptr;        // for events; null: the tokens say all
};

// Reads the serial of the content before each block of a prefix: that of the block before it in a
// group of full attention with blocks of the same size, which holds the whole prefix. Without such
// a group blocks are not linked, and their hashes alone say what is before them.
class Links {
 public:
  Links() = default;
  // `blocks`: those of that group, from the prefix's start.
  Links(const PrefixMap& map, const BlockId* blocks) : map_(&map), blocks_(blocks) {}
  int64_t Before(int32_t index) const {
    if (!map_) return kUnlinked;
    return index == 0 ? kRootSerial : map_->SerialOf(blocks_[index - 1]);
  }

 private:
  const PrefixMap* map_ = nullptr;
  const BlockId* blocks_ = nullptr;
};

// How far planning runs ahead of what is processed, for one request: `tokens` in `steps` steps.
struct Ahead {
  int32_t tokens = 1 << 30;
  int32_t steps = 1;
};
inline Ahead AheadOf(const EngineConfig& config) {
  const int64_t tokens = int64_t{config.max_steps_in_flight} * config.max_num_batched_tokens;
  return {static_cast<int32_t>(std::min<int64_t>(tokens, 1 << 30)), config.max_steps_in_flight};
}

class CacheGroup {
 public:
  CacheGroup(int index, int32_t block_size, int32_t unit, bool cross = false)
      : index_(index), block_size_(block_size), unit_(unit), cross_(cross) {}
  virtual ~CacheGroup() = default;

  int32_t block_size() const { return block_size_; }
  // Whether every token is kept, so that the blocks of a prefix say all of it.
  virtual bool KeepsEverything() const { return false; }
  // Whether its blocks hold an item's embeddings and none of a request's tokens.
  bool cross() const { return cross_; }
  // Entries in the table of a request of `tokens` tokens, null ones included.
  int32_t Entries(int32_t tokens) const { return cross_ ? 0 : Blocks(tokens); }
  // The same of a request with this item.
  int32_t CrossEntries(const CrossItem* item) const {
    return cross_ && item ? Blocks(item->embeddings) : 0;
  }

  // Blocks in [head, first_live) are dead once `processed` tokens are: no later token reads them.
  virtual int32_t Head() const { return 0; }
  virtual int32_t FirstLive(int32_t processed) const = 0;
  // Whether a step writes only the block of its last token (a state), not those it passes through.
  virtual bool WritesOnlyLast() const { return false; }
  // The most blocks a request holds on its way to `tokens` tokens.
  virtual int32_t Peak(int32_t tokens, const Ahead& ahead) const = 0;
  // The longest prefix of at most `tokens` tokens (a multiple of `align`) whose live blocks the map
  // holds. Writes entry i of the table to hits[i], kNoBlock where the entry is dead. `links` reach
  // as far as `tokens`; a group that keeps everything links its own hits.
  virtual int32_t Match(const PrefixMap& map, const PrefixChain& chain, int32_t tokens,
                        int32_t align, const Links& links, BlockId* hits) const = 0;

  // The content of the block at `index`. REQUIRES: the chain covers it.
  PrefixKey KeyOf(const PrefixChain& chain, int32_t index, int64_t before = kUnlinked) const;
  // The hash that stands before it. REQUIRES: the chain covers what is before it.
  const Hash128& ParentOf(const PrefixChain& chain, int32_t index) const {
    return index == 0 ? chain.root : chain.hashes[LastUnit(index - 1)];
  }
  int index() const { return index_; }
  // How many of this group's blocks the chain covers.
  int32_t Covered(const PrefixChain& chain) const {
    return cross_ ? 0 : static_cast<int32_t>(chain.hashes.size()) * unit_ / block_size_;
  }

 protected:
  // Leading blocks of the first `limit` that the map holds, in order.
  int32_t MatchRun(const PrefixMap& map, const PrefixChain& chain, int32_t limit,
                   const Links& links, BlockId* hits) const;

 private:
  int32_t Blocks(int32_t count) const { return (count + block_size_ - 1) / block_size_; }
  int32_t LastUnit(int32_t block) const { return (block + 1) * (block_size_ / unit_) - 1; }

  int index_;
  int32_t block_size_;
  int32_t unit_;
  bool cross_;
};

// The content of one block of an item: compared whole like the tokens of another block.
class CrossKey {
 public:
  static constexpr int32_t kWords = 6;

  // `root` keeps salts apart.
  CrossKey(const CrossItem& item, const Hash128& root, const CacheGroup& group, int32_t index);
  CrossKey(const CrossKey&) = delete;
  CrossKey& operator=(const CrossKey&) = delete;
  // Valid as long as this.
  const PrefixKey& key() const { return key_; }

 private:
  int32_t words_[kWords];
  PrefixKey key_;
};

// Parents that a request of `tokens` tokens and the longest item holds at most when it is alone. No
// groups: one of full attention with `block_size`.
int64_t ParentsFor(std::span<const GroupSpec> groups, int32_t block_size, int32_t tokens,
                   const Ahead& ahead);

std::unique_ptr<CacheGroup> MakeGroup(const GroupSpec& spec, int index, int32_t unit);

}  // namespace octavo::kv
