// BlockPool: who refers to which block of KV memory, and in what order free blocks are given away.
//
// The pool's memory is cut into parents of equal size. Each group cuts the parents it owns into
// `split` blocks of its own, so groups whose blocks differ in bytes share one pool; with one group,
// or equal blocks, a parent is a block. A block id names a place (parent x widest split + offset),
// the same for every group; a table holds dense ids of its group (TableId).
//
// A parent nobody uses stands on one of the free lists; the free blocks of a parent that is partly
// used belong to its owner, empty ones as bits of an occupancy word, cached ones on lists of that
// group. There is a list for each eviction class, least recently used first; but of parents without
// content the latest goes first, because its records are still in the processor's caches. A parent
// stands in the class of its most valuable block. Parents that are proven or retained above the
// ordinary may fill at most kProvenShare of the free ones, so that neither a popular past nor what
// was pinned can starve the present: whatever is free can be taken.
// Where parents are blocks there are no records of parents: 16 bytes a block are all there is.
// Every operation is O(1) in the pool's size (at most one pass over the blocks of a parent) and
// allocates nothing. One thread.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kv/eviction_class.h"
#include "octavo/config.h"
#include "octavo/ids.h"

namespace octavo::kv {

inline constexpr int kMaxGroups = kMaxCacheGroups;
inline constexpr int kMaxSplit = kMaxGroupSplit;  // bits of an occupancy word

// A number of blocks for each group.
struct BlockNeed {
  std::array<int32_t, kMaxGroups> of{};

  BlockNeed& operator+=(const BlockNeed& other) {
    for (int g = 0; g < kMaxGroups; ++g) of[g] += other.of[g];
    return *this;
  }
  int32_t total() const {
    int32_t sum = 0;
    for (int32_t n : of) sum += n;
    return sum;
  }
};

// Told of every cached block that is given to other content, before it is.
class EvictionSink {
 public:
  virtual ~EvictionSink() = default;
  virtual void OnEvict(BlockId block) = 0;
};

class BlockPool {
 public:
  static constexpr double kProvenShare = 0.8;

  // REQUIRES: num_parents >= 2 (the null parent and one to use); 1 <= split <= kMaxSplit.
  explicit BlockPool(int32_t num_parents, std::span<const int32_t> split = kWhole);

  int num_groups() const { return num_groups_; }
  int32_t num_parents() const { return num_parents_; }
  int32_t num_places() const { return num_parents_ * widest_; }
  int32_t split(int group) const { return split_[group]; }

  // The id by which the tables of `group` name a block, and back. The null block is 0 in both.
  int32_t TableId(BlockId b, int group) const {
    return whole_ ? Index(b) : Index(b) / stride_[group];
  }
  BlockId FromTable(int32_t id, int group) const { return BlockId{id * stride_[group]}; }

  int32_t free_parents() const { return free_parents_; }
  int32_t free_parents(EvictionClass c) const { return counts_[static_cast<int>(c)]; }
  // Blocks that `group` could take if no other group took any.
  int32_t free_blocks(int group) const { return own_free_[group] + free_parents() * split_[group]; }
  int32_t refs(BlockId b) const { return units_[Index(b)].refs; }
  EvictionClass eviction_class(BlockId b) const { return units_[Index(b)].cls; }

  // Whether all of `need` can be taken and `spare` parents stay free.
  bool Fits(const BlockNeed& need, int32_t spare = 0) const {
    return ParentsFor(need) + spare <= free_parents();
  }
  // Takes a block for `group` with one reference. `rest` is what the same transaction will still
  // take after it: it is never made impossible. REQUIRES: Fits(rest + this one).
  BlockId Take(int group, const BlockNeed& rest, EvictionSink& sink);
  // One more reference; revives a free block.
  void Ref(BlockId b);
  // One reference less; the last one puts the block at the recent end of its class.
  // REQUIRES: refs(b) > 0.
  void Unref(BlockId b);
  // Unref of each block that a row of `group`'s table names, last to first: of one sequence's
  // blocks the head is then the most recent.
  void UnrefReversed(std::span<const int32_t> row, int group);
  void Prefetch(BlockId b) const {
    __builtin_prefetch(&units_[Index(b)], 1);
    if (!whole_) __builtin_prefetch(&parents_[ParentOf(b)], 1);
  }
  // Moves a block to another class, also while it is free (to the recent end).
  void SetClass(BlockId b, EvictionClass c);
  // Somebody hit the block: what is ordinary of it is proven from now on.
  void Prove(BlockId b) {
    Unit& unit = units_[Index(b)];
    unit.hit = true;
    if (unit.cls == EvictionClass::kProbationary) SetClass(b, EvictionClass::kProven);
  }
  // The class of this block's content when no priority was given to it.
  EvictionClass OrdinaryClass(BlockId b) const {
    return units_[Index(b)].hit ? EvictionClass::kProven : EvictionClass::kProbationary;
  }

