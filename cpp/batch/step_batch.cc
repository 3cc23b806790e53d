#include "batch/step_batch.h"

#include <algorithm>

#include "base/check.h"
#include "base/out_of_memory.h"

namespace octavo::batch {

StepBatch::StepBatch(const EngineConfig& config, HostMemory& memory)
    : arena_(config, memory),
      reordered_(TakeVector<uint64_t>(static_cast<size_t>(config.max_num_seqs), "the order of rows",
                                      "lower max_num_seqs, or free some memory")) {
  for (int slot = 0; slot < arena_.num_slots(); ++slot) BindPlan(slot);
  at_ = PointersOf(0);
}

StepBatch::Pointers StepBatch::PointersOf(int slot) const {
  const auto i32 = [&](Column c) { return arena_.At<int32_t>(slot, c); };
  return {i32(Column::kTokenId),    i32(Column::kPosition),
          i32(Column::kQueryStart), i32(Column::kRowSlot),
          i32(Column::kSeqLen),     arena_.At<uint64_t>(slot, Column::kRequest),
          i32(Column::kCrossLen),   i32(Column::kSampleToken),
          i32(Column::kSampleRow),  i32(Column::kNumLogprobs),
          i32(Column::kScoreToken), i32(Column::kScoreTarget),
          i32(Column::kScoreRow),   i32(Column::kScoreTop)};
}

void StepBatch::BindPlan(int slot) {
  StepPlan& p = plans_[slot];
  const auto i32 = [&](Column c) { return arena_.At<int32_t>(slot, c); };
  const auto f32 = [&](Column c) { return arena_.At<float>(slot, c); };
  const auto u64 = [&](Column c) { return arena_.At<uint64_t>(slot, c); };
  p.slot = slot;
  p.token_id = i32(Column::kTokenId);
  p.position = i32(Column::kPosition);
  p.query_start = i32(Column::kQueryStart);
  p.row_slot = i32(Column::kRowSlot);
  p.seq_len = i32(Column::kSeqLen);
  p.request = u64(Column::kRequest);
  p.cross_len = i32(Column::kCrossLen);
  p.sample_token = i32(Column::kSampleToken);
  p.sample_row = i32(Column::kSampleRow);
  p.temperature = f32(Column::kTemperature);
  p.top_p = f32(Column::kTopP);
  p.min_p = f32(Column::kMinP);
  p.top_k = i32(Column::kTopK);
  p.seed = u64(Column::kSeed);
  p.sample_index = arena_.At<int64_t>(slot, Column::kSampleIndex);
  p.history = u64(Column::kHistory);
  p.history_len = i32(Column::kHistoryLen);
  p.prompt_len = i32(Column::kPromptLen);
  p.score_token = i32(Column::kScoreToken);
  p.score_target = i32(Column::kScoreTarget);
  p.copy_group = i32(Column::kCopyGroup);
  p.copy_source = i32(Column::kCopySource);
  p.copy_target = i32(Column::kCopyTarget);
  p.copy_tokens = i32(Column::kCopyTokens);
}

void StepBatch::Open(uint64_t step_id, std::span<const BlockTableView> tables) {
  slot_ = static_cast<int>(step_id % arena_.num_slots());
  at_ = PointersOf(slot_);
  described_ = 0;
  has_cross_ = false;
  StepPlan& p = plan();
  p.step_id = step_id;
  p.num_tokens = p.num_rows = p.num_samples = p.num_scores = p.num_copies = p.num_admitted = 0;
  p.num_shared_tokens = 0;
  p.shares = false;
  p.max_query_len = p.max_seq_len = 0;
  p.max_logprobs = -1;
  p.all_greedy = true;
  p.block_tables = tables;
  at_.query_start[0] = 0;
}

int32_t StepBatch::AddRow(RequestId request, RowSlot slot, const int32_t* tokens, int32_t known,
                          int32_t position, int32_t count) {
  StepPlan& p = plan();
  const int32_t first = p.num_tokens;
  for (int32_t i = 0; i < count; ++i) {
    at_.token_id[first + i] = position + i < known ? tokens[position + i] : -1;
    at_.position[first + i] = position + i;
  }
  const int32_t row = p.num_rows++;
  p.num_tokens += count;
  at_.query_start[row + 1] = p.num_tokens;
  at_.row_slot[row] = Index(slot);
  at_.seq_len[row] = position + count;
  at_.request[row] = Value(request);
  p.max_query_len = std::max(p.max_query_len, count);
  p.max_seq_len = std::max(p.max_seq_len, position + count);
  return row;
}

void StepBatch::AddScore(int32_t offset, int32_t target, int32_t top) {
  StepPlan& p = plan();
  const int32_t row = p.num_rows - 1;
  const int32_t i = p.num_scores++;
  at_.score_token[i] = at_.query_start[row] + offset;
  at_.score_target[i] = target;
  at_.score_row[i] = row;
  at_.score_top[i] = top;
}

int32_t StepBatch::CountDecoding() const {
  const StepPlan& p = plan();
  int32_t end = std::min(p.num_rows - p.num_admitted, p.num_samples);
  if (p.num_scores > 0) end = std::min(end, at_.score_row[0]);
  if (HaveOneEach(end)) return end;
  int32_t rows = 0;
  while (HaveOneEach(rows + 1)) ++rows;
  return rows;
}

void StepBatch::Reorder(std::span<const int32_t> order) {
  OCTAVO_CHECK(HaveOneEach(static_cast<int32_t>(order.size())) && described_ == 0,
               "rows are reordered that are more than decoded");
  Reorder(order, at_.token_id);
  Reorder(order, at_.position);
  Reorder(order, at_.row_slot);
  Reorder(order, at_.request);
  if (has_cross_) Reorder(order, at_.cross_len);
  if (plan().max_logprobs >= 0) Reorder(order, at_.num_logprobs);
  for (size_t i = 0; i < order.size(); ++i) at_.seq_len[i] = at_.position[i] + 1;
}

template <typename T>
void StepBatch::Reorder(std::span<const int32_t> order, T* column) {
  for (size_t i = 0; i < order.size(); ++i) {
    reordered_[i] = static_cast<uint64_t>(column[order[i]]);
  }
  for (size_t i = 0; i < order.size(); ++i) column[i] = static_cast<T>(reordered_[i]);
}

void StepBatch::AddCopy(int32_t group, int32_t source, int32_t target, int32_t tokens) {
  const auto i32 = [&](Column c) { return arena_.At<int32_t>(slot_, c); };
  const int32_t i = plan().num_copies++;
  i32(Column::kCopyGroup)[i] = group;
  i32(Column::kCopySource)[i] = source;
  i32(Column::kCopyTarget)[i] = target;
  i32(Column::kCopyTokens)[i] = tokens;
}

void StepBatch::DescribeSample(const SampleSpec& spec) {
  const auto i32 = [&](Column c) { return arena_.At<int32_t>(slot_, c); };
  const auto f32 = [&](Column c) { return arena_.At<float>(slot_, c); };
  const int32_t s = described_++;
  const SamplingParams& params = *spec.params;
  f32(Column::kTemperature)[s] = params.temperature;
  f32(Column::kTopP)[s] = params.top_p;
  f32(Column::kMinP)[s] = params.min_p;
  f32(Column::kPresence)[s] = params.presence_penalty;
  f32(Column::kFrequency)[s] = params.frequency_penalty;
  f32(Column::kRepetition)[s] = params.repetition_penalty;
  i32(Column::kTopK)[s] = std::max(0, params.top_k);
  i32(Column::kHistoryLen)[s] = spec.history_len;
  i32(Column::kPromptLen)[s] = spec.prompt_len;
  arena_.At<uint64_t>(slot_, Column::kSeed)[s] = params.seed;
  arena_.At<int64_t>(slot_, Column::kSampleIndex)[s] = spec.sample_index;
  arena_.At<uint64_t>(slot_, Column::kHistory)[s] = reinterpret_cast<uint64_t>(spec.history);
  arena_.At<uint64_t>(slot_, Column::kMask)[s] = reinterpret_cast<uint64_t>(spec.mask);
  int32_t* const bias_start = i32(Column::kBiasStart);
  if (s == 0) bias_start[0] = 0;
  const int32_t first = bias_start[s];
  EditWriter edits(i32(Column::kBiasToken) + first, f32(Column::kBiasValue) + first);
  if (spec.edits) spec.edits->Write(edits);
  bias_start[s + 1] = first + edits.count();
}

const StepPlan* StepBatch::Close() {
  OCTAVO_CHECK(all_greedy() || described_ == plan().num_samples, "a sample is not described");
  return &plan();
}

}  // namespace octavo::batch
