// HashModel: an executor whose next token depends on every token before it, as read back through
// the block tables from a cache that it wrote itself.
//
// The cache holds one digest a slot: that of the whole prefix up to and including its position,
// built from the digest read at the position before. A block that is shared wrongly, reused too
// early, never written or read under a stale table gives other digests and so other tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "batch/arena.h"
#include "octavo/executor.h"
#include "octavo/step.h"

namespace octavo::engine {

class HashModel final : public Executor {
 public:
  HashModel(const EngineConfig& config, const batch::Arena& arena);

  Status Execute(const StepPlan& plan, std::span<int32_t> tokens) override;

  // One sample in `n` fails, chosen by a seeded draw. 0: none.
  void FailOneIn(uint32_t n, uint64_t seed) {
    fail_one_in_ = n;
    fail_state_ = seed;
  }

 private:
  struct Cell {
    uint64_t digest = 0;
    int32_t token = -1;
    int32_t position = -1;
  };
  Cell& CellAt(const StepPlan& plan, int32_t slot, int32_t position);
  void WriteRow(const StepPlan& plan, int32_t row);
  int32_t Sample(const StepPlan& plan, int32_t sample);
  int32_t Choose(const StepPlan& plan, int32_t sample, uint64_t digest) const;
  bool Allowed(const StepPlan& plan, int32_t sample, int32_t token) const;

  int32_t vocab_size_;
  int32_t block_size_;
  const batch::Arena& arena_;
  std::vector<Cell> cells_;
  std::vector<int32_t> latest_;  // what each row slot sampled last
  uint32_t fail_one_in_ = 0;
  uint64_t fail_state_ = 0;
};

}  // namespace octavo::engine
