// TransferTable: the loads and saves that hold blocks, by their ids. Bounded; a place that was used
// keeps its memory, so that a warm table allocates nothing.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "octavo/kv_connector.h"
#include "sched/request.h"

namespace octavo::sched {

enum class TransferPhase : uint8_t {
  kFree,
  kFenced,     // a load that starts once no open step can read its blocks
  kLoading,    // begun; a request waits for it
  kLoaded,     // its KV is cached, and held until the request is admitted or room is needed
  kSaving,     // a released prefix
  kCancelled,  // nobody waits, but the connector has not let go of the blocks yet
};

struct Transfer {
  uint64_t id = 0;
  TransferPhase phase = TransferPhase::kFree;
  bool of_victim = false;  // a save whose end gives a running request room
  int32_t hold = -1;       // the blocks, see KvManager
  int32_t first_token = 0;
  int32_t last_token = 0;
  uint64_t after_step = 0;  // kFenced: begins when this step is over
  int64_t deadline_us = 0;
  Hash128 content;             // of the first unit that a load brings
  Request* request = nullptr;  // of a load
  std::vector<KvBlock> blocks;
};

class TransferTable {
 public:
  explicit TransferTable(int32_t limit) : places_(limit) {
    free_.reserve(limit);
    for (int32_t i = limit; i-- > 0;) free_.push_back(i);
  }

  // Null when as many transfers are under way as there may be.
  Transfer* Create() {
    if (free_.empty()) return nullptr;
    Transfer& t = places_[free_.back()];
    free_.pop_back();
    t.id = ++last_id_;
    t.of_victim = false;
    t.hold = -1;
    t.request = nullptr;
    t.blocks.clear();
    return &t;
  }
  void Free(Transfer& t) {
    t.phase = TransferPhase::kFree;
    free_.push_back(static_cast<int32_t>(&t - places_.data()));
  }
  Transfer* Find(uint64_t id) {
    for (Transfer& t : places_) {
      if (t.id == id && t.phase != TransferPhase::kFree) return &t;
    }
    return nullptr;
  }
  std::span<Transfer> places() { return places_; }
  std::span<const Transfer> places() const { return places_; }
  int32_t active() const { return static_cast<int32_t>(places_.size() - free_.size()); }
  int32_t limit() const { return static_cast<int32_t>(places_.size()); }

 private:
  std::vector<Transfer> places_;
  std::vector<int32_t> free_;
  uint64_t last_id_ = 0;
};

}  // namespace octavo::sched
