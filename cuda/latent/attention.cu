// Host side of latent attention, and the plain kernel for what tensor cores do not take: float32,
// odd widths, rows that do not begin on 16 bytes.
//
// The plain kernel: one CTA of four warps for each token and head; a warp takes every fourth key,
// its lanes share the vector. Bound by the latency of one key after another: right, not fast.
// Source: online softmax, arXiv 1805.02867.
#include <string>

#include "attention/params.h"
#include "base/ops_check.h"
#include "common/element.cuh"
#include "common/reduce.cuh"
#include "common/rows.h"
#include "latent/latent.h"
#include "octavo/cuda_layers.h"

namespace octavo::cuda {
namespace {

constexpr const char* kOp = "latent_attention";
constexpr int kWarps = 4;
constexpr int kMaxWidth = 1024;
constexpr int kLaneEntries = kMaxWidth / kWarpSize;
constexpr int64_t kMaxLength = INT64_C(1) << 30;

// A warp's softmax over its keys; lane l holds the entries l, l + 32, ...
struct LaneState {
  float maximum = kNoScore;
  float sum = 0.0f;
  float v[kLaneEntries] = {};

  __device__ __forceinline__ void Rescale(float high) {
    const float factor = expf(maximum - high);
    maximum = high;
    sum *= factor;
#pragma unroll
    for (int i = 0; i < kLaneEntries; ++i) v[i] *= factor;
  }
};

// Entries beyond the width are zero, and so is a vector that does not exist.
template <typename T>
__device__ __forceinline__ void LoadVector(const char* from, int width, float (&x)[kLaneEntries]) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int i = 0; i < kLaneEntries; ++i) {
    const int at = i * kWarpSize + lane;
    const bool live = from != nullptr && at < width;
    x[i] = live ? ToFloat(reinterpret_cast<const T*>(from)[at]) : 0.0f;
  }
}

template <typename T>
__device__ __forceinline__ void AddKey(const LatentParams& p, const char* key, const T* q,
                                       LaneState* state) {
  const int lane = threadIdx.x % kWarpSize;
  float x[kLaneEntries], score = 0.0f;
  LoadVector<T>(key, p.width, x);
#pragma unroll
  for (int i = 0; i < kLaneEntries; ++i) {
    const int at = i * kWarpSize + lane;
    if (at < p.width) score = fmaf(ToFloat(q[at]), x[i], score);
  }
  score = SumOfWarp(score) * p.scale;
  if (score > state->maximum) state->Rescale(score);
  const float weight = expf(score - state->maximum);
  state->sum += weight;
#pragma unroll
  for (int i = 0; i < kLaneEntries; ++i) state->v[i] = fmaf(weight, x[i], state->v[i]);
}

