// PrefixMap: from the content of a prefix to the blocks that hold its KV.
//
// Open addressing with linear probing and backward-shift deletion, never more than half full, sized
// once for the whole pool. An entry is 8 bytes (tag and block); the full key (chain hash, parent's
// hash, group, token ids) lies beside the block, and every hit compares all of it. Several blocks
// may hold the same content: they form a ring, and only the first insert and the last removal
// change what is cached. No call allocates. One thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/hash.h"
#include "base/host_memory.h"
#include "octavo/ids.h"

namespace octavo::kv {

struct PrefixKey {
  Hash128 hash;
  Hash128 parent;
  int32_t group = 0;
  std::span<const int32_t> tokens;  // exactly block_size of them
  int32_t start = 0;                // of its first token in the sequence; follows from the hash
};

class PrefixMap {
 public:
  PrefixMap(int32_t num_blocks, int32_t block_size, HostMemory& memory = SystemMemory());

  // A block with this content, or kNoBlock.
  BlockId Find(const PrefixKey& key) const;
  // Bring the cache lines that Find will need on their way: first the entry, some calls later (it
  // is read) the key beside the block.
  void PrefetchEntry(const Hash128& hash, int32_t group) const;
  void PrefetchKey(const Hash128& hash, int32_t group) const;

  // The same for an Insert of this block.
  void PrefetchInsert(BlockId block, const Hash128& hash, int32_t group) const;

  enum class InsertResult { kFirst, kCopy, kCollision };
  // Files a block. kCollision: another content has the same hash; the block stays out.
  // REQUIRES: the block is not in the map.
  InsertResult Insert(BlockId block, const PrefixKey& key);
  // Takes a block out. True: it was the last copy. REQUIRES: Contains(block).
  bool Remove(BlockId block);

  bool Contains(BlockId block) const { return meta_[Index(block)].ring_next >= 0; }
  PrefixKey KeyOf(BlockId block) const;
  int32_t size() const { return size_; }  // blocks, copies included
  // Whether a lookup gives this block: one is named for each content.
  bool IsNamed(BlockId block) const { return Contains(block) && Find(KeyOf(block)) == block; }

 private:
  struct Entry {
    uint32_t tag = 0;
    int32_t block = -1;  // -1: empty
  };
  struct alignas(64) Meta {  // one cache line
    Hash128 hash;
    Hash128 parent;
    int32_t group = 0;
    int32_t ring_next = -1;  // the next copy, itself when alone; -1: not in the map
    int32_t ring_prev = -1;
    int32_t start = 0;
  };

  static uint64_t Mix(const Hash128& hash, int32_t group);
  size_t Home(uint64_t mixed) const { return mixed & mask_; }
  static uint32_t Tag(uint64_t mixed) { return static_cast<uint32_t>(mixed >> 32); }
  // The entry of this hash and group, or the empty entry where it would stand.
  size_t Locate(const Hash128& hash, int32_t group, uint64_t mixed) const;
  bool SameContent(int32_t block, const PrefixKey& key) const;
  void EraseEntry(size_t hole);
  int32_t* TokensOf(int32_t block) const { return &tokens_[size_t(block) * block_size_]; }

  int32_t block_size_;
  size_t mask_;
  int32_t size_ = 0;
  HostArray<Entry> entries_;
  std::vector<Meta> meta_;
  HostArray<int32_t> tokens_;  // [num_blocks, block_size]
};

}  // namespace octavo::kv
