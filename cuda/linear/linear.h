// The parameters of the product of few rows, and its launchers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/launch.h"
#include "linear/choice.h"
#include "octavo/ops.h"

namespace octavo::cuda {

struct LinearParams {
  const char* weight;
  const char* x;
  char* out;
  const char* bias;                             // or null
  int64_t weight_stride, x_stride, out_stride;  // bytes
  int32_t m, n, k;                              // n: columns of out
  int32_t units;                                // of k
  int32_t tiles;                                // of n
  int32_t warps;
  int32_t team_warps;
  int32_t ring_bytes;  // of a warp: stages that it fills
  int32_t stage_bytes;
  // Nothing that is still running writes the weight: it is read before the kernel in front has
  // ended.
  bool weight_ready;
  bool add;          // to what out holds
  Gate gate;         // in the kinds that have one
  const char* norm;  // its weight, in the kinds that have one
  float eps, norm_offset;
};

// What is compiled apart, so that a plain product pays for nothing.
enum class LinearKind { kPlain, kNormed, kGated, kNormedGated };
constexpr bool HasNorm(LinearKind kind) {
  return kind == LinearKind::kNormed || kind == LinearKind::kNormedGated;
}
constexpr bool HasGate(LinearKind kind) {
  return kind == LinearKind::kGated || kind == LinearKind::kNormedGated;
}

template <typename T, LinearKind kKind>
Status LaunchLinearOf(const LinearChoice& choice, const LinearParams& p, cudaStream_t stream);

}  // namespace octavo::cuda
