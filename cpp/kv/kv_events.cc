#include "kv/kv_events.h"

#include <new>
#include <utility>

namespace octavo::kv {
namespace {

KvEvent MakeEvent(KvEventKind kind, BlockId block, const PrefixKey& key) {
  return {kind,      key.group, block, {key.hash.lo, key.hash.hi}, {key.parent.lo, key.parent.hi},
          key.start, {},        {}};
}

// The part of a sequence's keys that belongs to one of its blocks; null: none. An item without a
// span, which all tokens see, belongs to the first.
std::shared_ptr<const KvExtraKeys> Cut(const KvExtraKeys& sequence, const PrefixKey& key) {
  const int32_t end = key.start + static_cast<int32_t>(key.tokens.size());
  KvExtraKeys mine;
  if (key.start == 0) mine.salt = sequence.salt;
  for (const KvItemKey& item : sequence.items) {
    if (item.start >= end) break;
    const bool everywhere = item.length == 0;
    if (everywhere ? key.start > 0 : item.start + item.length <= key.start) continue;
    mine.items.push_back({{item.hash[0], item.hash[1]}, item.start - key.start, item.length});
  }
  return mine.empty() ? nullptr : std::make_shared<const KvExtraKeys>(std::move(mine));
}

}  // namespace

bool KvEventLog::HasRoom() {
  if (events_.size() < capacity_) return true;
  ++dropped_;
  return false;
}

void KvEventLog::AddFiled(BlockId block, const PrefixKey& key, const KvExtraKeys* sequence,
                          bool first) {
  try {
    if (sequence) extra_[Index(block)] = Cut(*sequence, key);
    if (first && HasRoom()) events_.push_back(StoredEvent(block, key));
  } catch (const std::bad_alloc&) {
    ++dropped_;  // as if the log were full
  }
}

void KvEventLog::AddLeft(BlockId block, const PrefixKey& key, bool last) {
  extra_[Index(block)].reset();
  if (last) AddPlain(KvEventKind::kRemoved, block, key);
}

void KvEventLog::AddPlain(KvEventKind kind, BlockId block, const PrefixKey& key) {
  if (!HasRoom()) return;
  try {
    events_.push_back(MakeEvent(kind, block, key));
  } catch (const std::bad_alloc&) {
    ++dropped_;
  }
}

void KvEventLog::Cleared() {
  if (!enabled_) return;
  for (auto& extra : extra_) extra.reset();
  AddPlain(KvEventKind::kCleared, kNullBlock, {});
}

KvEvent KvEventLog::StoredEvent(BlockId block, const PrefixKey& key) const {
  KvEvent event = MakeEvent(KvEventKind::kStored, block, key);
  event.tokens.assign(key.tokens.begin(), key.tokens.end());
  if (enabled_) event.extra = extra_[Index(block)];
  return event;
}

void KvEventLog::Take(std::vector<KvEvent>* events) {
  events->clear();
  events->swap(events_);
}

}  // namespace octavo::kv
