#include "encoder/encoder_cache.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "base/out_of_memory.h"

namespace octavo::encoder {

namespace {

constexpr char kWanted[] = "the encoder cache's entries";
constexpr char kRemedy[] = "lower encoder_cache_size, or free some memory";

}  // namespace

EncoderCache::EncoderCache(int32_t capacity)
    : capacity_(capacity),
      free_(capacity),
      mask_(std::bit_ceil(2 * size_t(std::max(capacity, 1))) - 1),
      slots_(TakeVector<int32_t>(mask_ + 1, kWanted, kRemedy, kNone)),
      entries_(TakeVector<Entry>(size_t(capacity) + 1, kWanted, kRemedy)) {
  // Every entry holds an embedding, so there are never more of them.
  spare_.reserve(size_t(capacity));
  for (int32_t e = capacity - 1; e >= 0; --e) spare_.push_back(e);
  evicted_.reserve(2 * size_t(capacity));
  entries_[capacity].prev = entries_[capacity].next = capacity;
}

size_t EncoderCache::Locate(const Hash128& hash) const {
  size_t i = Home(hash);
  while (slots_[i] != kNone && !(entries_[slots_[i]].hash == hash)) i = (i + 1) & mask_;
  return i;
}

int32_t EncoderCache::Find(const Hash128& hash) const { return slots_[Locate(hash)]; }

int32_t EncoderCache::Insert(const Hash128& hash, int32_t embeddings, uint64_t step) {
  OCTAVO_CHECK(embeddings >= 1 && embeddings <= available(), "an item does not fit the cache");
  while (free_ < embeddings) Evict(entries_[capacity_].next);
  const int32_t entry = spare_.back();
  spare_.pop_back();
  const size_t i = Locate(hash);
  OCTAVO_CHECK(slots_[i] == kNone, "an item has one entry");
  slots_[i] = entry;
  Entry& e = entries_[entry];
  e.hash = hash;
  e.embeddings = embeddings;
  e.uses = 1;
  ++total_uses_;
  e.step = step;
  e.findable = true;
  free_ -= embeddings;
  ++size_;
  return entry;
}

void EncoderCache::Use(int32_t entry) {
  ++total_uses_;
  if (entries_[entry].uses++ == 0) Unlink(entry);
}

void EncoderCache::Release(int32_t entry) {
  Entry& e = entries_[entry];
  OCTAVO_CHECK(e.uses > 0, "releasing an entry that nobody uses");
  --total_uses_;
  if (--e.uses > 0) return;
  Link(entry);
  if (!e.findable) Evict(entry);
}

void EncoderCache::Forget(int32_t entry) {
  Entry& e = entries_[entry];
  if (!e.findable) return;
  if (e.uses == 0) {
    Evict(entry);
  } else {
    Unfile(entry);
  }
}

void EncoderCache::Clear() {
  while (entries_[capacity_].next != capacity_) Evict(entries_[capacity_].next);
}

void EncoderCache::EvictAgain(std::span<const int32_t> entries) {
  for (const int32_t entry : entries) {
    OCTAVO_CHECK(entries_[entry].embeddings == 0, "an entry is evicted again that is given out");
    evicted_.push_back(entry);
  }
  std::sort(evicted_.begin(), evicted_.end());
  evicted_.erase(std::unique(evicted_.begin(), evicted_.end()), evicted_.end());
}

void EncoderCache::Unfile(int32_t entry) {
  entries_[entry].findable = false;
  size_t hole = Locate(entries_[entry].hash);
  // Backward shift: an entry may fill the hole when its home is not between the hole and itself.
  for (size_t i = (hole + 1) & mask_; slots_[i] != kNone; i = (i + 1) & mask_) {
    const size_t home = Home(entries_[slots_[i]].hash);
    if (((i - home) & mask_) >= ((i - hole) & mask_)) {
      slots_[hole] = slots_[i];
      hole = i;
    }
  }
  slots_[hole] = kNone;
}

void EncoderCache::Link(int32_t entry) {
  Entry& e = entries_[entry];
  Entry& sentinel = entries_[capacity_];
  e.prev = sentinel.prev;
  e.next = capacity_;
  entries_[e.prev].next = entry;
  sentinel.prev = entry;
  released_ += e.embeddings;
}

void EncoderCache::Unlink(int32_t entry) {
  Entry& e = entries_[entry];
  entries_[e.prev].next = e.next;
  entries_[e.next].prev = e.prev;
  e.prev = e.next = kNone;
  released_ -= e.embeddings;
}

void EncoderCache::Evict(int32_t entry) {
  Entry& e = entries_[entry];
  Unlink(entry);
  if (e.findable) Unfile(entry);
  free_ += e.embeddings;
  --size_;
  e.embeddings = 0;
  spare_.push_back(entry);
  evicted_.push_back(entry);
}

void EncoderCache::CheckInvariants() const {
  int32_t held = 0;
  int32_t released = 0;
  int32_t count = 0;
  for (int32_t entry = 0; entry < capacity_; ++entry) {
    const Entry& e = entries_[entry];
    if (e.embeddings == 0) continue;
    ++count;
    held += e.embeddings;
    if (e.uses == 0) released += e.embeddings;
    OCTAVO_CHECK((e.uses == 0) == (e.prev != kNone), "the list of the released is wrong");
    OCTAVO_CHECK(e.findable == (Find(e.hash) == entry), "an entry is lost");
    OCTAVO_CHECK(e.findable || e.uses > 0, "nobody uses or finds an entry");
  }
  OCTAVO_CHECK(count == size_ && held + free_ == capacity_ && released == released_,
               "the encoder cache counts other embeddings than it holds");
}

}  // namespace octavo::encoder
