#include "kv/prefix_map.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"

namespace octavo::kv {

namespace {

constexpr char kWanted[] = "the prefix map";
constexpr char kRemedy[] = "lower num_blocks, or free some memory";

}  // namespace

PrefixMap::PrefixMap(int32_t num_blocks, int32_t block_size, HostMemory& memory, bool starts)
    : block_size_(block_size),
      mask_(std::bit_ceil(size_t(num_blocks) * 2) - 1),
      entries_(TakeArray<Entry>(memory, mask_ + 1, kWanted, kRemedy)),
      meta_(TakeArray<Meta>(memory, num_blocks, kWanted, kRemedy)),
      tokens_(TakeArray<int32_t>(memory, size_t(num_blocks) * block_size, kWanted, kRemedy)),
      starts_(starts ? num_blocks : 0) {
  // A block's hash, tokens and neighbours lie anywhere: with small pages most of what filing and
  // forgetting a block costs are walks through page tables.
  PreferLargePages(entries_.data(), entries_.size() * sizeof(Entry));
  PreferLargePages(meta_.data(), meta_.size() * sizeof(Meta));
  PreferLargePages(tokens_.data(), tokens_.size() * sizeof(int32_t));
  for (size_t i = 0; i <= mask_; ++i) entries_[i] = Entry{};
  for (size_t b = 0; b < meta_.size(); ++b) meta_[b] = Meta{};
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

bool PrefixMap::SameTokens(int32_t block, const PrefixKey& key) const {
  return meta_[block].parent == key.parent && meta_[block].count == int(key.tokens.size()) &&
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
  OCTAVO_CHECK(key.tokens.size() <= size_t(block_size_), "a block holds more than it can");
  const uint64_t mixed = Mix(key.hash, key.group);
  const size_t i = Locate(key.hash, key.group, mixed);
  const int32_t head = entries_[i].block;
  if (head >= 0 && !SameContent(head, key)) {
    return SameTokens(head, key) ? InsertResult::kOrphan : InsertResult::kCollision;
  }
  Write(b, key, true);
  Meta& m = meta_[b];
  if (head < 0) {
    m.serial = next_serial_++;
    entries_[i] = {Tag(mixed), b};
    m.ring_next = m.ring_prev = b;
    if (starts_.enabled()) starts_.Add(block, StartKey(key.parent, key.group, key.tokens[0]));
    return InsertResult::kFirst;
  }
  // Only the first copy is in the index: a later one may hold what no step has written yet.
  m.serial = meta_[head].serial;
  m.ring_prev = head;
  m.ring_next = meta_[head].ring_next;
  meta_[m.ring_next].ring_prev = b;
  meta_[head].ring_next = b;
  return InsertResult::kCopy;
}

void PrefixMap::Write(int32_t b, const PrefixKey& key, bool whole) {
  Meta& m = meta_[b];
  m.hash = key.hash;
  m.parent = key.parent;
  m.before = key.before;
  m.group = static_cast<int8_t>(key.group);
  m.whole = whole;
  m.count = static_cast<int16_t>(key.tokens.size());
  m.start = key.start;
  std::memcpy(TokensOf(b), key.tokens.data(), key.tokens.size_bytes());
  ++size_;
}

BlockId PrefixMap::Place(const PrefixKey& key) const {
  return BlockId{entries_[Locate(key.hash, key.group, Mix(key.hash, key.group))].block};
}

BlockId PrefixMap::FindUnlinked(const PrefixKey& key) const {
  const BlockId block = Place(key);
  return block != kNoBlock && SameTokens(Index(block), key) ? block : kNoBlock;
}

uint64_t PrefixMap::StartKey(const Hash128& parent, int32_t group, int32_t first_token) {
  uint64_t x = Mix(parent, group) ^ static_cast<uint64_t>(first_token) * 0xD6E8FEB86659FD93ull;
  return x ^ x >> 32;
}

PrefixMap::Start PrefixMap::FindStart(const PrefixKey& key, int64_t fence) const {
  Start best;
  if (!starts_.enabled() || key.tokens.empty()) return best;
  const int32_t wanted = static_cast<int32_t>(key.tokens.size());
  int looked_at = 0;
  starts_.ForEach(StartKey(key.parent, key.group, key.tokens[0]), [&](BlockId b) {
    const Meta& m = meta_[Index(b)];
    const int32_t* const tokens = TokensOf(Index(b));
    if (m.before != key.before || m.group != key.group || !(m.parent == key.parent) ||
        tokens[0] != key.tokens[0]) {
      return true;
    }
    if (++looked_at > kMaxSiblings) return false;
    if (m.serial >= fence) return true;
    const int32_t most = std::min(wanted, int32_t{m.count});
    const int32_t shared = static_cast<int32_t>(
        std::mismatch(tokens, tokens + most, key.tokens.data()).first - tokens);
    if (shared > best.tokens) best = {b, shared};
    return best.tokens < wanted;
  });
  return best;
}

bool PrefixMap::InsertStart(BlockId block, const PrefixKey& key) {
  OCTAVO_CHECK(!Contains(block), "a block is filed under one content at a time");
  if (!starts_.enabled()) return false;
  if (FindStart(key, next_serial_).tokens == static_cast<int32_t>(key.tokens.size())) return false;
  Write(Index(block), key, false);
  Meta& m = meta_[Index(block)];
  m.serial = next_serial_++;
  m.ring_next = m.ring_prev = Index(block);
  starts_.Add(block, StartKey(key.parent, key.group, key.tokens[0]));
  return true;
}

bool PrefixMap::Remove(BlockId block) {
  OCTAVO_CHECK(Contains(block), "removing a block that is not filed");
  const int32_t b = Index(block);
  Meta& m = meta_[b];
  if (starts_.Contains(block)) starts_.Remove(block);
  const int32_t other = m.ring_next;
  const bool last = other == b;
  const size_t i = m.whole ? Locate(m.hash, m.group, Mix(m.hash, m.group)) : 0;
  if (last) {
    if (m.whole) EraseEntry(i);
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
    const size_t home = entries_[i].tag & mask_;
    if (((i - home) & mask_) >= ((i - hole) & mask_)) {
      entries_[hole] = entries_[i];
      hole = i;
    }
  }
  entries_[hole] = Entry{};
}

PrefixKey PrefixMap::KeyOf(BlockId block) const {
  const Meta& m = meta_[Index(block)];
  return {m.hash, m.parent, m.group, {TokensOf(Index(block)), size_t(m.count)}, m.start, m.before};
}

}  // namespace octavo::kv
