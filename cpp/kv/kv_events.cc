#include "kv/kv_events.h"

#include <new>

namespace octavo::kv {

KvEvent MakeKvEvent(KvEventKind kind, BlockId block, const PrefixKey& key) {
  KvEvent event{
      kind,      key.group, block, {key.hash.lo, key.hash.hi}, {key.parent.lo, key.parent.hi},
      key.start, {}};
  if (kind == KvEventKind::kStored) event.tokens.assign(key.tokens.begin(), key.tokens.end());
  return event;
}

void KvEventLog::Add(KvEventKind kind, BlockId block, const PrefixKey& key) {
  if (!enabled_) return;
  if (events_.size() >= capacity_) {
    ++dropped_;
    return;
  }
  try {
    events_.push_back(MakeKvEvent(kind, block, key));
  } catch (const std::bad_alloc&) {
    ++dropped_;  // as if the log were full
  }
}

void KvEventLog::Take(std::vector<KvEvent>* events) {
  events->clear();
  events->swap(events_);
}

}  // namespace octavo::kv
