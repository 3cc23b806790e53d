#include "batch/packing.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "base/check.h"

namespace octavo::batch {
namespace {

// What stands in a column behind the step's own entries.
enum class Padding { kZero, kOne, kTokens, kSpareSlot, kSpareRow, kEdits };

struct PackedColumn {
  Column column;
  Padding padding = Padding::kZero;
};

constexpr PackedColumn kPacked[] = {
    {Column::kTokenId},
    {Column::kPosition},
    {Column::kQueryStart, Padding::kTokens},
    {Column::kRowSlot, Padding::kSpareSlot},
    {Column::kSeqLen},
    {Column::kSampleToken},
    {Column::kSampleRow, Padding::kSpareRow},
    {Column::kTemperature},
    {Column::kTopK},
    {Column::kTopP, Padding::kOne},
    {Column::kMinP},
    {Column::kPresence},
    {Column::kFrequency},
    {Column::kRepetition, Padding::kOne},
    {Column::kSeed},
    {Column::kSampleIndex},
    {Column::kHistory},
    {Column::kHistoryLen},
    {Column::kPromptLen},
    {Column::kMask},
    {Column::kBiasStart, Padding::kEdits},
};

bool IsAddress(Column column) { return column == Column::kHistory || column == Column::kMask; }

// Entries of a column that the step uses, and that the shape has room for.
struct Extents {
  int32_t used;
  int32_t room;
};

Extents ExtentsOf(Extent extent, const StepPlan& p, const StepShape& s) {
  switch (extent) {
    case Extent::kToken:
      return {p.num_tokens, s.tokens};
    case Extent::kRow:
      return {p.num_rows, s.rows + 1};
    case Extent::kRowPlusOne:
      return {p.num_rows + 1, s.rows + 2};
    case Extent::kSample:
      return {p.num_samples, s.samples};
    case Extent::kSamplePlusOne:
      return {p.num_samples + 1, s.samples + 1};
    default:
      return {0, 0};
  }
}

struct Writer {
  const Arena& arena;
  const StepPlan& plan;
  const PackedLayout& layout;
  int32_t spare_slot;
  std::byte* piece;

  void Write(const PackedColumn& packed) const {
    const ColumnSpec& spec = kColumns[static_cast<size_t>(packed.column)];
    const int64_t offset = layout.offset[static_cast<size_t>(packed.column)];
    if (offset == kNotPacked) return;
    const auto [used, room] = ExtentsOf(spec.extent, plan, layout.shape);
    OCTAVO_CHECK(used <= room, "a shape that is too small for its step");
    const auto size = static_cast<size_t>(DTypeSize(spec.dtype));
    std::byte* to = piece + offset;
    if (IsAddress(packed.column)) {
      std::memset(to, 0, static_cast<size_t>(room) * size);
      return;
    }
    const std::byte* from = arena.At<std::byte>(plan.slot, packed.column);
    std::memcpy(to, from, static_cast<size_t>(used) * size);
    Pad(packed.padding, to + static_cast<size_t>(used) * size, room - used, size);
  }

  void Pad(Padding padding, std::byte* to, int32_t count, size_t size) const {
    switch (padding) {
      case Padding::kZero:
        std::memset(to, 0, static_cast<size_t>(count) * size);
        return;
      case Padding::kOne:
        std::fill_n(reinterpret_cast<float*>(to), count, 1.0f);
        return;
      default:
        std::fill_n(reinterpret_cast<int32_t*>(to), count, IndexOf(padding));
    }
  }

  int32_t IndexOf(Padding padding) const {
    if (padding == Padding::kTokens) return plan.num_tokens;
    if (padding == Padding::kSpareSlot) return spare_slot;
    if (padding == Padding::kSpareRow) return layout.shape.rows;
    return arena.At<int32_t>(plan.slot, Column::kBiasStart)[plan.num_samples];
  }

  int32_t* Packed(Column column) const {
    return reinterpret_cast<int32_t*>(piece + layout.offset[static_cast<size_t>(column)]);
  }
};

bool IsPenalised(const Arena& arena, int slot, int32_t sample) {
  return arena.At<float>(slot, Column::kPresence)[sample] != 0 ||
         arena.At<float>(slot, Column::kFrequency)[sample] != 0 ||
         arena.At<float>(slot, Column::kRepetition)[sample] != 1;
}

}  // namespace

bool IsPacked(Column column) {
  return std::any_of(std::begin(kPacked), std::end(kPacked),
                     [column](const PackedColumn& packed) { return packed.column == column; });
}

void Pack(const Arena& arena, const StepPlan& plan, const PackedLayout& layout, int32_t spare_slot,
          int64_t landing, std::byte* piece) {
  const Writer writer{arena, plan, layout, spare_slot, piece};
  for (const PackedColumn& packed : kPacked) writer.Write(packed);
  std::memcpy(piece + layout.landing, &landing, sizeof(landing));
  if (layout.shape.greedy) return;
  for (int32_t s = 0; s < plan.num_samples; ++s) {
    if (IsPenalised(arena, plan.slot, s)) continue;
    writer.Packed(Column::kHistoryLen)[s] = 0;
    writer.Packed(Column::kPromptLen)[s] = 0;
  }
}

bool ReadsByAddress(const Arena& arena, const StepPlan& plan) {
  if (plan.all_greedy) return false;
  const auto* mask = arena.At<uint64_t>(plan.slot, Column::kMask);
  for (int32_t s = 0; s < plan.num_samples; ++s) {
    if (mask[s] != 0 || IsPenalised(arena, plan.slot, s)) return true;
  }
  return false;
}

}  // namespace octavo::batch
