// EncoderCache: which images and audio clips have their embeddings at hand, and which go next.
//
// It counts in embeddings and holds none: an entry is a small number under which an executor keeps
// them. Entries are found by content hash and counted by use; those in use stay, the others go in
// the order of their last release when room is needed. Every call is O(1) but for the evictions it
// causes; nothing but EvictAgain allocates after construction. One thread.
//
// Invariants (CheckInvariants): embeddings of all entries plus free() is the capacity; an entry is
// on the list of the released exactly when nobody uses it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/hash.h"

namespace octavo::encoder {

class EncoderCache {
 public:
  static constexpr int32_t kNone = -1;

  // `capacity` in embeddings; 0: nothing can be kept.
  explicit EncoderCache(int32_t capacity);

  int32_t capacity() const { return capacity_; }
  int32_t free() const { return free_; }
  // Embeddings that Insert can make room for: free ones and those nobody uses.
  int32_t available() const { return free_ + released_; }
  int32_t size() const { return size_; }              // entries
  int64_t total_uses() const { return total_uses_; }  // of all entries

  // The entry of this content, or kNone.
  int32_t Find(const Hash128& hash) const;
  int32_t embeddings(int32_t entry) const { return entries_[entry].embeddings; }
  int32_t uses(int32_t entry) const { return entries_[entry].uses; }
  uint64_t step(int32_t entry) const { return entries_[entry].step; }

  // A new entry, used once, that `step` encodes. Evicts what was released longest ago.
  // REQUIRES: Find(hash) is kNone; 1 <= embeddings <= available().
  int32_t Insert(const Hash128& hash, int32_t embeddings, uint64_t step);
  void Use(int32_t entry);
  void Release(int32_t entry);  // REQUIRES: uses(entry) > 0
  // The step that was to encode it did not: nobody finds it any more, and it goes with its last
  // use.
  void Forget(int32_t entry);
  // Forgets what nobody uses.
  void Clear();

  // Entries that were evicted since ClearEvicted; a number may have been given out again since.
  std::span<const int32_t> evicted() const { return evicted_; }
  void ClearEvicted() { evicted_.clear(); }
  // Names these as evicted again: who was told may not have listened. REQUIRES: none is given out.
  void EvictAgain(std::span<const int32_t> entries);

  // Aborts with a message when an invariant does not hold.
  void CheckInvariants() const;

 private:
  struct Entry {
    Hash128 hash;
    int32_t embeddings = 0;  // 0: the entry is not given out
    int32_t uses = 0;
    int32_t prev = kNone;  // of the released, the longest ago first
    int32_t next = kNone;
    uint64_t step = 0;
    bool findable = false;
  };

  size_t Home(const Hash128& hash) const { return hash.lo & mask_; }
  size_t Locate(const Hash128& hash) const;
  void Unfile(int32_t entry);
  void Link(int32_t entry);
  void Unlink(int32_t entry);
  void Evict(int32_t entry);

  int32_t capacity_;
  int32_t free_;
  int32_t released_ = 0;  // embeddings of entries that nobody uses
  int32_t size_ = 0;
  int64_t total_uses_ = 0;
  size_t mask_;
  std::vector<int32_t> slots_;  // by hash, linear probing, at most half full
  std::vector<Entry> entries_;  // the last one is the sentinel of the released
  std::vector<int32_t> spare_;  // entries not given out
  std::vector<int32_t> evicted_;
};

}  // namespace octavo::encoder
