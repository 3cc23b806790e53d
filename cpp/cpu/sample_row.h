// Sampling one row: the steps of SampleArgs in their order.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace octavo::cpu {

struct SampleRowParams {
  float temperature;
  int32_t top_k;
  float top_p;
  float min_p;
  float presence;
  float frequency;
  float repetition;
  uint64_t seed;
  uint64_t sample_index;
  const int32_t* bias_token;
  const float* bias_value;
  int64_t num_bias;
  const int32_t* history;
  int64_t history_len;
  int64_t prompt_len;
  const uint32_t* mask;  // null: all allowed
};

// The token of the row, or -1 (NaN in the row, nothing allowed, a parameter out of range). Clobbers
// the logits. Uses the thread's task scratch.
int32_t SampleRow(const Kernels& kernels, float* logits, int64_t vocab, const SampleRowParams& p);

}  // namespace octavo::cpu
