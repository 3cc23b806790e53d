#include "batch/packing.h"

#include <cstring>
#include <random>
#include <vector>

#include "doctest/doctest.h"

namespace octavo::batch {
namespace {

EngineConfig Config() {
  EngineConfig c;
  c.num_blocks = 10;
  c.block_size = 4;
  c.vocab_size = 50;
  c.max_model_len = 30;
  c.max_num_seqs = 6;
  c.max_num_batched_tokens = 40;
  return c;
}

// A layout of all that can be packed, with gaps that nobody may write to.
PackedLayout LayoutOf(const StepShape& shape) {
  PackedLayout layout;
  layout.shape = shape;
  int64_t at = 8;
  for (const ColumnSpec& spec : kColumns) {
    if (!IsPacked(spec.column)) continue;
    layout.at(spec.column) = at;
    at += 8 * (2 + std::max(shape.tokens, std::max(shape.rows, shape.samples)));
    at += 8;
  }
  layout.landing = at;
  layout.bytes = at + 16;
  return layout;
}

void Scramble(const Arena& arena, int slot, std::mt19937& draw) {
  for (const ColumnSpec& spec : kColumns) {
    auto* bytes = arena.At<unsigned char>(slot, spec.column);
    const size_t size = arena.capacity(spec.column) * size_t(DTypeSize(spec.dtype));
    for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<unsigned char>(draw());
  }
}

template <typename T>
T Entry(const std::vector<std::byte>& piece, int64_t offset, int64_t i) {
  T value;
  std::memcpy(&value, piece.data() + offset + i * int64_t(sizeof(T)), sizeof(T));
  return value;
}

// A column of the piece: the step's own entries, then `padding`.
template <typename T>
void CheckColumn(const Arena& arena, const StepPlan& plan, PackedLayout& layout,
                 const std::vector<std::byte>& piece, Column column, int32_t used, int32_t room,
                 T padding) {
  CAPTURE(int(column));
  for (int32_t i = 0; i < room; ++i) {
    const T want = i < used ? arena.At<T>(plan.slot, column)[i] : padding;
    const T got = Entry<T>(piece, layout.at(column), i);
    CHECK(std::memcmp(&want, &got, sizeof(T)) == 0);
  }
  const auto* behind = piece.data() + layout.at(column) + room * int64_t(sizeof(T));
  CHECK(*behind == std::byte{0xAB});
}

TEST_CASE("a packed step has its own entries and padding that belongs to nobody") {
  const EngineConfig config = Config();
  const Arena arena(config);
  for (uint32_t seed = 0; seed < 50; ++seed) {
    CAPTURE(seed);
    std::mt19937 draw(seed);
    StepPlan plan;
    plan.slot = int32_t(draw() % 2);
    plan.num_rows = 1 + int32_t(draw() % 6);
    plan.num_tokens = plan.num_rows + int32_t(draw() % 30);
    plan.num_samples = int32_t(draw() % uint32_t(plan.num_rows + 1));
    plan.all_greedy = seed % 2 == 0;
    const StepShape shape{plan.num_tokens + int32_t(draw() % 3),
                          plan.num_rows + int32_t(draw() % 3),
                          plan.num_samples + int32_t(draw() % 3), 0, plan.all_greedy};
    PackedLayout layout = LayoutOf(shape);
    if (shape.greedy) layout.at(Column::kTemperature) = kNotPacked;
    Scramble(arena, plan.slot, draw);
    for (int32_t s = 0; s < plan.num_samples; ++s) {  // every other one has a penalty
      arena.At<float>(plan.slot, Column::kPresence)[s] = s % 2 == 0 ? 0.5f : 0.0f;
      arena.At<float>(plan.slot, Column::kFrequency)[s] = 0;
      arena.At<float>(plan.slot, Column::kRepetition)[s] = 1;
    }
    std::vector<std::byte> piece(size_t(layout.bytes), std::byte{0xAB});
    Pack(arena, plan, layout, 99, int64_t{1} << 40, piece.data());

    const auto n = plan.num_tokens, r = plan.num_rows, s = plan.num_samples;
    const auto check = [&](Column column, int32_t used, int32_t room, auto padding) {
      CheckColumn(arena, plan, layout, piece, column, used, room, padding);
    };
    check(Column::kTokenId, n, shape.tokens, int32_t{0});
    check(Column::kPosition, n, shape.tokens, int32_t{0});
    check(Column::kQueryStart, r + 1, shape.rows + 2, n);
    check(Column::kRowSlot, r, shape.rows + 1, int32_t{99});
    check(Column::kSeqLen, r, shape.rows + 1, int32_t{0});
    check(Column::kSampleToken, s, shape.samples, int32_t{0});
    check(Column::kSampleRow, s, shape.samples, shape.rows);
    CHECK(Entry<int64_t>(piece, layout.landing, 0) == int64_t{1} << 40);
    if (shape.greedy) continue;
    check(Column::kTemperature, s, shape.samples, 0.0f);
    check(Column::kTopP, s, shape.samples, 1.0f);
    check(Column::kRepetition, s, shape.samples, 1.0f);
    check(Column::kSeed, s, shape.samples, uint64_t{0});
    check(Column::kBiasStart, s + 1, shape.samples + 1,
          arena.At<int32_t>(plan.slot, Column::kBiasStart)[s]);
    check(Column::kHistory, 0, shape.samples, uint64_t{0});
    check(Column::kMask, 0, shape.samples, uint64_t{0});
    for (int32_t i = 0; i < s; ++i) {  // who has no penalty reads no history
      const int32_t known = arena.At<int32_t>(plan.slot, Column::kHistoryLen)[i];
      const int32_t got = Entry<int32_t>(piece, layout.at(Column::kHistoryLen), i);
      CHECK(got == (i % 2 == 0 ? known : 0));
    }
  }
}

TEST_CASE("a step reads by address when a sample has a penalty or a mask") {
  const EngineConfig config = Config();
  const Arena arena(config);
  StepPlan plan;
  plan.num_samples = 2;
  plan.all_greedy = false;
  const auto set = [&](float presence, float repetition, uint64_t mask) {
    for (int i = 0; i < 3; ++i) {
      arena.At<float>(0, Column::kPresence)[i] = i == 1 ? presence : 0;
      arena.At<float>(0, Column::kFrequency)[i] = 0;
      arena.At<float>(0, Column::kRepetition)[i] = i == 1 ? repetition : 1;
      arena.At<uint64_t>(0, Column::kMask)[i] = i == 1 ? mask : 0;
    }
    return ReadsByAddress(arena, plan);
  };
  CHECK_FALSE(set(0, 1, 0));
  CHECK(set(0.5f, 1, 0));
  CHECK(set(0, 1.2f, 0));
  CHECK(set(0, 1, 4096));
  plan.all_greedy = true;
  CHECK_FALSE(ReadsByAddress(arena, plan));
}

}  // namespace
}  // namespace octavo::batch
