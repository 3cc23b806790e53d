// StepBatch: writes one step into a host slot of the arena, row by row.
//
// Open, then AddRow for each row, AddSample and AddScore for what the row yields, then Close. When
// some sample needs more than the highest logit (`!all_greedy()`), DescribeSample follows for every
// sample in order before Close; otherwise the sampling columns stay unwritten. Nothing allocates.
// One thread.
#pragma once

#include <algorithm>
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
  // A row of one token, -1 when its id is not known: what decoding adds. In the header because a
  // full batch adds thousands.
  int32_t AddToken(RequestId request, RowSlot slot, int32_t token, int32_t position) {
    StepPlan& p = plan();
    const int32_t n = p.num_tokens++;
    const int32_t row = p.num_rows++;
    at_.token_id[n] = token;
    at_.position[n] = position;
    at_.query_start[row + 1] = n + 1;
    at_.row_slot[row] = Index(slot);
    at_.seq_len[row] = position + 1;
    at_.request[row] = Value(request);
    p.max_query_len = std::max(p.max_query_len, 1);
    p.max_seq_len = std::max(p.max_seq_len, position + 1);
    return row;
  }
  // The tokens of the latest row see so many embeddings. Called for every row or, where there are
  // no cross groups, for none.
  void SetCrossLen(int32_t embeddings) {
    at_.cross_len[plan().num_rows - 1] = embeddings;
    has_cross_ = true;
  }
  // The latest row's request was admitted in this step.
  void NoteAdmitted() { ++plan().num_admitted; }
  // The latest row is sampled from at its last token, or `from_end` tokens before it. Returns the
  // sample's index.
  int32_t AddSample(bool plain_greedy, int32_t num_logprobs, int32_t from_end = 0) {
    StepPlan& p = plan();
    const int32_t sample = p.num_samples++;
    at_.sample_token[sample] = p.num_tokens - 1 - from_end;
    at_.sample_row[sample] = p.num_rows - 1;
    at_.num_logprobs[sample] = num_logprobs;
    p.max_logprobs = std::max(p.max_logprobs, num_logprobs);
    p.all_greedy = p.all_greedy && plain_greedy;
    return sample;
  }
  // The logprob of `target` is wanted at token `offset` of the latest row.
  void AddScore(int32_t offset, int32_t target, int32_t top);

  // How many rows at the front decode: they ran before and have one token, one sample and no score.
  int32_t CountDecoding() const;
  std::span<const int32_t> row_slots() const {
    return {at_.row_slot, static_cast<size_t>(plan().num_rows)};
  }
  // Of the first order.size() rows, row order[i] becomes row i, and its sample sample i.
  // REQUIRES: they decode; no sample is described, and no encoder span names their tokens.
  void Reorder(std::span<const int32_t> order);

  // What the requests that run share, and whether the step makes use of it, as the plan says it.
  void SetShared(int64_t tokens, bool shares) {
    plan().num_shared_tokens = tokens;
    plan().shares = shares;
  }

  // What the encoders do in this step; the spans stay valid as long as the plan.
  void SetEncoders(std::span<const int32_t> evicted, std::span<const EncoderInput> inputs,
                   std::span<const EncoderSpan> spans) {
    plan().encoder_evicted = evicted;
    plan().encoder_inputs = inputs;
    plan().encoder_spans = spans;
  }
  // The first `tokens` tokens of a block are to be copied before the forward pass.
  void AddCopy(int32_t group, int32_t source, int32_t target, int32_t tokens);

  // Whether no sample so far needs more than the highest logit.
  bool all_greedy() const { return plan().all_greedy; }
  // Writes the sampling columns of the next sample that has none yet.
  void DescribeSample(const SampleSpec& spec);

  // The plan is valid until this host slot is opened again.
  // REQUIRES: all_greedy(), or every sample is described.
  const StepPlan* Close();

  int32_t num_rows() const { return plan().num_rows; }
  int32_t num_tokens() const { return plan().num_tokens; }
  const Arena& arena() const { return arena_; }

 private:
  struct Pointers {
    int32_t *token_id, *position, *query_start, *row_slot, *seq_len;
    uint64_t* request;
    int32_t* cross_len;
    int32_t *sample_token, *sample_row, *num_logprobs;
    int32_t *score_token, *score_target, *score_row, *score_top;
  };
  StepPlan& plan() { return plans_[slot_]; }
  const StepPlan& plan() const { return plans_[slot_]; }
  // Whether the first so many rows have a token and a sample each.
  bool HaveOneEach(int32_t rows) const {
    // A row has a token at least, and a token a sample at most, so the last row says it of all.
    return rows == 0 || (at_.query_start[rows] == rows && at_.sample_row[rows - 1] == rows - 1);
  }
  template <typename T>
  void Reorder(std::span<const int32_t> order, T* column);
  Pointers PointersOf(int slot) const;
  void BindPlan(int slot);

  Arena arena_;
  StepPlan plans_[kMaxStepsInFlight];
  Pointers at_;
  std::vector<uint64_t> reordered_;  // a column
  int slot_ = 0;
  int32_t described_ = 0;
  bool has_cross_ = false;  // the rows of this step have their embeddings
};

}  // namespace octavo::batch
