// Packing: the used part of a step's columns, padded to its shape, in one piece that is copied to a
// device. The arena holds columns at full capacity; a device wants few bytes and fixed places.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "batch/arena.h"
#include "batch/step_shape.h"

namespace octavo::batch {

inline constexpr int64_t kNotPacked = -1;

// Where a shape's columns lie, in bytes from the start of the piece. There is room for one row more
// than the shape's: it holds no tokens, and the samples that pad a step are its own.
struct PackedLayout {
  StepShape shape;
  int64_t bytes = 0;
  int64_t landing = 0;                      // int64: the address that the step's tokens go to
  std::array<int64_t, kNumColumns> offset;  // kNotPacked: the shape does without

  PackedLayout() { offset.fill(kNotPacked); }
  int64_t& at(Column column) { return offset[static_cast<size_t>(column)]; }
};

// Whether a column has a place in the pieces that Pack writes.
bool IsPacked(Column column);

// Writes the columns of a step to `piece`. Padding tokens are 0 and belong to no row, padding rows
// are empty and have `spare_slot`. The host's addresses mean nothing to a device: history and mask
// become 0, and with them the lengths of whoever has no penalty and so reads no history.
// REQUIRES: the shape holds the step.
void Pack(const Arena& arena, const StepPlan& plan, const PackedLayout& layout, int32_t spare_slot,
          int64_t landing, std::byte* piece);

// Whether some sample of the step reads memory that its columns name by address: the history of a
// penalty, or a mask.
bool ReadsByAddress(const Arena& arena, const StepPlan& plan);

}  // namespace octavo::batch
