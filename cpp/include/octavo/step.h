// StepPlan: the contents of one forward pass, as columns in a host slot of the step batch.
//
// Pointers stay valid until the step is finished or failed. N tokens, R rows, S samples, P scores,
// C copies.
// Rows are contiguous runs of tokens: row r owns tokens [query_start[r], query_start[r+1]). A row
// is sampled at its last token, or, when it carries k drafts, at its last 1 + k tokens.
#pragma once

#include <cstdint>
#include <span>

#include "octavo/encoder.h"
#include "octavo/ids.h"

namespace octavo {

// Blocks of one cache group, one line for each row slot. Entries past a row's length are the null
// block. Of a cross group entry i holds embeddings i * block_size and on, not tokens.
struct BlockTableView {
  const int32_t* data = nullptr;  // [num_slots, row_stride]
  int64_t row_stride = 0;
  int32_t block_size = 0;
};

struct StepPlan {
  uint64_t step_id = 0;
  int32_t slot = 0;  // host slot of the arena, step_id % max_steps_in_flight
  int32_t num_tokens = 0;
  int32_t num_rows = 0;
  int32_t num_samples = 0;
  int32_t num_scores = 0;
  int32_t num_copies = 0;
  // Rows of requests that this step admitted. They alone may read what an earlier row of it writes.
  int32_t num_admitted = 0;
  // Tokens of context that running requests found in blocks that at least four of them found so, a
  // prefix of 256 tokens or more; each counts for every request. A hint: what could be read once.
  int64_t num_shared_tokens = 0;
  // What the rows that decode share had better be read once: there is enough of it and of them
  // (EngineConfig::sharing_min_tokens), and those at the front that share stand together.
  bool shares = false;
  int32_t max_query_len = 0;
  int32_t max_seq_len = 0;
  int32_t max_logprobs = -1;  // over the samples; -1: nobody asks
  bool all_greedy = true;     // the sampling columns after sample_row are then not written

  // [N]. token_id -1: the token that this row's slot sampled last, known to the device only.
  const int32_t* token_id = nullptr;
  const int32_t* position = nullptr;
  // [R]
  const int32_t* query_start = nullptr;  // [R + 1]
  const int32_t* row_slot = nullptr;
  const int32_t* seq_len = nullptr;  // tokens whose KV exists once this step has run
  const uint64_t* request = nullptr;
  const int32_t* cross_len = nullptr;  // embeddings that the row's tokens see; 0 without
  // [S]
  const int32_t* sample_token = nullptr;  // index into the N tokens
  const int32_t* sample_row = nullptr;
  const float* temperature = nullptr;
  const float* top_p = nullptr;
  const float* min_p = nullptr;
  const int32_t* top_k = nullptr;
  const uint64_t* seed = nullptr;
  const int64_t* sample_index = nullptr;  // how many tokens the request has sampled before
  const uint64_t* history = nullptr;      // host address of the request's int32 tokens
  const int32_t* history_len = nullptr;
  const int32_t* prompt_len = nullptr;
  // [P]
  const int32_t* score_token = nullptr;
  const int32_t* score_target = nullptr;
  // [C]: to be made in order before the forward pass. Blocks as the group's table names them.
  const int32_t* copy_group = nullptr;
  const int32_t* copy_source = nullptr;
  const int32_t* copy_target = nullptr;
  const int32_t* copy_tokens = nullptr;  // leading tokens of the block

  std::span<const BlockTableView> block_tables;  // one for each cache group

  // Encoders, in this order: drop what is evicted, encode the inputs, then embed the spans.
  std::span<const int32_t> encoder_evicted;  // entries
  std::span<const EncoderInput> encoder_inputs;
  std::span<const EncoderSpan> encoder_spans;  // by rising token
};

enum class FinishReason : uint8_t { kNone, kStop, kLength, kAbort, kError };

// One new token of a request, or its end. `token` is -1 when the request ended without one.
struct StepOutput {
  uint64_t request;
  int32_t token;
  int32_t sample;         // index into the step's samples, -1: none
  int32_t stop_token;     // the one of stop_token_ids that ended the request, -1: none
  int32_t cached_tokens;  // prompt tokens found in the prefix cache when first admitted
  uint8_t finish;         // FinishReason
  uint8_t padding[7];
};
static_assert(sizeof(StepOutput) == 32, "mirrored as a structured array in Python");

}  // namespace octavo
