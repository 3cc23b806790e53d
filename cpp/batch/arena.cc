#include "batch/arena.h"

#include "base/check.h"

namespace octavo::batch {

Arena::Arena(const EngineConfig& config, HostMemory& memory) {
  for (size_t i = 0; i < kNumColumns; ++i) {
    const ColumnSpec& spec = kColumns[i];
    OCTAVO_CHECK(static_cast<size_t>(spec.column) == i, "kColumns is out of order");
    offsets_[i] = bytes_;
    capacities_[i] = Capacity(spec.extent, config);
    bytes_ += capacities_[i] * DTypeSize(spec.dtype);
    bytes_ = (bytes_ + kAlignment - 1) / kAlignment * kAlignment;
  }
  for (int slot = 0; slot < config.max_steps_in_flight; ++slot) {
    regions_.push_back(TakeArray<std::byte>(
        memory, bytes_, "the step batch",
        "lower max_num_batched_tokens, max_num_seqs or max_steps_in_flight, or free some memory"));
  }
}

}  // namespace octavo::batch
