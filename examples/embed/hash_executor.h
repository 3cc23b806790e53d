// A model without weights, for driving the engine: its next token is a hash of every token before
// it.
//
// It keeps a KV cache as a real model does, one number for each slot, writes it through the block
// tables and reads the whole visible prefix back through them. So a token that another request
// overwrote, a block handed out twice or a prefix wrongly taken for cached changes what it says.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "octavo/config.h"
#include "octavo/executor.h"
#include "octavo/status.h"
#include "octavo/step.h"

class HashExecutor final : public octavo::Executor {
 public:
  explicit HashExecutor(const octavo::EngineConfig& config);

  octavo::Status Execute(const octavo::StepPlan& plan, std::span<int32_t> tokens) override;

  // What a request alone, on an endless cache, must answer.
  std::vector<int32_t> Expect(std::span<const int32_t> prompt, int32_t max_tokens) const;

 private:
  int64_t SlotOf(const octavo::BlockTableView& table, int32_t row_slot, int32_t position) const;
  int32_t Token(uint64_t state) const { return static_cast<int32_t>(state % vocab_size_); }

  uint64_t vocab_size_;
  std::vector<uint64_t> cache_;  // [num_blocks * block_size]
};
