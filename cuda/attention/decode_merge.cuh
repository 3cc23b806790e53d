// How softmax states meet: the warps of a CTA at a segment's end, and the splits of an item.
//
// A state is, for each column, a maximum m (log2), a sum of weights l and weighted sums of V. Their
// union scales each by 2^(m - M) with M the largest m; a sink is one more weight without a value.
#pragma once

#include "attention/decode_softmax.cuh"

namespace octavo::cuda {

// Factor for a column's sums that makes them its output. `maximum` and `sum` are its softmax's.
__device__ __forceinline__ float OutputFactor(const LayerParams& p, int head, float maximum,
                                              float sum) {
  if (p.sinks == nullptr) return 1.0f / sum;
  const float sink = p.sinks[head] * kLog2E, high = fmaxf(maximum, sink);
  const float factor = Exp2(maximum - high);
  return factor / (sum * factor + Exp2(sink - high));
}

// A packed query: its token and head in q and out.
struct ColumnPlace {
  int token;
  int head;
};

__device__ __forceinline__ ColumnPlace PlaceOf(const LayerParams& p, const Segment& g, int column) {
  const int token = (g.column + column) / p.group;
  return {g.first_token + token, g.head * p.group + g.column + column - token * p.group};
}

template <typename T>
__device__ __forceinline__ char* OutAt(const LayerParams& p, ColumnPlace at, int dim) {
  return p.out + at.token * p.out_token_stride + at.head * p.out_head_stride +
         dim * static_cast<int>(sizeof(T));
}

// Writes the union of the warps' states: to `out` if the segment is a whole item, else to the
// segment's slot. Ends with a barrier.
template <class S>
__device__ __forceinline__ void MergeWarps(const DecodeParams& p, const Segment& g,
                                           const SoftmaxState<S>& state, float* merge) {
  using T = typename S::Element;
  constexpr int kSteps = SoftmaxState<S>::kSteps;
  constexpr int kQuads = S::kHeadDim / 4;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  float2* const stats = reinterpret_cast<float2*>(merge + S::kMergeFloats);
  const int columns = Min(g.queries * p.layer.group - g.column, S::kColumns);
#pragma unroll
  for (int n = 0; n < S::kColumnTiles; ++n) {
    const int column = 2 * (lane % 4);
    float* const mine = merge + (warp * kColumnsOfMma + column) * S::kMergeRow + lane / 4;
#pragma unroll
    for (int d = 0; d < kSteps; ++d) {
      mine[d * 16] = state.o[d][n][0];
      mine[d * 16 + S::kMergeRow] = state.o[d][n][1];
      mine[d * 16 + 8] = state.o[d][n][2];
      mine[d * 16 + 8 + S::kMergeRow] = state.o[d][n][3];
    }
    if (lane < 4) {
      stats[warp * kColumnsOfMma + column] = make_float2(state.maximum[n][0], state.sum[n][0]);
      stats[warp * kColumnsOfMma + column + 1] = make_float2(state.maximum[n][1], state.sum[n][1]);
    }
    __syncthreads();
    const int live = Min(columns - n * kColumnsOfMma, kColumnsOfMma);
    for (int i = threadIdx.x; i < live * kQuads; i += S::kThreads) {
      const int c = i / kQuads, dim = i % kQuads * 4;
      float high = kNoScore, sum = 0.0f;
      float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (int w = 0; w < S::kWarps; ++w) high = fmaxf(high, stats[w * kColumnsOfMma + c].x);
#pragma unroll
      for (int w = 0; w < S::kWarps; ++w) {
        const float2 stat = stats[w * kColumnsOfMma + c];
        const float factor = Exp2(stat.x - high);
        const float4 part = *reinterpret_cast<const float4*>(
            merge + (w * kColumnsOfMma + c) * S::kMergeRow + dim);
        sum += factor * stat.y;
        v.x += factor * part.x;
        v.y += factor * part.y;
        v.z += factor * part.z;
        v.w += factor * part.w;
      }
      const int tile_column = n * kColumnsOfMma + c;
      if (g.slot < 0) {
        const ColumnPlace at = PlaceOf(p.layer, g, tile_column);
        const float f = OutputFactor(p.layer, at.head, high, sum);
        *reinterpret_cast<uint2*>(OutAt<T>(p.layer, at, dim)) =
            make_uint2(Pack<T>(v.x * f, v.y * f), Pack<T>(v.z * f, v.w * f));
      } else {
        const int64_t row = int64_t{g.slot} * S::kColumns + tile_column;
        *reinterpret_cast<float4*>(p.sums + row * S::kHeadDim + dim) = v;
        if (dim == 0) p.stats[row] = make_float2(high, sum);
      }
    }
    __syncthreads();
  }
}

// True in the CTA that is the last of the item's to have written its slot; that one sees all slots.
__device__ __forceinline__ bool ArriveLast(const DecodeParams& p, const Segment& g) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t* const arrived = p.arrived + g.group_slot;
    last = atomicAdd(arrived, 1u) + 1 == static_cast<uint32_t>(g.splits);
    if (last) *arrived = 0;  // for the next layer
  }
  __syncthreads();
  const bool mine = last;
  __threadfence();
  return mine;
}

