// StepBatch: writes one step into a host slot of the arena, row by row.
//
// Open, then AddRow for each row, AddSample and AddScore for what the row yields, then Close. The
// sampling columns are written at Close and only when a sample needs more than the highest logit.
// Nothing allocates. One thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "batch/arena.h"
#include "octavo/step.h"

namespace octavo::batch {

// What one sample needs besides its logits. Spans and pointers live as long as the request.
struct SampleSpec {
  const SamplingParams* params = nullptr;
  const int32_t* history = nullptr;
  int32_t history_len = 0;
  int32_t prompt_len = 0;
  int64_t sample_index = 0;
  const uint32_t* mask = nullptr;
  // Appends this sample's logit edits; null: none.
  const class LogitEdits* edits = nullptr;
  bool plain_greedy = false;
};

// Writes (token, value) pairs that are added to a sample's logits.
class EditWriter {
 public:
  EditWriter(int32_t* tokens, float* values) : tokens_(tokens), values_(values) {}
  void Add(int32_t token, float value) {
    tokens_[count_] = token;
    values_[count_++] = value;
  }
  int32_t count() const { return count_; }

 private:
  int32_t* tokens_;
  float* values_;
  int32_t count_ = 0;
};

// A request's own source of logit edits; it adds at most kMaxEditsPerRow.
class LogitEdits {
 public:
  virtual ~LogitEdits() = default;
  virtual void Write(EditWriter& out) const = 0;
};

class StepBatch {
 public:
  explicit StepBatch(const EngineConfig& config, HostMemory& memory = SystemMemory());

  void Open(uint64_t step_id, std::span<const BlockTableView> tables);

  // A row of `count` tokens from `position` on. `known` are the tokens whose ids are known; later
  // ones become -1. Returns the row's index.
  int32_t AddRow(RequestId request, RowSlot slot, const int32_t* tokens, int32_t known,
                 int32_t position, int32_t count);
  // The last token of the latest row is sampled from. Returns the sample's index.
  int32_t AddSample(const SampleSpec& spec);
  // The logprob of `target` is wanted at token `offset` of the latest row.
  void AddScore(int32_t offset, int32_t target, int32_t top);

  // Fills what depends on the whole step. The plan is valid until this host slot is opened again.
  const StepPlan* Close();

  int32_t num_rows() const { return plan().num_rows; }
  const Arena& arena() const { return arena_; }

 private:
  struct Pointers {
    int32_t *token_id, *position, *query_start, *row_slot, *seq_len;
    uint64_t* request;
    int32_t *sample_token, *sample_row, *num_logprobs;
    int32_t *score_token, *score_target, *score_row, *score_top;
  };
  StepPlan& plan() { return plans_[slot_]; }
  const StepPlan& plan() const { return plans_[slot_]; }
  Pointers PointersOf(int slot) const;
  void BindPlan(int slot);
  void WriteSampling();

  Arena arena_;
  StepPlan plans_[kMaxStepsInFlight];
  Pointers at_;
  int slot_ = 0;
  std::vector<SampleSpec> samples_;
};

}  // namespace octavo::batch
