// moe_route: the k experts of each token with the largest scores, and their weights.
//
// Shapes: logits [N, E] float32, ids [N, k] int32, weights [N, k] float32; E up to 1024. Grid: a
// warp a token, four a CTA. A token's scores lie in shared memory; each of the k choices is one
// pass over them for the best that comes after the choice before it, so that nothing is marked or
// sorted. Bound by latency: k passes over E / 32 numbers a lane. Sources: Shazeer et al., 2017; the
// limits on the choice are DeepSeek-V2's and -V3's (2024).
#include <string>

#include "base/ops_check.h"
#include "common/launch.h"
#include "common/reduce.cuh"
#include "octavo/cuda_layers.h"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxExperts = 1024;
constexpr float kLeastSum = 1e-20f;  // what DeepSeek adds where all chosen sigmoids are zero
static_assert(kWarps * 2 * kMaxExperts * sizeof(float) <= 48 * 1024, "static shared memory");

struct RouteParams {
  const float* logits;
  const float* bias;  // or null
  int32_t* ids;
  float* weights;
  int64_t logits_stride, ids_stride, weights_stride;  // elements
  int64_t tokens;
  int32_t experts, k;
  int32_t groups, top_groups, group_best;
  bool sigmoid, renormalize;
  float scale;

  __device__ __forceinline__ bool limited() const { return bias != nullptr || groups > 1; }
};

// A candidate: the larger value wins, the lower id among equals.
struct Best {
  float value;
  int id;

  __device__ __forceinline__ bool After(const Best& other) const {
    return value < other.value || (value == other.value && id > other.id);
  }
};

__device__ __forceinline__ Best None() { return {-INFINITY, INT32_MAX}; }
__device__ __forceinline__ Best First() { return {INFINITY, -1}; }

// The best of n values that comes after `last`, by one thread.
__device__ __forceinline__ Best NextOf(const float* values, int n, const Best& last) {
  Best best = None();
  for (int i = 0; i < n; ++i) {
    const Best mine{values[i], i};
    if (mine.After(last) && best.After(mine)) best = mine;
  }
  return best;
}

// The same by a warp, in every lane.
__device__ __forceinline__ Best NextOfWarp(const float* values, int n, const Best& last) {
  Best best = None();
  for (int i = threadIdx.x % kWarpSize; i < n; i += kWarpSize) {
    const Best mine{values[i], i};
    if (mine.After(last) && best.After(mine)) best = mine;
  }
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const Best other{__shfl_xor_sync(kFullWarp, best.value, step),
                     __shfl_xor_sync(kFullWarp, best.id, step)};
    if (best.After(other)) best = other;
  }
  return best;
}

// Leaves the experts of the best groups in `choice`, -inf for the others. `sums`: an entry a group.
__device__ __forceinline__ void KeepGroups(const RouteParams& p, float* choice, float* sums) {
  const int lane = threadIdx.x % kWarpSize, size = p.experts / p.groups;
  for (int g = lane; g < p.groups; g += kWarpSize) {
    float sum = 0.0f;
    Best last = First();
    for (int j = 0; j < p.group_best; ++j) {
      last = NextOf(choice + g * size, size, last);
      sum += last.value;
    }
    sums[g] = sum;
  }
  __syncwarp();
  Best last = First();
  for (int j = 0; j < p.top_groups; ++j) last = NextOfWarp(sums, p.groups, last);
  for (int e = lane; e < p.experts; e += kWarpSize) {
    const Best group{sums[e / size], e / size};
    if (group.After(last)) choice[e] = -INFINITY;
  }
  __syncwarp();
}