// The union of an item's splits, written to `out` by the last CTA to arrive. Columns are dealt to
// warps; where warps are left over, several share a column, each a run of splits.
template <class S>
__device__ __forceinline__ void MergeSplits(const DecodeParams& p, const Segment& g,
                                            float* merge) {
  using T = typename S::Element;
  constexpr int kPairs = S::kHeadDim / (2 * kWarpSize);  // pairs of head dims a lane
  if (!ArriveLast(p, g)) return;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int columns = Min(g.queries * p.layer.group - g.column, S::kColumns);
  const int sharers = Max(1, S::kWarps / columns), lanes_of_columns = S::kWarps / sharers;
  const int share = warp % sharers;
  for (int first = 0; first < columns; first += lanes_of_columns) {
    const int column = first + warp / sharers;
    const bool live = column < columns && warp < lanes_of_columns * sharers;
    float high = kNoScore, sum = 0.0f;
    float2 v[kPairs] = {};
    if (live) {
      const int64_t row = int64_t{g.group_slot} * S::kColumns + column;
      const float2* const stats = p.stats + row;
      for (int s = lane; s < g.splits; s += kWarpSize) {
        high = fmaxf(high, __ldcg(stats + int64_t{s} * S::kColumns).x);
      }
      for (int step = 1; step < kWarpSize; step *= 2) {
        high = fmaxf(high, __shfl_xor_sync(kFullWarp, high, step));
      }
      const int end = g.splits * (share + 1) / sharers;
#pragma unroll 4
      for (int s = g.splits * share / sharers; s < end; ++s) {
        const float2 stat = __ldcg(stats + int64_t{s} * S::kColumns);
        const float* const from = p.sums + (row + int64_t{s} * S::kColumns) * S::kHeadDim;
        const float factor = Exp2(stat.x - high);
        sum += factor * stat.y;
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          const float2 part = __ldcg(reinterpret_cast<const float2*>(from) + i * kWarpSize + lane);
          v[i].x += factor * part.x;
          v[i].y += factor * part.y;
        }
      }
    }
    float2* const mine = reinterpret_cast<float2*>(merge + warp * S::kMergeRow);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) mine[i * kWarpSize + lane] = v[i];
    if (lane == 0) merge[S::kMergeFloats + warp] = sum;
    __syncthreads();
    if (live && share == 0) {
      for (int w = warp + 1; w < warp + sharers; ++w) sum += merge[S::kMergeFloats + w];
      const ColumnPlace at = PlaceOf(p.layer, g, column);
      const float f = OutputFactor(p.layer, at.head, high, sum);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        for (int w = warp + 1; w < warp + sharers; ++w) {
          const float2 part =
              reinterpret_cast<const float2*>(merge + w * S::kMergeRow)[i * kWarpSize + lane];
          v[i].x += part.x;
          v[i].y += part.y;
        }
        *reinterpret_cast<uint32_t*>(OutAt<T>(p.layer, at, 2 * (i * kWarpSize + lane))) =
            Pack<T>(v[i].x * f, v[i].y * f);
      }
    }
    __syncthreads();
  }
}

}  // namespace octavo::cuda
