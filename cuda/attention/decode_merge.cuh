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
  if (p.sinks == nullptr) return p.value_scale / sum;
  const float sink = p.sinks[head] * kLog2E, high = fmaxf(maximum, sink);
  const float factor = Exp2(maximum - high);
  return p.value_scale * factor / (sum * factor + Exp2(sink - high));
}

// Makes the softmax of a head that of its union with the states of its row's shared keys, part by
// part: add(own, shared, sums) is to multiply the head's sums by `own` and add the part's `sums`
// [head dim], times `shared`. These were written by the kernel in front, whose end has been waited
// for. REQUIRES: g.shared >= 0.
template <class S, class Add>
__device__ __forceinline__ void JoinShared(const DecodeParams& p, const Segment& g, int head,
                                           float* maximum, float* sum, const Add& add) {
  const int64_t heads = int64_t{p.layer.kv_heads} * p.layer.group;
  const int64_t stride = p.shared_stride * heads;
  int64_t state = g.shared_row() * heads + head;
#pragma unroll 2
  for (int i = g.shared_parts(); i > 0; --i) {
    const float2 stat = __ldcg(p.shared_stats + state);
    const float high = fmaxf(*maximum, stat.x);
    const float own = Exp2(*maximum - high), shared = Exp2(stat.x - high);
    add(own, shared, p.shared_sums + state * S::kHeadDim);
    *maximum = high;
    *sum = own * *sum + shared * stat.y;
    state += stride;
  }
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

// Leaves a warp's state of column tile `n` where its CTA merges.
template <class S>
__device__ __forceinline__ void LeaveState(const SoftmaxState<S>& state, int n, float* merge,
                                           float2* stats) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int column = 2 * (lane % 4);
  float* const mine = merge + (warp * kColumnsOfMma + column) * S::kMergeRow;
#pragma unroll
  for (int d = 0; d < SoftmaxState<S>::kSteps; ++d) {
    const auto& o = state.o[d][n];
    if constexpr (S::kFp8) {
      float* const at = mine + d * 16 + lane / 4 * 2;
      *reinterpret_cast<float2*>(at) = make_float2(o[0], o[2]);
      *reinterpret_cast<float2*>(at + S::kMergeRow) = make_float2(o[1], o[3]);
    } else {
      float* const at = mine + d * 16 + lane / 4;
      at[0] = o[0];
      at[S::kMergeRow] = o[1];
      at[8] = o[2];
      at[8 + S::kMergeRow] = o[3];
    }
  }
  if (lane < 4) {
    stats[warp * kColumnsOfMma + column] = make_float2(state.maximum[n][0], state.sum[n][0]);
    stats[warp * kColumnsOfMma + column + 1] = make_float2(state.maximum[n][1], state.sum[n][1]);
  }
}

