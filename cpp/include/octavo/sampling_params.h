// SamplingParams: how one request samples and stops. Meaning and defaults are vLLM's.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "octavo/status.h"

namespace octavo {

// Caps on what one request may carry: the sum bounds the logit edits of one row of a step.
inline constexpr int32_t kMaxLogitBias = 300;
inline constexpr int32_t kMaxStopTokens = 128;
inline constexpr int32_t kMaxEosTokens = 16;
inline constexpr int32_t kMaxBadWords = 128;
inline constexpr int32_t kMaxBadWordTokens = 1024;
inline constexpr int32_t kMaxBeginSuppressTokens = 64;
inline constexpr int32_t kMaxEditsPerRow =
    kMaxLogitBias + kMaxStopTokens + kMaxEosTokens + kMaxBadWords + kMaxBeginSuppressTokens;

struct SamplingParams {
  int32_t max_tokens = 16;
  int32_t min_tokens = 0;
  float temperature = 1.0f;  // 0: greedy
  int32_t top_k = 0;         // 0 or -1: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  float repetition_penalty = 1.0f;
  uint64_t seed = 0;  // the draw of output i depends on (seed, i) only
  bool ignore_eos = false;
  std::vector<int32_t> eos_token_ids;
  std::vector<int32_t> stop_token_ids;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<std::vector<int32_t>> bad_words;  // token sequences that must not appear
  std::vector<int32_t> begin_suppress_tokens;   // that must not come first
  std::vector<int32_t> allowed_token_ids;       // empty: all
  int32_t num_logprobs = -1;  // -1: none; 0: the sampled token's; k: the top k beside it
  int32_t num_prompt_logprobs = -1;
};

// Names the first field that is out of range, its value and the remedy.
Status Validate(const SamplingParams& params, int32_t vocab_size);

}  // namespace octavo