  // Aborts with a message when lists, words and counts disagree. O(pool).
  void CheckInvariants() const;
  // The free parents of a class from the next victim on; for tests.
  std::vector<int32_t> FreeParents(EvictionClass c) const;

 private:
  static constexpr int32_t kWholeSplit[1] = {1};
  static constexpr std::span<const int32_t> kWhole{kWholeSplit};

  struct Links {
    int32_t prev = -1;  // -1: on no list
    int32_t next = -1;
  };
  struct Unit {  // a place where a block may start
    int32_t refs = 0;
    Links links;  // of its group's cached list; where parents are blocks of a free list
    EvictionClass cls = EvictionClass::kUnhashed;
    bool hit = false;  // since it got its content
  };
  struct Parent {
    uint64_t empty = 0;  // free blocks without content, one bit each
    Links links;         // of the free parents of a class, or of its owner's partial parents
    int16_t used = 0;
    int8_t owner = 0;
    EvictionClass cls = EvictionClass::kUnhashed;  // of the list of free parents it stands on
  };

  int32_t ParentOf(BlockId b) const { return Index(b) / widest_; }
  int OffsetOf(BlockId b, int group) const { return Index(b) % widest_ / stride_[group]; }
  BlockId At(int32_t parent, int offset, int group) const {
    return BlockId{parent * widest_ + offset * stride_[group]};
  }
  // Sentinels stand behind the parents and the units. Where parents are blocks the free lists link
  // units, in the place of the cached lists, of which there are none.
  int32_t FreeList(EvictionClass c) const { return num_parents_ + static_cast<int32_t>(c); }
  int32_t PartialList(int group) const { return num_parents_ + kEvictionClasses + group; }
  int32_t CachedList(int group, EvictionClass c) const {
    return num_places() + group * kEvictionClasses + static_cast<int32_t>(c);
  }

  template <typename Record>
  static void LinkFirst(std::vector<Record>& records, int32_t sentinel, int32_t at);
  template <typename Record>
  static void LinkLast(std::vector<Record>& records, int32_t sentinel, int32_t at);
  template <typename Record>
  static void Unlink(std::vector<Record>& records, int32_t at);

  int32_t ParentsFor(const BlockNeed& need) const;
  EvictionClass NextClass() const;
  bool PrefersOwn(int group, const BlockNeed& rest) const;
  void LinkCached(int group, int32_t at);
  void UnlinkCached(int group, int32_t at);
  template <typename Record>
  void AddFree(std::vector<Record>& records, int32_t parent);
  template <typename Record>
  void RemoveFree(std::vector<Record>& records, int32_t parent);
  template <bool kEmpty>
  size_t UnrefRun(std::span<const int32_t> row, EvictionClass cls);
  BlockId TakeWhole(EvictionSink& sink);
  BlockId TakePartial(int group);
  BlockId TakeCached(int group, EvictionSink& sink);
  BlockId TakeParent(int group, EvictionSink& sink);
  void OnUse(int32_t parent);
  void OnIdle(int32_t parent);
  void ShowCached(int32_t parent, bool show);
  int32_t CheckParents() const;
  int32_t CheckUnits() const;

  int32_t num_parents_;
  int num_groups_;
  int32_t widest_ = 1;
  bool whole_ = true;  // every split is 1: parents are blocks
  std::array<int32_t, kMaxGroups> split_{};
  std::array<int32_t, kMaxGroups> stride_{};
  std::array<int32_t, kMaxGroups> own_free_{};  // free blocks in partly used parents
  std::vector<Parent> parents_;                 // none where parents are blocks
  std::vector<Unit> units_;
  int32_t free_parents_ = 0;
  int32_t counts_[kEvictionClasses] = {};            // free parents by class
  ClassSet classes_;                                 // of the free parents
  std::array<ClassSet, kMaxGroups> cached_classes_;  // of each group's cached lists
};

}  // namespace octavo::kv
