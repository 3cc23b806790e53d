#include "kv/prefix_map.h"

#include <bit>
#include <cstring>

#include "base/check.h"

namespace octavo::kv {

PrefixMap::PrefixMap(int32_t num_blocks, int32_t block_size, HostMemory& memory)
    : block_size_(block_size),
      mask_(std::bit_ceil(size_t(num_blocks) * 2) - 1),
      entries_(memory, mask_ + 1),
      meta_(num_blocks),
      tokens_(memory, size_t(num_blocks) * block_size) {
  OCTAVO_CHECK(entries_.data() && tokens_.data(), "no memory for the prefix map");
  for (size_t i = 0; i <= mask_; ++i) entries_[i] = Entry{};
}

uint64_t PrefixMap::Mix(const Hash128& hash, int32_t group) {
  // The hash is uniform already; the group only has to move it.
  return hash.lo ^ (uint64_t(group) * 0x9E3779B97F4A7C15ull);
}

size_t PrefixMap::Locate(const Hash128& hash, int32_t group, uint64_t mixed) const {
  const uint32_t tag = Tag(mixed);
  size_t i = Home(mixed);
  while (entries_[i].block >= 0) {
    if (entries_[i].tag == tag) {
      const Meta& m = meta_[entries_[i].block];
      if (m.hash == hash && m.group == group) return i;
    }
    i = (i + 1) & mask_;
  }
  return i;
}

bool PrefixMap::SameContent(int32_t block, const PrefixKey& key) const {
  return meta_[block].parent == key.parent &&
         std::memcmp(TokensOf(block), key.tokens.data(), key.tokens.size_bytes()) == 0;
}

BlockId PrefixMap::Find(const PrefixKey& key) const {
  const size_t i = Locate(key.hash, key.group, Mix(key.hash, key.group));
  const int32_t block = entries_[i].block;
  if (block < 0 || !SameContent(block, key)) return kNoBlock;
  return BlockId{block};
}

void PrefixMap::PrefetchEntry(const Hash128& hash, int32_t group) const {
  __builtin_prefetch(&entries_[Home(Mix(hash, group))]);
}

void PrefixMap::PrefetchKey(const Hash128& hash, int32_t group) const {
  // A third of the keys do not stand at home, so the tag decides.
  const uint64_t mixed = Mix(hash, group);
  size_t i = Home(mixed);
  while (entries_[i].block >= 0 && entries_[i].tag != Tag(mixed)) i = (i + 1) & mask_;
  const int32_t block = entries_[i].block;
  if (block < 0) return;
  __builtin_prefetch(&meta_[block]);
  __builtin_prefetch(TokensOf(block));
}

void PrefixMap::PrefetchInsert(BlockId block, const Hash128& hash, int32_t group) const {
  __builtin_prefetch(&entries_[Home(Mix(hash, group))], 1);
  __builtin_prefetch(&meta_[Index(block)], 1);
  __builtin_prefetch(TokensOf(Index(block)), 1);
}

PrefixMap::InsertResult PrefixMap::Insert(BlockId block, const PrefixKey& key) {
  const int32_t b = Index(block);
  OCTAVO_CHECK(!Contains(block), "a block is filed under one content at a time");
  OCTAVO_CHECK(key.tokens.size() == size_t(block_size_), "only full blocks are filed");
  const uint64_t mixed = Mix(key.hash, key.group);
  const size_t i = Locate(key.hash, key.group, mixed);
  const int32_t head = entries_[i].block;
  if (head >= 0 && !SameContent(head, key)) return InsertResult::kCollision;

  Meta& m = meta_[b];
  m.hash = key.hash;
  m.parent = key.parent;
  m.group = key.group;
  m.start = key.start;
  std::memcpy(TokensOf(b), key.tokens.data(), key.tokens.size_bytes());
  ++size_;
  if (head < 0) {
    entries_[i] = {Tag(mixed), b};
    m.ring_next = m.ring_prev = b;
    return InsertResult::kFirst;
  }
  m.ring_prev = head;
  m.ring_next = meta_[head].ring_next;
  meta_[m.ring_next].ring_prev = b;
  meta_[head].ring_next = b;
  return InsertResult::kCopy;
}

bool PrefixMap::Remove(BlockId block) {
  OCTAVO_CHECK(Contains(block), "removing a block that is not filed");
  const int32_t b = Index(block);
  Meta& m = meta_[b];
  const size_t i = Locate(m.hash, m.group, Mix(m.hash, m.group));
  const int32_t other = m.ring_next;
  const bool last = other == b;
  if (last) {
    EraseEntry(i);
  } else {
    meta_[m.ring_prev].ring_next = m.ring_next;
    meta_[m.ring_next].ring_prev = m.ring_prev;
    if (entries_[i].block == b) entries_[i].block = other;
  }
  m.ring_next = m.ring_prev = -1;
  --size_;
  return last;
}

void PrefixMap::EraseEntry(size_t hole) {
  // Backward shift: an entry may fill the hole when its home is not between the hole and itself.
  size_t i = hole;
  for (;;) {
    i = (i + 1) & mask_;
    if (entries_[i].block < 0) break;
    const Meta& m = meta_[entries_[i].block];
    const size_t home = Home(Mix(m.hash, m.group));
    if (((i - home) & mask_) >= ((i - hole) & mask_)) {
      entries_[hole] = entries_[i];
      hole = i;
    }
  }
  entries_[hole] = Entry{};
}

PrefixKey PrefixMap::KeyOf(BlockId block) const {
  const Meta& m = meta_[Index(block)];
  return {m.hash, m.parent, m.group, {TokensOf(Index(block)), size_t(block_size_)}, m.start};
}

}  // namespace octavo::kv
