// Arena: the memory of the step batch. All columns lie at fixed offsets of one region; one
// host region (slot) for each step that may be open lets the next step be written while this one
// runs, and a device region of the same layout keeps the addresses that a captured graph reads.
// Allocated once. One thread writes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/host_memory.h"
#include "batch/column.h"

namespace octavo::batch {

class Arena {
 public:
  static constexpr size_t kAlignment = 256;  // what a device copy likes

  explicit Arena(const EngineConfig& config, HostMemory& memory = SystemMemory());

  template <typename T>
  T* At(int slot, Column column) const {
    return reinterpret_cast<T*>(regions_[slot].data() + offset(column));
  }
  size_t offset(Column column) const { return offsets_[static_cast<size_t>(column)]; }
  size_t capacity(Column column) const { return capacities_[static_cast<size_t>(column)]; }
  size_t bytes() const { return bytes_; }  // of one region
  int num_slots() const { return static_cast<int>(regions_.size()); }

 private:
  std::array<size_t, kNumColumns> offsets_;
  std::array<size_t, kNumColumns> capacities_;
  size_t bytes_ = 0;
  std::vector<HostArray<std::byte>> regions_;
};

}  // namespace octavo::batch
