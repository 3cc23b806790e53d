// BlockPool: who refers to which block of KV memory, and in what order free blocks are given away.
//
// Every block but the null block is either used (refs > 0) or on exactly one free list. Free lists
// are LRU, one for each eviction class; taking drains unhashed blocks first, then prefixes nobody
// has hit again (probationary), then prefixes that were hit (proven). Proven blocks may fill at
// most kProvenShare of the free cached blocks, so that a popular past cannot starve the present.
// Every operation is O(1) and allocates nothing. One thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "octavo/ids.h"

namespace octavo::kv {

enum class EvictionClass : int8_t { kUnhashed, kProbationary, kProven };
inline constexpr int kEvictionClasses = 3;

class BlockPool {
 public:
  static constexpr double kProvenShare = 0.8;

  // REQUIRES: num_blocks >= 2 (the null block and one to use).
  explicit BlockPool(int32_t num_blocks);

  int32_t num_blocks() const { return static_cast<int32_t>(records_.size()) - kEvictionClasses; }
  int32_t free_count() const { return counts_[0] + counts_[1] + counts_[2]; }
  int32_t free_count(EvictionClass c) const { return counts_[static_cast<int>(c)]; }
  int32_t refs(BlockId b) const { return records_[Index(b)].refs; }
  EvictionClass eviction_class(BlockId b) const { return records_[Index(b)].cls; }

  // The block that Take would give. REQUIRES: free_count() > 0.
  BlockId Next() const;
  // Takes Next() with one reference. The caller evicts its hash first. REQUIRES: free_count() > 0.
  BlockId Take();
  // One more reference; revives a free block.
  void Ref(BlockId b);
  // One reference less; the last one puts the block at the recent end of its class.
  // REQUIRES: refs(b) > 0.
  void Unref(BlockId b);
  // Unref of each, last to first: of the blocks of one sequence the head is the most recent.
  void UnrefReversed(std::span<const int32_t> blocks);
  void Prefetch(BlockId b) const { __builtin_prefetch(&records_[Index(b)], 1); }
  // Moves a block to another class, also while it is free (to the recent end).
  void SetClass(BlockId b, EvictionClass c);

  // Walks the free list of a class from the next victim on; for tests and invariant checks.
  std::vector<BlockId> FreeList(EvictionClass c) const;

 private:
  struct Record {  // 16 bytes
    int32_t refs = 0;
    int32_t prev = -1;
    int32_t next = -1;
    EvictionClass cls = EvictionClass::kUnhashed;
    bool free = false;
    int16_t padding = 0;
  };
  static_assert(sizeof(Record) == 16);

  int32_t sentinel(EvictionClass c) const { return num_blocks() + static_cast<int32_t>(c); }
  void PushBack(int32_t block);
  void Unlink(int32_t block);
  EvictionClass NextClass() const;

  std::vector<Record> records_;  // the blocks, then one sentinel a class
  int32_t counts_[kEvictionClasses] = {};
};

}  // namespace octavo::kv