// A token's routes. `values` are its logits at first, `room` is as large.
__device__ __forceinline__ void RouteToken(const RouteParams& p, int64_t token, float largest,
                                           float* values, float* room) {
  const int lane = threadIdx.x % kWarpSize;
  float all = 0.0f;  // the softmax's denominator
  const auto score = [&](float logit) {
    return p.sigmoid ? 1.0f / (1.0f + expf(-logit)) : expf(logit - largest);
  };
  if (!p.sigmoid) {
    for (int e = lane; e < p.experts; e += kWarpSize) all += score(values[e]);
    all = SumOfWarp(all);
  }
  const float* const row = p.logits + token * p.logits_stride;
  if (p.limited()) {  // what is compared are scores then
    for (int e = lane; e < p.experts; e += kWarpSize) {
      const float s = p.sigmoid ? score(values[e]) : score(values[e]) / all;
      values[e] = p.bias != nullptr ? s + p.bias[e] : s;
    }
    __syncwarp();
    if (p.groups > 1) KeepGroups(p, values, room);
  }
  float sum = p.limited() ? kLeastSum : 0.0f;
  Best last = First();
  float* const weights = p.weights + token * p.weights_stride;
  for (int j = 0; j < p.k; ++j) {
    last = NextOfWarp(values, p.experts, last);
    // None is left where a bias is NaN: the token fails alone.
    const bool found = last.id < p.experts;
    const float weight = found ? score(row[last.id]) : NAN;
    sum += p.limited() && !p.sigmoid ? weight / all : weight;
    if (lane == 0) {
      p.ids[token * p.ids_stride + j] = found ? last.id : j;
      weights[j] = weight;
    }
  }
  __syncwarp();
  for (int j = lane; j < p.k; j += kWarpSize) {
    float weight = weights[j];
    if (p.limited() && !p.sigmoid) weight /= all;
    if (p.renormalize) {
      weight /= sum;
    } else if (!p.limited() && !p.sigmoid) {
      weight /= all;
    }
    weights[j] = weight * p.scale;
  }
}

__global__ void __launch_bounds__(kWarps* kWarpSize)
    RouteKernel(const __grid_constant__ RouteParams p) {
  __shared__ float values[kWarps][kMaxExperts];
  __shared__ float room[kWarps][kMaxExperts];
  GridDependencyWait();
  GridDependencyLaunch();
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t token = int64_t{blockIdx.x} * kWarps + warp;
  if (token >= p.tokens) return;
  const float* const row = p.logits + token * p.logits_stride;
  float largest = -INFINITY;
  bool nan = false;
  for (int e = lane; e < p.experts; e += kWarpSize) {
    const float x = row[e];
    values[warp][e] = x;
    largest = fmaxf(largest, x);
    nan = nan || isnan(x);
  }
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, step));
  }
  __syncwarp();
  if (!__any_sync(kFullWarp, nan)) {
    RouteToken(p, token, largest, values[warp], room[warp]);
    return;
  }
  for (int j = lane; j < p.k; j += kWarpSize) {
    p.ids[token * p.ids_stride + j] = j;
    p.weights[token * p.weights_stride + j] = NAN;
  }
}

}  // namespace

Status MoeRoute(const MoeRouteArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  if (a.logits.shape[1] > kMaxExperts) {
    return InvalidOp("moe_route", "logits has " + std::to_string(a.logits.shape[1]) +
                                      " columns, need at most 1024 experts on CUDA");
  }
  RouteParams p{};
  p.tokens = a.logits.shape[0];
  if (p.tokens == 0) return Status::Ok();
  const int64_t grid = (p.tokens + kWarps - 1) / kWarps;
  if (grid > INT32_MAX) return InvalidOp("moe_route", "logits has 2^33 rows or more: cut it");
  p.logits = a.logits.ptr<float>();
  p.bias = a.bias.has_value() ? a.bias->ptr<float>() : nullptr;
  p.ids = a.ids.ptr<int32_t>();
  p.weights = a.weights.ptr<float>();
  p.logits_stride = a.logits.stride[0];
  p.ids_stride = a.ids.stride[0];
  p.weights_stride = a.weights.stride[0];
  p.experts = static_cast<int32_t>(a.logits.shape[1]);
  p.k = static_cast<int32_t>(a.ids.shape[1]);
  p.groups = static_cast<int32_t>(a.groups);
  p.top_groups = static_cast<int32_t>(a.top_groups);
  p.group_best = static_cast<int32_t>(a.group_best);
  p.sigmoid = a.sigmoid;
  p.renormalize = a.renormalize;
  p.scale = a.scale;
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(grid);
  shape.threads = kWarps * kWarpSize;
  shape.stream = stream;
  return LaunchDependent(RouteKernel, shape, p);
}

}  // namespace octavo::cuda
