#include "batch/arena.h"

#include <cstdint>
#include <set>
#include <string_view>

#include "doctest/doctest.h"

namespace octavo::batch {
namespace {

EngineConfig Config() {
  EngineConfig c;
  c.max_num_seqs = 3;
  c.max_num_batched_tokens = 10;
  return c;
}

TEST_CASE("every column has its own aligned place of the size that its extent needs") {
  const EngineConfig config = Config();
  const Arena arena(config);
  size_t end = 0;
  for (const ColumnSpec& spec : kColumns) {
    CAPTURE(spec.name);
    CHECK(arena.offset(spec.column) % Arena::kAlignment == 0);
    CHECK(arena.offset(spec.column) >= end);
    CHECK(arena.capacity(spec.column) == Capacity(spec.extent, config));
    end = arena.offset(spec.column) + arena.capacity(spec.column) * DTypeSize(spec.dtype);
  }
  CHECK(arena.bytes() >= end);
}

TEST_CASE("columns have different names") {
  std::set<std::string_view> names;
  for (const ColumnSpec& spec : kColumns) names.insert(spec.name);
  CHECK(names.size() == kNumColumns);
}

TEST_CASE("the host slots share nothing but their layout") {
  const Arena arena(Config());
  arena.At<int32_t>(0, Column::kTokenId)[0] = 7;
  arena.At<int32_t>(1, Column::kTokenId)[0] = 9;
  CHECK(arena.At<int32_t>(0, Column::kTokenId)[0] == 7);
  const auto base = [&](int slot) {
    return reinterpret_cast<uintptr_t>(arena.At<int32_t>(slot, Column::kTokenId));
  };
  const auto later = [&](int slot) {
    return reinterpret_cast<uintptr_t>(arena.At<int32_t>(slot, Column::kScoreTop));
  };
  CHECK(later(0) - base(0) == later(1) - base(1));
}

TEST_CASE("sample columns have room for every draft, but for no more samples than tokens") {
  EngineConfig config = Config();
  config.max_draft_tokens = 2;
  CHECK(Capacity(Extent::kSample, config) == 9);
  CHECK(Capacity(Extent::kSamplePlusOne, config) == 10);
  CHECK(Capacity(Extent::kEdit, config) == size_t{9} * kMaxEditsPerRow);
  CHECK(Capacity(Extent::kRow, config) == 3);
  config.max_draft_tokens = 4;
  CHECK(Capacity(Extent::kSample, config) == 10);
}

TEST_CASE("there is a host slot for each step that may be open") {
  EngineConfig config = Config();
  for (int32_t steps = 1; steps <= kMaxStepsInFlight; ++steps) {
    config.max_steps_in_flight = steps;
    CHECK(Arena(config).num_slots() == steps);
  }
}

TEST_CASE("row columns that end ranges have one entry more than rows") {
  CHECK(Capacity(Extent::kRow, Config()) == 3);
  CHECK(Capacity(Extent::kRowPlusOne, Config()) == 4);
  CHECK(Capacity(Extent::kSamplePlusOne, Config()) == 4);
  CHECK(Capacity(Extent::kToken, Config()) == 10);
  CHECK(Capacity(Extent::kEdit, Config()) == size_t{3} * kMaxEditsPerRow);
}

}  // namespace
}  // namespace octavo::batch
