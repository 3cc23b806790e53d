#include "sim/fuzz/event_mirror.h"

#include <vector>

#include "doctest/doctest.h"

namespace octavo::sim {
namespace {

KvEvent Event(KvEventKind kind, uint64_t content, int32_t group = 0) {
  return {kind, group, BlockId{1}, {content, content * 7}, {0, 0}, 0, {}, {}};
}

TEST_CASE("a picture of the cache is what was stored and not removed") {
  EventMirror mirror;
  using enum KvEventKind;
  CHECK(mirror.Apply(std::vector{Event(kStored, 1), Event(kStored, 2), Event(kStored, 1, 1)}));
  CHECK(mirror.Apply(std::vector{Event(kRemoved, 2)}));
  CHECK(mirror.Equals(std::vector{Event(kStored, 1, 1), Event(kStored, 1)}));
  CHECK_FALSE(mirror.Equals(std::vector{Event(kStored, 1)}));
  CHECK_FALSE(mirror.Equals(std::vector{Event(kStored, 1), Event(kStored, 2)}));
  CHECK(mirror.Apply(std::vector{Event(kCleared, 0), Event(kStored, 5)}));
  CHECK(mirror.Equals(std::vector{Event(kStored, 5)}));
}

TEST_CASE("events that contradict those before them are noticed") {
  EventMirror mirror;
  CHECK(mirror.Apply(std::vector{Event(KvEventKind::kStored, 1)}));
  CHECK_FALSE(mirror.Apply(std::vector{Event(KvEventKind::kStored, 1)}));
  CHECK_FALSE(mirror.Apply(std::vector{Event(KvEventKind::kRemoved, 2)}));
}

}  // namespace
}  // namespace octavo::sim
