// A token of a row that neither top_k nor top_p cuts, from one pass over the row.
//
// The row is cut into chunks of 1024 elements. A warp keeps a chunk in registers, finds its largest
// logit and sums the weights relative to that one, 2^((x - base) * scale): what the row's largest
// is, nobody has to know before the end. Then the chunks' sums are scaled to the row's largest, a
// chunk is picked, in it a run of 32 elements, in that the token. An element costs some eight
// instructions, one of them a MUFU, the next chunk being loaded meanwhile. Bound by bytes where
// rows are many, by latency where they are few.
//
// Precision: a weight is within 2 ulp and what rounding its exponent does, |exponent| * 2^-24. A
// lane adds its 32 weights in float32, as a tree of depth 5 (within 5 * 2^-24 of the exact sum),
// and everything above that is double. The order depends on the place in the row alone, not on the
// team's size nor on the width of a load.
#pragma once

#include <cfloat>

#include "base/uniform.h"
#include "sampling/row.cuh"

namespace octavo::cuda {

inline constexpr int kLaneParts = 4;  // that a lane has of a chunk
inline constexpr int kDrawChunk = kLaneParts * kPiece;
inline constexpr int kLaneRun = kDrawChunk / kWarpSize;  // neighbours, where a token is looked for
inline constexpr int kMaxDrawChunks = kMaxVocab / kDrawChunk;
static_assert(kMaxVocab % kDrawChunk == 0);
static_assert(kMaxDrawChunks <= kWarpSize * kWarpSize, "two picks of a lane find a chunk");
static_assert(kLaneRun == kWarpSize, "a lane an element of a run");

// NaN where an element is; infinite where one is +inf; 0 where all are -inf.
struct ChunkSum {
  double sum;
  float base;  // the largest, kept finite: what the weights are relative to
};

struct DrawScratch {
  ChunkSum chunks[kMaxDrawChunks];
  double masses[kMaxDrawChunks];  // the sums, relative to the row's largest
};

// Weights relative to `base`, whose weight is 1; 0 below min_p.
struct BinaryWeights {
  float base, scale, min_p;

  __device__ __forceinline__ float operator()(float x) const {
    const float w = x == base ? 1.0f : Exp2((x - base) * scale);
    return w >= min_p ? w : 0.0f;
  }
};

__device__ __forceinline__ float LargestOfWarp(float x) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, step));
  }
  return x;
}

__device__ __forceinline__ double SumOfWarp(double x) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) x += __shfl_xor_sync(kFullWarp, x, step);
  return x;
}

// The sum over this lane and those before it.
__device__ __forceinline__ double SumUpTo(double x) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const double other = __shfl_up_sync(kFullWarp, x, step);
    if (lane >= step) x += other;
  }
  return x;
}

// Parts of a row that a lane has in registers, as they are stored: kStride elements from one to the
// next. What lies behind the row's end is -inf.
template <int kWidth, int kStride, typename T>
struct LaneParts {
  LanePart<kWidth, T> part[kLaneParts];

  // `x` is where the first part begins. REQUIRES: the row has all parts.
  __device__ __forceinline__ void Load(const T* x) {
#pragma unroll
    for (int p = 0; p < kLaneParts; ++p) part[p].Load(x + p * kStride);
  }

  // The row has `left` elements from the first part on.
  __device__ __forceinline__ void LoadUpTo(const T* x, int left) {
#pragma unroll
    for (int p = 0; p < kLaneParts; ++p) part[p].LoadUpTo(x + p * kStride, left - p * kStride);
  }

  // Without NaN, unless all are.
  __device__ __forceinline__ float Largest() const {
    LanePart<kWidth, T> of_parts = part[0];
#pragma unroll
    for (int p = 1; p < kLaneParts; ++p) of_parts.TakeLarger(part[p]);
    return of_parts.Largest();
  }

