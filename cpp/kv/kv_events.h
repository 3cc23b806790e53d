// KvEventLog: a bounded record of what entered and left the prefix cache, drained by the front end.
//
// Full, or without memory, it drops the newest events and counts them; the scheduler never waits
// for a reader. What a filed block is besides its tokens (salt, images) is kept here for as long as
// it is filed, so that all content can be told again after a loss. Off by default; switched on,
// recording a stored block allocates its token list.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kv/prefix_map.h"
#include "octavo/kv_event.h"

namespace octavo::kv {

class KvEventLog {
 public:
  // Of the default configuration.
  static constexpr size_t kCapacity = 1 << 16;

  // `num_blocks`: places of the pool, where it is enabled.
  explicit KvEventLog(bool enabled, int32_t num_blocks = 0, size_t capacity = kCapacity)
      : enabled_(enabled), capacity_(capacity), extra_(enabled ? num_blocks : 0) {}

  // A block was filed; `first`: no other holds its content. `sequence`: what the sequence that it
  // belongs to is besides its tokens, positions counted from its start; null: nothing.
  void Filed(BlockId block, const PrefixKey& key, const KvExtraKeys* sequence, bool first) {
    if (enabled_) AddFiled(block, key, sequence, first);
  }
  // A filed block left the map; `last`: none holds its content any more.
  void Left(BlockId block, const PrefixKey& key, bool last) {
    if (enabled_) AddLeft(block, key, last);
  }
  // Every block left.
  void Cleared();

  // The event that would store a filed block. Events must be on to know more than its tokens.
  KvEvent StoredEvent(BlockId block, const PrefixKey& key) const;
  void Take(std::vector<KvEvent>* events);
  uint64_t dropped() const { return dropped_; }

 private:
  void AddFiled(BlockId block, const PrefixKey& key, const KvExtraKeys* sequence, bool first);
  void AddLeft(BlockId block, const PrefixKey& key, bool last);
  void AddPlain(KvEventKind kind, BlockId block, const PrefixKey& key);
  bool HasRoom();

  bool enabled_;
  size_t capacity_;
  std::vector<std::shared_ptr<const KvExtraKeys>> extra_;  // [block], of what is filed
  std::vector<KvEvent> events_;
  uint64_t dropped_ = 0;
};

}  // namespace octavo::kv
