// EventMirror: what a router that reads the KV events believes is cached.
#pragma once

#include <algorithm>
#include <cstdint>
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
      const bool fits =
          e.kind == KvEventKind::kStored ? held_.insert(Key(e)).second : held_.erase(Key(e)) == 1;
      if (!fits) return false;
    }
    return true;
  }
  // Whether it believes in this content and in no other. REQUIRES: no content twice.
  bool Equals(std::span<const KvEvent> content) const {
    return content.size() == held_.size() &&
           std::all_of(content.begin(), content.end(),
                       [&](const KvEvent& e) { return held_.contains(Key(e)); });
  }

 private:
  // 128 bits of hash, folded with the group: enough to tell contents of one run apart.
  static uint64_t Key(const KvEvent& e) {
    return e.hash[0] ^ (e.hash[1] * 3) ^ (uint64_t(e.group) << 60);
  }

  std::unordered_set<uint64_t> held_;
};

}  // namespace octavo::sim
