// The parameters of the sampler, and its launchers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/launch.h"

namespace octavo::cuda {

struct SampleParams {
  int32_t* token;
  void* logits;    // of the launcher's type
  float* scratch;  // a row for each; null where logits are float32
  int64_t stride;  // elements
  int64_t scratch_stride;
  int32_t vocab;
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const float* presence;
  const float* frequency;
  const float* repetition;
  const uint64_t* seed;
  const int64_t* sample_index;
  const int32_t* bias_start;
  const int32_t* bias_token;
  const float* bias_value;
  const uint64_t* history;
  const int32_t* history_len;
  const int32_t* prompt_len;
  const uint64_t* mask;
};

// `wide`: rows of logits and scratch begin on 16 bytes.
template <typename T>
Status LaunchSampleOf(LaunchShape shape, const SampleParams& p, bool wide);

}  // namespace octavo::cuda
