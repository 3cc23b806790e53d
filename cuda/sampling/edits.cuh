// Bias and penalties, applied to a row of logits in place.
#pragma once

#include "sampling/row.cuh"

namespace octavo::cuda {

// Counters of a tile of the vocabulary. The history is read once a tile, so that no memory is
// needed for a count a token; only rows with penalties pay.
inline constexpr int kCountTile = 16384;

struct RowEdits {
  const int32_t* bias_token;
  const float* bias_value;
  int bias_begin, bias_end;
  const int32_t* history;
  int history_len, prompt_len;
  float presence, frequency, repetition;
};

__device__ __forceinline__ bool Penalizes(const RowEdits& e) {
  return e.presence != 0.0f || e.frequency != 0.0f || e.repetition != 1.0f;
}

// Whether there is anything to edit.
__device__ __forceinline__ bool Edits(const RowEdits& e) {
  return e.bias_end > e.bias_begin || (e.history_len > 0 && Penalizes(e));
}

// Entries may name a token twice: whoever has its first entry adds them all, in their order.
__device__ inline void ApplyBias(float* x, int vocab, const RowEdits& e) {
  for (int i = e.bias_begin + static_cast<int>(threadIdx.x); i < e.bias_end; i += kRowThreads) {
    const int32_t token = e.bias_token[i];
    bool first = token >= 0 && token < vocab;
    for (int j = e.bias_begin; first && j < i; ++j) first = e.bias_token[j] != token;
    if (!first) continue;
    float logit = x[token];
    for (int j = i; j < e.bias_end; ++j) {
      if (e.bias_token[j] != token) continue;
      // A ban must not meet +inf: their sum would be NaN. A NaN stays, it marks the row as broken.
      const float bias = e.bias_value[j];
      logit = bias == -INFINITY && !isnan(logit) ? -INFINITY : logit + bias;
    }
    x[token] = logit;
  }
  __syncthreads();
}

__device__ inline void ApplyPenalties(float* x, int vocab, const RowEdits& e, uint32_t* counts) {
  constexpr uint32_t kInPrompt = 1u << 31;
  if (!Penalizes(e)) return;
  for (int tile = 0; tile < vocab; tile += kCountTile) {
    for (int i = threadIdx.x; i < kCountTile; i += kRowThreads) counts[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < e.history_len; i += kRowThreads) {
      const uint32_t at = static_cast<uint32_t>(e.history[i] - tile);
      if (e.history[i] < 0 || at >= static_cast<uint32_t>(kCountTile)) continue;
      if (i < e.prompt_len) {
        atomicOr(&counts[at], kInPrompt);
      } else {
        atomicAdd(&counts[at], 1u);
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < Min(kCountTile, vocab - tile); i += kRowThreads) {
      if (counts[i] == 0) continue;
      const uint32_t in_output = counts[i] & ~kInPrompt;
      float logit = x[tile + i];
      logit = logit > 0.0f ? logit / e.repetition : logit * e.repetition;
      if (in_output > 0) {
        logit -= __fadd_rn(__fmul_rn(e.frequency, static_cast<float>(in_output)), e.presence);
      }
      x[tile + i] = logit;
    }
    __syncthreads();
  }
}

// -inf where the bit is 0; a NaN stays.
__device__ __forceinline__ float Masked(float x, int i, const uint32_t* words) {
  if (words == nullptr || isnan(x)) return x;
  return (words[i / 32] >> (i % 32) & 1u) != 0 ? x : -INFINITY;
}

}  // namespace octavo::cuda
