// EventReader: a publisher of KV events and its subscriber in one, who reads late, loses batches
// and is started again, and whose picture must then be exact again (ADR 12).
#pragma once

#include <cstdint>
#include <vector>

#include "engine/core_engine.h"
#include "octavo/kv_event.h"
#include "sim/fuzz/event_mirror.h"
#include "sim/fuzz/op.h"

namespace octavo::sim {

class EventReader {
 public:
  // Both must outlive it; `counts` gets what the engine dropped.
  EventReader(engine::CoreEngine& engine, OpCounts* counts) : engine_(&engine), counts_(counts) {}

  // Takes what there is and compares the picture with the engine's map.
  void Read();
  // Is not there for the next `reads`.
  void Sleep(int32_t reads) { asleep_ = reads; }
  void Wake() { asleep_ = 0; }
  // Takes events that never arrive. False: there were none.
  bool LoseBatch();
  // A subscriber that knows nothing.
  void Restart();

 private:
  engine::CoreEngine* engine_;
  OpCounts* counts_;
  EventMirror mirror_;
  std::vector<KvEvent> events_;
  std::vector<KvEvent> content_;
  uint64_t dropped_ = 0;
  bool stale_ = false;  // its picture cannot be mended by what comes next
  int32_t asleep_ = 0;
};

}  // namespace octavo::sim