// The union of the warps' states, by warp 0.
template <typename T>
__device__ __forceinline__ void MergeAndStore(const LatentParams& p, LaneState state, T* out) {
  __shared__ float sums[kWarps][kMaxWidth];
  __shared__ float2 stats[kWarps];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
#pragma unroll
  for (int i = 0; i < kLaneEntries; ++i) sums[warp][i * kWarpSize + lane] = state.v[i];
  if (lane == 0) stats[warp] = make_float2(state.maximum, state.sum);
  __syncthreads();
  if (warp != 0) return;
  float high = kNoScore;
  for (int w = 0; w < kWarps; ++w) high = fmaxf(high, stats[w].x);
  state.Rescale(high);
  for (int w = 1; w < kWarps; ++w) {
    const float factor = expf(stats[w].x - high);
    state.sum += factor * stats[w].y;
#pragma unroll
    for (int i = 0; i < kLaneEntries; ++i) {
      state.v[i] = fmaf(factor, sums[w][i * kWarpSize + lane], state.v[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kLaneEntries; ++i) {
    const int at = i * kWarpSize + lane;
    if (at < p.rank) Store(out + at, state.v[i] / state.sum);
  }
}

template <typename T>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    PlainKernel(const __grid_constant__ LatentParams p) {
  GridDependencyWait();
  GridDependencyLaunch();
  const int token = blockIdx.x / p.heads, head = blockIdx.x - token * p.heads;
  if (token >= p.query_start[p.rows]) return;
  const LatentParams::Row row = p.RowAt(FindOwner(p.query_start, p.rows, token));
  if (token < row.first || token - row.first >= row.tokens) return;
  const int position = row.length - row.tokens + token - row.first;
  const T* const q =
      reinterpret_cast<const T*>(p.q + token * p.q_token_stride + head * p.q_head_stride);
  LaneState state;
  for (int key = threadIdx.x / kWarpSize; key <= position; key += kWarps) {
    AddKey<T>(p, p.VectorAt(row, key), q, &state);
  }
  MergeAndStore<T>(
      p, state,
      reinterpret_cast<T*>(p.out + token * p.out_token_stride + head * p.out_head_stride));
}

Status LaunchPlain(DType dtype, const LatentParams& p, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(p.tokens) * static_cast<unsigned>(p.heads);
  shape.threads = kWarps * kWarpSize;
  shape.stream = stream;
  if (dtype == DType::kF32) return LaunchDependent(PlainKernel<float>, shape, p);
  if (dtype == DType::kF16) return LaunchDependent(PlainKernel<__half>, shape, p);
  return LaunchDependent(PlainKernel<__nv_bfloat16>, shape, p);
}

Status CheckFits(const LatentAttentionArgs& a) {
  if (a.q.shape[0] * a.q.shape[1] > INT32_MAX) {
    return InvalidOp(
        kOp, "q has " + std::to_string(a.q.shape[0]) + " tokens, need fewer than 2^31 heads");
  }
  if (a.block_table.shape[1] * a.cache.shape[1] > kMaxLength) {
    return InvalidOp(kOp, "block_table has " + std::to_string(a.block_table.shape[1]) +
                              " columns, need at most 2^30 tokens a row");
  }
  if (a.row_slot.shape[0] > INT32_MAX || a.block_table.shape[0] > INT32_MAX ||
      a.cache.shape[0] > INT32_MAX || a.cache.shape[1] > INT32_MAX) {
    return InvalidOp(kOp, "row_slot, block_table or cache has an extent of 2^31 or more");
  }
  return Status::Ok();
}

LatentParams MakeParams(const LatentAttentionArgs& a) {
  const int64_t size = DTypeSize(a.q.dtype);
  LatentParams p{};
  p.q = a.q.ptr<char>();
  p.out = a.out.ptr<char>();
  p.cache = a.cache.ptr<char>();
  p.q_token_stride = a.q.stride[0] * size;
  p.q_head_stride = a.q.stride[1] * size;
  p.out_token_stride = a.out.stride[0] * size;
  p.out_head_stride = a.out.stride[1] * size;
  p.block_stride = a.cache.stride[0] * size;
  p.token_stride = a.cache.stride[1] * size;
  p.table = a.block_table.ptr<int32_t>();
  p.table_stride = a.block_table.stride[0];
  p.row_slot = a.row_slot.ptr<int32_t>();
  p.query_start = a.query_start.ptr<int32_t>();
  p.seq_len = a.seq_len.ptr<int32_t>();
  p.rows = static_cast<int32_t>(a.row_slot.shape[0]);
  p.slots = static_cast<int32_t>(a.block_table.shape[0]);
  p.columns = static_cast<int32_t>(a.block_table.shape[1]);
  p.blocks = static_cast<int32_t>(a.cache.shape[0]);
  p.block_size = static_cast<int32_t>(a.cache.shape[1]);
  p.tokens = static_cast<int32_t>(a.q.shape[0]);
  p.heads = static_cast<int32_t>(a.q.shape[1]);
  p.width = static_cast<int32_t>(a.q.shape[2]);
  p.rank = static_cast<int32_t>(a.out.shape[2]);
  p.scale = a.scale;
  return p;
}

// Whether the kernel on tensor cores takes these shapes.
bool FitsTiles(const LatentAttentionArgs& a) {
  const int64_t width = a.q.shape[2], rank = a.out.shape[2];
  return a.q.dtype != DType::kF32 && width <= kMaxTileWidth && rank <= kMaxTileRank &&
         width % kLatentStep == 0 && rank % kLatentStep == 0 &&
         a.row_slot.shape[0] <= kMaxTileRows && WideRows(a.q, width) && WideRows(a.out, rank) &&
         WideRows(a.cache, width);
}

}  // namespace

Status LatentAttention(const LatentAttentionArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(CheckFits(a));
  if (a.q.shape[0] == 0 || a.row_slot.shape[0] == 0) return Status::Ok();
  const LatentParams p = MakeParams(a);
  if (!FitsTiles(a)) return LaunchPlain(a.q.dtype, p, stream);
  const Result<DeviceFacts> facts = CurrentDeviceFacts();
  if (!facts.ok()) return facts.status();
  return LaunchLatentTiles(a.q.dtype, p, facts.value(), stream);
}

}  // namespace octavo::cuda