  template <class Weight>
  __device__ __forceinline__ float Sum(Weight weight) const {
    float sums[kLaneParts];
#pragma unroll
    for (int p = 0; p < kLaneParts; ++p) {
      float w[kLanePart];
#pragma unroll
      for (int j = 0; j < kLanePart; ++j) w[j] = weight(part[p][j]);
      sums[p] = ((w[0] + w[1]) + (w[2] + w[3])) + ((w[4] + w[5]) + (w[6] + w[7]));
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
};
static_assert(kLanePart == 8 && kLaneParts == 4, "Sum adds that many");

// This lane's part of a chunk.
template <int kWidth, typename T>
struct LaneChunk : LaneParts<kWidth, kPiece, T> {
  __device__ __forceinline__ void LoadOf(const T* x, int n, int chunk) {
    const int begin = chunk * kDrawChunk;
    const int at = begin + static_cast<int>(threadIdx.x) % kWarpSize * kLanePart;
    if (begin + kDrawChunk <= n) {
      this->Load(x + at);
    } else {
      this->LoadUpTo(x + at, n - at);
    }
  }
};

__device__ __forceinline__ void StoreChunk(const RowTeam& team, ChunkSum* chunk, double sum,
                                           float base) {
  const int other = static_cast<int>(threadIdx.x) % kWarpSize;
  __syncwarp();  // all lanes have read what was there
  if (other < team.size) *team.Of(chunk, other) = {sum, base};
}

// Sums each chunk relative to its own largest, in every CTA of the team.
template <int kWidth, typename T>
__device__ __forceinline__ void SumAllChunks(const RowTeam& team, const T* x, int n, float scale,
                                             ChunkSum* chunks) {
  const int warp = threadIdx.x / kWarpSize, warps = team.size * kRowWarps;
  const int count = CeilDiv(n, kDrawChunk);
  int c = team.rank * kRowWarps + warp;
  LaneChunk<kWidth, T> next;
  if (c < count) next.LoadOf(x, n, c);
  for (; c < count; c += warps) {
    const LaneChunk<kWidth, T> now = next;
    if (c + warps < count) next.LoadOf(x, n, c + warps);
    const float base = fminf(fmaxf(LargestOfWarp(now.Largest()), -FLT_MAX), FLT_MAX);
    const float sum = now.Sum([&](float value) { return Exp2((value - base) * scale); });
    StoreChunk(team, &chunks[c], SumOfWarp(static_cast<double>(sum)), base);
  }
  team.Sync();
}

// The same relative to the row's largest, of what min_p keeps: chunks that it drops as a whole are
// not read again.
template <int kWidth, typename T>
__device__ __forceinline__ void SumKeptChunks(const RowTeam& team, const T* x, int n,
                                              const BinaryWeights& weights, ChunkSum* chunks) {
  const int warp = threadIdx.x / kWarpSize, warps = team.size * kRowWarps;
  team.Sync();  // all have found the row's largest
  for (int c = team.rank * kRowWarps + warp; c < CeilDiv(n, kDrawChunk); c += warps) {
    const ChunkSum whole = chunks[c];
    const bool kept = weights.base == INFINITY ? whole.sum == INFINITY : weights(whole.base) > 0.0f;
    float sum = 0.0f;
    if (kept) {
      LaneChunk<kWidth, T> now;
      now.LoadOf(x, n, c);
      sum = now.Sum(weights);
    }
    StoreChunk(team, &chunks[c], SumOfWarp(static_cast<double>(sum)), weights.base);
  }
  team.Sync();
}

// The row's largest logit from its chunks: -inf where there is none, NaN in a row with NaN.
__device__ __forceinline__ float LargestOfChunks(const ChunkSum* chunks, int count) {
  bool nan = false;
  float largest = -INFINITY;
  for (int c = static_cast<int>(threadIdx.x) % kWarpSize; c < count; c += kWarpSize) {
    const ChunkSum chunk = chunks[c];
    nan = nan || isnan(chunk.sum);
    if (chunk.sum > 0.0) largest = fmaxf(largest, chunk.sum < INFINITY ? chunk.base : INFINITY);
  }
  largest = LargestOfWarp(largest);
  return __ballot_sync(kFullWarp, nan) != 0 ? NAN : largest;
}

struct PickedLane {
  int lane;
  double left;  // of the goal, behind the lanes before it
};

// The first lane at which the running sum of `mine` exceeds the goal. Where rounding leaves the
// goal beyond them all, the last that has any. `up_to` is SumUpTo(mine).
__device__ __forceinline__ PickedLane PickLane(double mine, double up_to, double goal) {
  const unsigned live = __ballot_sync(kFullWarp, mine > 0.0);
  const unsigned past = __ballot_sync(kFullWarp, mine > 0.0 && up_to > goal);
  const int lane = past != 0 ? __ffs(past) - 1 : kWarpSize - 1 - __clz(live | 1u);
  return {lane, goal - __shfl_sync(kFullWarp, up_to - mine, lane)};
}

__device__ __forceinline__ PickedLane PickLane(double mine, double goal) {
  return PickLane(mine, SumUpTo(mine), goal);
}

// The token at the part `u` of the row's mass in token order, by one warp.
template <int kWidth, typename T>
__device__ __forceinline__ int PickToken(const T* x, int n, float scale, float min_p, double u,
                                         const DrawScratch& s) {
  const int lane = threadIdx.x % kWarpSize, count = CeilDiv(n, kDrawChunk);
  const int group = CeilDiv(count, kWarpSize);  // neighbouring chunks of a lane
  double mine = 0.0;
  for (int c = lane * group; c < Min(count, (lane + 1) * group); ++c) mine += s.masses[c];
  const double up_to = SumUpTo(mine), total = __shfl_sync(kFullWarp, up_to, kWarpSize - 1);
  const PickedLane of_groups = PickLane(mine, up_to, u * total);
  const int first = of_groups.lane * group;
  const bool has_chunk = lane < group && first + lane < count;
  const PickedLane of_chunks = PickLane(has_chunk ? s.masses[first + lane] : 0.0, of_groups.left);
  const int chunk = first + of_chunks.lane;
  const ChunkSum picked = s.chunks[chunk];
  const BinaryWeights weights{picked.base, scale, min_p};
  const int begin = chunk * kDrawChunk, at = begin + lane * kLaneRun;
  LaneParts<kWidth, kLanePart, T> run;
  run.LoadUpTo(x + at, n - at);
  const PickedLane of_runs = PickLane(static_cast<double>(run.Sum(weights)),
                                      of_chunks.left * (picked.sum / s.masses[chunk]));
  const int token = begin + of_runs.lane * kLaneRun;
  const float weight = token + lane < n ? weights(ToFloat(x[token + lane])) : 0.0f;
  return token + PickLane(static_cast<double>(weight), of_runs.left).lane;
}

// The token of a row that nothing cuts but min_p, or -1: NaN in the row, or nothing allowed. Only
// thread 0 of the first CTA knows it. min_p needs what it keeps to be summed again, and so does
// +inf, beside which nothing has a weight. REQUIRES: the team has begun.
template <int kWidth, typename T>
__device__ int DrawUncut(const RowTeam& team, const T* x, int n, float temperature, float min_p,
                         uint64_t seed, uint64_t sample_index, DrawScratch* s) {
  constexpr double kLog2E = 1.4426950408889634;
  const float scale = static_cast<float>(kLog2E * static_cast<double>(1.0f / temperature));
  SumAllChunks<kWidth>(team, x, n, scale, s->chunks);
  const int count = CeilDiv(n, kDrawChunk);
  const float largest = LargestOfChunks(s->chunks, count);
  if (!(largest > -INFINITY)) return -1;
  if (min_p > 0.0f || largest == INFINITY) {
    SumKeptChunks<kWidth>(team, x, n, BinaryWeights{largest, scale, min_p}, s->chunks);
  }
  if (team.rank != 0) return -1;
  for (int c = static_cast<int>(threadIdx.x); c < count; c += kRowThreads) {
    const ChunkSum chunk = s->chunks[c];
    const double below = static_cast<double>(chunk.base) - static_cast<double>(largest);
    const bool exact = chunk.sum == 0.0 || chunk.base == largest;
    s->masses[c] = exact ? chunk.sum : chunk.sum * exp2(below * static_cast<double>(scale));
  }
  __syncthreads();
  if (threadIdx.x >= kWarpSize) return -1;
  return PickToken<kWidth>(x, n, scale, min_p, Uniform(seed, sample_index), *s);
}

}  // namespace octavo::cuda