// Writes the union of the warps' states: to `out` if the segment is a whole item, else to the
// segment's slot. Ends with a barrier. kShares: whether rows may have shared keys.
template <class S, bool kShares>
__device__ __forceinline__ void MergeWarps(const DecodeParams& p, const Segment& g,
                                           const SoftmaxState<S>& state, float* merge) {
  using T = typename S::Element;
  constexpr int kQuads = S::kHeadDim / 4;
  float2* const stats = reinterpret_cast<float2*>(merge + S::kMergeFloats);
  const int columns = Min(g.queries * p.layer.group - g.column, S::kColumns);
#pragma unroll
  for (int n = 0; n < S::kColumnTiles; ++n) {
    LeaveState<S>(state, n, merge, stats);
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
        const float4 part =
            *reinterpret_cast<const float4*>(merge + (w * kColumnsOfMma + c) * S::kMergeRow + dim);
        sum += factor * stat.y;
        v.x += factor * part.x;
        v.y += factor * part.y;
        v.z += factor * part.z;
        v.w += factor * part.w;
      }
      const int tile_column = n * kColumnsOfMma + c;
      if (g.slot < 0) {
        const ColumnPlace at = PlaceOf(p.layer, g, tile_column);
        if (kShares && g.shared >= 0) {
          const auto add = [&](float own, float shared, const float* sums) {
            const float4 part = __ldcg(reinterpret_cast<const float4*>(sums + dim));
            v.x = own * v.x + shared * part.x;
            v.y = own * v.y + shared * part.y;
            v.z = own * v.z + shared * part.z;
            v.w = own * v.w + shared * part.w;
          };
          JoinShared<S>(p, g, at.head, &high, &sum, add);
        }
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
// REQUIRES: a barrier since the slot was written.
template <class S>
__device__ __forceinline__ bool ArriveLast(const DecodeParams& p, const Segment& g, float* merge) {
  int* const last = reinterpret_cast<int*>(merge + S::kMergeFloats + S::kStatFloats);
  if (threadIdx.x == 0) {
    uint32_t* const arrived = p.arrived + g.group_slot;
    *last = CountAcquireRelease(arrived) + 1 == static_cast<uint32_t>(g.splits) ? 1 : 0;
    if (*last != 0) *arrived = 0;  // for the next layer
  }
  __syncthreads();
  return *last != 0;
}

// A run of one column's splits, summed by a warp; lane l holds the pairs of head dims l, l + 32.
template <class S>
struct SplitSum {
  static constexpr int kPairs = S::kHeadDim / (2 * kWarpSize);
  static constexpr int kBatch = 2048 / S::kHeadDim;  // splits in flight: 64 registers of them
  static_assert(kBatch <= kWarpSize, "a lane holds a split's weight");

  float maximum = kNoScore;  // of all splits
  float sum = 0.0f;
  float2 v[kPairs] = {};

  // `row`: the column's row in the slot of the item's first split. Reads go to L2, where the other
  // CTAs' writes are.
  __device__ __forceinline__ void Add(const DecodeParams& p, int64_t row, int splits, int begin,
                                      int end) {
    const int lane = threadIdx.x % kWarpSize;
    const float2* const stats = p.stats + row;
    const float* const sums = p.sums + row * S::kHeadDim;
    for (int first = begin; first < end; first += kBatch) {
      float2 part[kBatch][kPairs];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int split = Min(first + b, end - 1);
        const auto* const from =
            reinterpret_cast<const float2*>(sums + int64_t{split} * S::kColumns * S::kHeadDim);
#pragma unroll
        for (int i = 0; i < kPairs; ++i) part[b][i] = __ldcg(from + i * kWarpSize + lane);
      }
      float weight = 0.0f;
      const int split = first + lane;
      float2 stat = make_float2(kNoScore, 0.0f);
      if (lane < kBatch && split < end) stat = __ldcg(stats + int64_t{split} * S::kColumns);
      if (first == begin) FindMaximum(stats, splits);
      weight = lane < kBatch && split < end ? Exp2(stat.x - maximum) : 0.0f;
      sum += weight * stat.y;
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const float factor = __shfl_sync(kFullWarp, weight, b);
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          v[i].x += factor * part[b][i].x;
          v[i].y += factor * part[b][i].y;
        }
      }
    }
    for (int step = 1; step < kWarpSize; step *= 2) {
      sum += __shfl_xor_sync(kFullWarp, sum, step);
    }
  }

  // Adds what the row shares, to the sum of all splits.
  __device__ __forceinline__ void Join(const DecodeParams& p, const Segment& g, int head) {
    const auto add = [&](float own, float shared, const float* sums) {
      const auto* const from = reinterpret_cast<const float2*>(sums) + threadIdx.x % kWarpSize;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const float2 part = __ldcg(from + i * kWarpSize);
        v[i].x = own * v[i].x + shared * part.x;
        v[i].y = own * v[i].y + shared * part.y;
      }
    };
    JoinShared<S>(p, g, head, &maximum, &sum, add);
  }

 private:
  __device__ __forceinline__ void FindMaximum(const float2* stats, int splits) {
    for (int s = threadIdx.x % kWarpSize; s < splits; s += kWarpSize) {
      maximum = fmaxf(maximum, __ldcg(stats + int64_t{s} * S::kColumns).x);
    }
    for (int step = 1; step < kWarpSize; step *= 2) {
      maximum = fmaxf(maximum, __shfl_xor_sync(kFullWarp, maximum, step));
    }
  }
};

// The union of an item's splits, written to `out` by the last CTA to arrive. Columns are dealt to
// warps; where warps are left over, several share a column, each a run of splits. kShares: as
// above.
template <class S, bool kShares>
__device__ __forceinline__ void MergeSplits(const DecodeParams& p, const Segment& g, float* merge) {
  using T = typename S::Element;
  if (!ArriveLast<S>(p, g, merge)) return;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int columns = Min(g.queries * p.layer.group - g.column, S::kColumns);
  const int sharers = Min(Max(1, S::kWarps / columns), g.splits), at_once = S::kWarps / sharers;
  const int share = warp % sharers;
  for (int first = 0; first < columns; first += at_once) {
    const int column = first + warp / sharers;
    const bool live = column < columns && warp < at_once * sharers;
    SplitSum<S> total;
    if (live) {
      total.Add(p, int64_t{g.group_slot} * S::kColumns + column, g.splits,
                g.splits * share / sharers, g.splits * (share + 1) / sharers);
    }
    float2* const mine = reinterpret_cast<float2*>(merge + warp * S::kMergeRow);
    if (sharers > 1) {
#pragma unroll
      for (int i = 0; i < SplitSum<S>::kPairs; ++i) mine[i * kWarpSize + lane] = total.v[i];
      if (lane == 0) merge[S::kMergeFloats + warp] = total.sum;
      __syncthreads();
    }
    if (live && share == 0) {
      for (int w = 1; w < sharers; ++w) total.sum += merge[S::kMergeFloats + warp + w];
      for (int w = 1; w < sharers; ++w) {
#pragma unroll
        for (int i = 0; i < SplitSum<S>::kPairs; ++i) {
          const float2 part = mine[w * (S::kMergeRow / 2) + i * kWarpSize + lane];
          total.v[i].x += part.x;
          total.v[i].y += part.y;
        }
      }
      const ColumnPlace at = PlaceOf(p.layer, g, column);
      if (kShares && g.shared >= 0) total.Join(p, g, at.head);
      const float f = OutputFactor(p.layer, at.head, total.maximum, total.sum);
#pragma unroll
      for (int i = 0; i < SplitSum<S>::kPairs; ++i) {
        *reinterpret_cast<uint32_t*>(OutAt<T>(p.layer, at, 2 * (i * kWarpSize + lane))) =
            Pack<T>(total.v[i].x * f, total.v[i].y * f);
      }
    }
    if (sharers > 1) __syncthreads();
  }
}

}  // namespace octavo::cuda
