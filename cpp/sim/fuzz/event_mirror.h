// EventMirror: what a router that reads the KV events believes is cached.
#pragma once

#include <span>
#include <unordered_set>

#include "octavo/kv_event.h"

namespace octavo::sim {

class EventMirror {
 public:
  // False when an event contradicts those before it: content stored twice, or removed unknown.
  bool Apply(std::span<const KvEvent> events) {
    for (const KvEvent& e : events) {
      if (e.kind == KvEventKind::kCleared) {
        held_.clear();
        continue;
      }
      // 128 bits of hash, folded with the group: enough to tell contents of one run apart.
      const uint64_t key = e.hash[0] ^ (e.hash[1] * 3) ^ (uint64_t(e.group) << 60);
      const bool fits =
          e.kind == KvEventKind::kStored ? held_.insert(key).second : held_.erase(key) == 1;
      if (!fits) return false;
    }
    return true;
  }
  size_t size() const { return held_.size(); }

 private:
  std::unordered_set<uint64_t> held_;
};

}  // namespace octavo::sim
