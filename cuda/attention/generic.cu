// Paged attention for every shape the op allows: float32, head dims of k * 8 up to 256, any block
// size and stride, a cache of e4m3 too. It needs no plan.
//
// Grid: one CTA of four warps for each query token and head; a warp takes every fourth key, its
// lanes share the head dim. Bound by the latency of one key after another: right, not fast. Source:
// online softmax, arXiv 1805.02867.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/generic.h"
#include "attention/plan.h"
#include "common/e4m3.cuh"
#include "common/element.cuh"
#include "common/ptx.cuh"

namespace octavo::cuda {
namespace {

constexpr int kGenericWarps = 4;
constexpr int kMaxHeadDim = 256;
constexpr int kLaneDims = kMaxHeadDim / kWarpSize;

// A warp's softmax over its keys; lane l holds the dims l, l + 32, ...
struct LaneState {
  float maximum = kNoScore;
  float sum = 0.0f;
  float v[kLaneDims] = {};

  __device__ void Rescale(float high) {
    const float factor = expf(maximum - high);
    maximum = high;
    sum *= factor;
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) v[i] *= factor;
  }
};

template <typename T>
__device__ void LoadRow(const char* from, int head_dim, float (&x)[kLaneDims]) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) {
    const int dim = i * kWarpSize + lane;
    x[i] = dim < head_dim ? ToFloat(reinterpret_cast<const T*>(from)[dim]) : 0.0f;
  }
}

template <typename Cached>
__device__ void AddKey(const GenericParams& p, const char* k, const float (&q)[kLaneDims],
                       LaneState* state) {
  float x[kLaneDims], score = 0.0f;
  LoadRow<Cached>(k, p.head_dim, x);
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) score = fmaf(q[i], x[i], score);
  for (int step = 1; step < kWarpSize; step *= 2) {
    score += __shfl_xor_sync(kFullWarp, score, step);
  }
  score *= p.scale;
  if (p.soft_cap != 0.0f) score = p.soft_cap * tanhf(score / p.soft_cap);
  if (score > state->maximum) state->Rescale(score);
  const float weight = expf(score - state->maximum);
  state->sum += weight;
  LoadRow<Cached>(k + p.layer.value_stride, p.head_dim, x);
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) state->v[i] = fmaf(weight, x[i], state->v[i]);
}

// The union of the warps' states, by warp 0.
template <typename T>
__device__ void MergeAndStore(const GenericParams& p, int head, LaneState state, char* out) {
  __shared__ float sums[kGenericWarps][kMaxHeadDim];
  __shared__ float2 stats[kGenericWarps];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) sums[warp][i * kWarpSize + lane] = state.v[i];
  if (lane == 0) stats[warp] = make_float2(state.maximum, state.sum);
  __syncthreads();
  if (warp != 0) return;
  float high = p.layer.sinks == nullptr ? kNoScore : p.layer.sinks[head];
  for (int w = 0; w < kGenericWarps; ++w) high = fmaxf(high, stats[w].x);
  state.Rescale(high);
  if (p.layer.sinks != nullptr) state.sum += expf(p.layer.sinks[head] - high);
  for (int w = 1; w < kGenericWarps; ++w) {
    const float factor = expf(stats[w].x - high);
    state.sum += factor * stats[w].y;
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) {
      state.v[i] = fmaf(factor, sums[w][i * kWarpSize + lane], state.v[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) {
    const int dim = i * kWarpSize + lane;
    const float x = state.v[i] / state.sum * p.layer.value_scale;
    if (dim < p.head_dim) Store(reinterpret_cast<T*>(out) + dim, x);
  }
}

template <typename T, typename Cached>
__global__ __launch_bounds__(kGenericWarps* kWarpSize) void GenericKernel(
    const __grid_constant__ GenericParams p) {
  GridDependencyWait();
  GridDependencyLaunch();
  const int token = blockIdx.x / p.heads, head = blockIdx.x - token * p.heads;
  if (token >= p.query_start[p.rows]) return;
  const int row = FindOwner(p.query_start, p.rows, token);
  const int queries = p.query_start[row + 1] - p.query_start[row], length = p.seq_len[row];
  if (length < queries) return;
  const int position = length - queries + token - p.query_start[row];
  const int first = FirstSeen(position, p.layer.window);
  const int32_t* const line = p.layer.table + p.row_slot[row] * p.layer.table_stride;
  const char* const cache = p.layer.cache + head / p.layer.group * p.layer.head_stride;
  float q[kLaneDims];
  LoadRow<T>(p.layer.q + token * p.layer.q_token_stride + head * p.layer.q_head_stride, p.head_dim,
             q);
  LaneState state;
  for (int key = first + threadIdx.x / kWarpSize; key <= position; key += kGenericWarps) {
    const int block = key / p.layer.block_size, within = key - block * p.layer.block_size;
    AddKey<Cached>(p, cache + line[block] * p.layer.block_stride + within * p.token_stride, q,
                   &state);
  }
  MergeAndStore<T>(p, head, state,
                   p.layer.out + token * p.layer.out_token_stride + head * p.layer.out_head_stride);
}

template <typename T>
Status LaunchGenericOf(bool fp8, const LaunchShape& shape, const GenericParams& p) {
  return fp8 ? Launch(GenericKernel<T, E4m3>, shape, p) : Launch(GenericKernel<T, T>, shape, p);
}

}  // namespace

Status LaunchGeneric(DType dtype, bool fp8, int64_t tokens, const GenericParams& p,
                     const LaunchShape& launch) {
  LaunchShape shape = launch;
  shape.grid = static_cast<unsigned>(tokens * p.heads);
  shape.threads = kGenericWarps * kWarpSize;
  if (dtype == DType::kF32) return LaunchGenericOf<float>(fp8, shape, p);
  if (dtype == DType::kF16) return LaunchGenericOf<__half>(fp8, shape, p);
  return LaunchGenericOf<__nv_bfloat16>(fp8, shape, p);
}

}  // namespace octavo::cuda
