// KvEventLog: a bounded record of what entered and left the prefix cache, drained by the front end.
//
// Full, or without memory, it drops the newest events and counts them; the scheduler never waits
// for a reader. Off by default; switched on, recording a stored block allocates its token list.
#pragma once

#include <cstdint>
#include <vector>

#include "kv/prefix_map.h"
#include "octavo/kv_event.h"

namespace octavo::kv {

KvEvent MakeKvEvent(KvEventKind kind, BlockId block, const PrefixKey& key);

class KvEventLog {
 public:
  // Of the default configuration.
  static constexpr size_t kCapacity = 1 << 16;

  explicit KvEventLog(bool enabled, size_t capacity = kCapacity)
      : enabled_(enabled), capacity_(capacity) {}

  void Stored(BlockId block, const PrefixKey& key) { Add(KvEventKind::kStored, block, key); }
  void Removed(BlockId block, const PrefixKey& key) { Add(KvEventKind::kRemoved, block, key); }
  void Cleared() { Add(KvEventKind::kCleared, kNullBlock, {}); }

  void Take(std::vector<KvEvent>* events);
  uint64_t dropped() const { return dropped_; }

 private:
  void Add(KvEventKind kind, BlockId block, const PrefixKey& key);

  bool enabled_;
  size_t capacity_;
  std::vector<KvEvent> events_;
  uint64_t dropped_ = 0;
};

}  // namespace octavo::kv
