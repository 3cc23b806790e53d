// PrefixMap: from the content of a prefix to the blocks that hold its KV.
//
// Open addressing with linear probing and backward-shift deletion, never more than half full, sized
// once for the whole pool. An entry is 8 bytes (tag and block); the full key (chain hash, parent's
// hash, group, token ids, and the serial of the content before) lies beside the block, and every
// hit compares all of it. A serial names content for as long as it is cached, so a chain of blocks
// that name each other's serials holds one prefix, whatever its hashes say. Several blocks may hold
// the same content: they form a ring, and only the first insert and the last removal change what is
// cached.
//
// Blocks that are not full yet have no hash; they are found, as full ones are, by what stands
// before them and how they start (FindStart). No call allocates. One thread.
#pragma once

#include <cstdint>
#include <span>

#include "base/hash.h"
#include "base/host_memory.h"
#include "kv/sibling_index.h"
#include "octavo/ids.h"

namespace octavo::kv {

// Serials of no content: before a block whose group cannot say, and before a chain's first block.
inline constexpr int64_t kUnlinked = 0;
inline constexpr int64_t kRootSerial = 1;

struct PrefixKey {
  Hash128 hash;
  Hash128 parent;
  int32_t group = 0;
  std::span<const int32_t> tokens;  // all of the block's, block_size at most
  int32_t start = 0;                // of its first token in the sequence; follows from the hash
  int64_t before = kUnlinked;       // the serial of the content before it
};

class PrefixMap {
 public:
  // How many blocks FindStart compares. They are those after the same content that begin with the
  // same token, the latest first.
  static constexpr int kMaxSiblings = 16;

  // `block_size`: of the largest block. `starts`: whether FindStart will be asked.
  PrefixMap(int32_t num_blocks, int32_t block_size, HostMemory& memory = SystemMemory(),
            bool starts = false);

  // A block with this content, or kNoBlock.
  BlockId Find(const PrefixKey& key) const;
  // Bring the cache lines that Find will need on their way: first the entry, some calls later (it
  // is read) the key beside the block.
  void PrefetchEntry(const Hash128& hash, int32_t group) const;
  void PrefetchKey(const Hash128& hash, int32_t group) const;

  // The same for SerialOf, for an Insert of this block, and for a Remove: once SerialOf is near.
  void PrefetchSerial(BlockId block) const { __builtin_prefetch(&meta_[Index(block)]); }
  void PrefetchInsert(BlockId block, const Hash128& hash, int32_t group) const;
  void PrefetchRemove(BlockId block) const {
    const Meta& m = meta_[Index(block)];
    __builtin_prefetch(&entries_[Home(Mix(m.hash, m.group))], 1);
  }

  enum class InsertResult { kFirst, kCopy, kCollision, kOrphan };
  // Files a block. kCollision: another content has the same hash; the block stays out. kOrphan: so
  // it does, but what has its place (Place) follows a content that is gone and can never be hit
  // again. REQUIRES: the block is not in the map.
  InsertResult Insert(BlockId block, const PrefixKey& key);
  BlockId Place(const PrefixKey& key) const;
  // Find, whatever stands before.
  BlockId FindUnlinked(const PrefixKey& key) const;

  // The block after the same content that shares the most leading tokens with `key.tokens`, the
  // latest among equals, of the latest few that were filed before the serial `fence`.
  struct Start {
    BlockId block = kNoBlock;
    int32_t tokens = 0;
  };
  Start FindStart(const PrefixKey& key, int64_t fence) const;
  // Files a block that holds only its first tokens, unless FindStart finds as much. REQUIRES: the
  // block is not in the map; key.tokens is not empty.
  bool InsertStart(BlockId block, const PrefixKey& key);
  // Takes a block out. True: it was the last copy. REQUIRES: Contains(block).
  bool Remove(BlockId block);

  bool Contains(BlockId block) const { return meta_[Index(block)].ring_next >= 0; }
  // Whether the block is filed as full, and so under its hash.
  bool Whole(BlockId block) const { return meta_[Index(block)].whole; }
  // The serial of a filed block's content; copies share it.
  int64_t SerialOf(BlockId block) const { return meta_[Index(block)].serial; }
  int64_t next_serial() const { return next_serial_; }
  PrefixKey KeyOf(BlockId block) const;
  int32_t size() const { return size_; }  // blocks, copies included
  // Whether a lookup gives this block: one is named for each content.
  bool IsNamed(BlockId block) const {
    return Contains(block) && Whole(block) && Find(KeyOf(block)) == block;
  }

 private:
  struct Entry {
    uint32_t tag = 0;
    int32_t block = -1;  // -1: empty
  };
  struct alignas(64) Meta {  // one cache line
    Hash128 hash;
    Hash128 parent;
    int64_t serial = 0;
    int64_t before = kUnlinked;
    int8_t group = 0;
    bool whole = false;
    int16_t count = 0;       // tokens
    int32_t ring_next = -1;  // the next copy, itself when alone; -1: not in the map
    int32_t ring_prev = -1;
    int32_t start = 0;
  };

  static uint64_t Mix(const Hash128& hash, int32_t group);
  size_t Home(uint64_t mixed) const { return mixed & mask_; }  // mask_ fits 32 bits
  // Its low bits are the home, so that an entry moves without a look at its block.
  static uint32_t Tag(uint64_t mixed) { return static_cast<uint32_t>(mixed); }
  // The entry of this hash and group, or the empty entry where it would stand.
  size_t Locate(const Hash128& hash, int32_t group, uint64_t mixed) const;
  bool SameTokens(int32_t block, const PrefixKey& key) const;
  bool SameContent(int32_t block, const PrefixKey& key) const {
    return meta_[block].before == key.before && SameTokens(block, key);
  }
  static uint64_t StartKey(const Hash128& parent, int32_t group, int32_t first_token);
  void Write(int32_t block, const PrefixKey& key, bool whole);
  void EraseEntry(size_t hole);
  int32_t* TokensOf(int32_t block) const { return &tokens_[size_t(block) * block_size_]; }

  int32_t block_size_;
  size_t mask_;
  int32_t size_ = 0;
  int64_t next_serial_ = kRootSerial + 1;
  HostArray<Entry> entries_;
  HostArray<Meta> meta_;
  HostArray<int32_t> tokens_;  // [num_blocks, block_size]
  SiblingIndex starts_;
};

}  // namespace octavo::kv
