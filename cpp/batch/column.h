// The columns of a step: every array that crosses from the scheduler to an executor, in one table.
//
// A feature that needs another per-token or per-row value adds a line here and writes it where rows
// are added; the arena lays it out, the bindings show it, and no other file learns of it.
#pragma once

#include <algorithm>
#include <cstddef>

#include "octavo/config.h"
#include "octavo/dtype.h"
#include "octavo/sampling_params.h"

namespace octavo::batch {

// What a column has one entry for.
enum class Extent { kToken, kRow, kRowPlusOne, kSample, kSamplePlusOne, kEdit, kScore, kCopy };

enum class Column {
  kTokenId,  // -1: what this row slot sampled last, known to the device only
  kPosition,
  kQueryStart,
  kRowSlot,
  kSeqLen,
  kRequest,
  kCrossLen,  // embeddings that the row's tokens see in cross groups; 0 without
  kSampleToken,
  kSampleRow,
  kNumLogprobs,
  kTemperature,
  kTopK,
  kTopP,
  kMinP,
  kPresence,
  kFrequency,
  kRepetition,
  kSeed,
  kSampleIndex,
  kHistory,  // host address of the request's int32 tokens
  kHistoryLen,
  kPromptLen,
  kMask,  // host address of ceil(vocab / 32) words, bit 1 = allowed; 0: everything is
  kBiasStart,
  kBiasToken,
  kBiasValue,
  kScoreToken,
  kScoreTarget,
  kScoreRow,
  kScoreTop,
  kCopyGroup,
  kCopySource,
  kCopyTarget,
  kCopyTokens,
};

struct ColumnSpec {
  Column column;
  const char* name;
  DType dtype;
  Extent extent;
};

inline constexpr ColumnSpec kColumns[] = {
    {Column::kTokenId, "token_id", DType::kI32, Extent::kToken},
    {Column::kPosition, "position", DType::kI32, Extent::kToken},
    {Column::kQueryStart, "query_start", DType::kI32, Extent::kRowPlusOne},
    {Column::kRowSlot, "row_slot", DType::kI32, Extent::kRow},
    {Column::kSeqLen, "seq_len", DType::kI32, Extent::kRow},
    {Column::kRequest, "request", DType::kU64, Extent::kRow},
    {Column::kCrossLen, "cross_len", DType::kI32, Extent::kRow},
    {Column::kSampleToken, "sample_token", DType::kI32, Extent::kSample},
    {Column::kSampleRow, "sample_row", DType::kI32, Extent::kSample},
    {Column::kNumLogprobs, "num_logprobs", DType::kI32, Extent::kSample},
    {Column::kTemperature, "temperature", DType::kF32, Extent::kSample},
    {Column::kTopK, "top_k", DType::kI32, Extent::kSample},
    {Column::kTopP, "top_p", DType::kF32, Extent::kSample},
    {Column::kMinP, "min_p", DType::kF32, Extent::kSample},
    {Column::kPresence, "presence", DType::kF32, Extent::kSample},
    {Column::kFrequency, "frequency", DType::kF32, Extent::kSample},
    {Column::kRepetition, "repetition", DType::kF32, Extent::kSample},
    {Column::kSeed, "seed", DType::kU64, Extent::kSample},
    {Column::kSampleIndex, "sample_index", DType::kI64, Extent::kSample},
    {Column::kHistory, "history", DType::kU64, Extent::kSample},
    {Column::kHistoryLen, "history_len", DType::kI32, Extent::kSample},
    {Column::kPromptLen, "prompt_len", DType::kI32, Extent::kSample},
    {Column::kMask, "mask", DType::kU64, Extent::kSample},
    {Column::kBiasStart, "bias_start", DType::kI32, Extent::kSamplePlusOne},
    {Column::kBiasToken, "bias_token", DType::kI32, Extent::kEdit},
    {Column::kBiasValue, "bias_value", DType::kF32, Extent::kEdit},
    {Column::kScoreToken, "score_token", DType::kI32, Extent::kScore},
    {Column::kScoreTarget, "score_target", DType::kI32, Extent::kScore},
    {Column::kScoreRow, "score_row", DType::kI32, Extent::kScore},
    {Column::kScoreTop, "score_top", DType::kI32, Extent::kScore},
    {Column::kCopyGroup, "copy_group", DType::kI32, Extent::kCopy},
    {Column::kCopySource, "copy_source", DType::kI32, Extent::kCopy},
    {Column::kCopyTarget, "copy_target", DType::kI32, Extent::kCopy},
    {Column::kCopyTokens, "copy_tokens", DType::kI32, Extent::kCopy},
};
inline constexpr size_t kNumColumns = sizeof(kColumns) / sizeof(kColumns[0]);

// How many samples a step may have: each row has one, and one more for each draft.
constexpr size_t MaxSamples(const EngineConfig& config) {
  const size_t rows = config.max_num_seqs;
  if (config.max_draft_tokens == 0) return rows;
  return std::min(rows * size_t(1 + config.max_draft_tokens),
                  std::max(rows, size_t(config.max_num_batched_tokens)));
}

// How many copies a step may have: one in each group for each request that it admits.
constexpr size_t MaxCopies(const EngineConfig& config) {
  if (!config.sub_block_hits) return 0;
  return config.max_num_seqs * std::max<size_t>(1, config.groups.size());
}

// How many entries a column needs room for.
constexpr size_t Capacity(Extent extent, const EngineConfig& config) {
  const size_t rows = config.max_num_seqs;
  const size_t samples = MaxSamples(config);
  switch (extent) {
    case Extent::kToken:
    case Extent::kScore:
      return config.max_num_batched_tokens;
    case Extent::kRow:
      return rows;
    case Extent::kRowPlusOne:
      return rows + 1;
    case Extent::kSample:
      return samples;
    case Extent::kSamplePlusOne:
      return samples + 1;
    case Extent::kEdit:
      return samples * kMaxEditsPerRow;
    case Extent::kCopy:
      return MaxCopies(config);
  }
  return 0;
}

}  // namespace octavo::batch
