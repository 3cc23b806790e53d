#include "sim/fuzz/event_reader.h"

#include "base/check.h"

namespace octavo::sim {

void EventReader::Read() {
  if (!engine_->config().enable_kv_events) return;
  if (asleep_ > 0) {
    --asleep_;
    return;
  }
  engine_->TakeEvents(&events_);
  const uint64_t dropped = engine_->kv().events().dropped();
  if (dropped > dropped_) {
    ++(*counts_)[size_t(OpKind::kEventsDropped)];
    dropped_ = dropped;
    stale_ = true;
  }
  const Status listed = engine_->CachedContent(&content_);
  OCTAVO_CHECK(listed.ok(), "no memory for a life");
  if (stale_) {
    KvEvent cleared{};
    cleared.kind = KvEventKind::kCleared;
    events_ = content_;
    events_.insert(events_.begin(), cleared);
    stale_ = false;
  }
  OCTAVO_CHECK(mirror_.Apply(events_), "the KV events contradict each other");
  OCTAVO_CHECK(mirror_.Equals(content_), "the KV events tell of another cache than the engine has");
}

bool EventReader::LoseBatch() {
  engine_->TakeEvents(&events_);
  if (events_.empty()) return false;
  stale_ = true;
  return true;
}

void EventReader::Restart() {
  mirror_ = {};
  stale_ = true;
}

}  // namespace octavo::sim
