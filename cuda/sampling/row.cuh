// A team of CTAs looks at one row of logits: loops over the row, sums, a pick in token order.
//
// Everything is deterministic: sums run in an order that depends on the row's length alone.
#pragma once

#include <cmath>

#include "common/element.cuh"
#include "common/host_device.h"
#include "common/ptx.cuh"
#include "sampling/team.cuh"

namespace octavo::cuda {

// A larger CTA would leave a thread 64 registers, which the loops here do not get by with.
inline constexpr int kRowThreads = 512;
inline constexpr int kRowWarps = kRowThreads / kWarpSize;
static_assert(kRowWarps <= kWarpSize, "one warp scans the warps' sums");

inline constexpr int kMaxVocab = 1 << 20;  // sums of 12-bit parts of mantissas fit 32 bits
inline constexpr int kChunks = 2 * kRowThreads;

// Calls f(index, value) for the elements of this CTA, a thread's in rising order. kWidth elements
// an access: 1, or 16 bytes where the row is aligned to them. kAhead elements, or the bytes of as
// many floats, are loaded before they are used.
template <int kWidth, int kAhead, typename T, class F>
__device__ __forceinline__ void ForEach(const RowTeam& team, const T* x, int n, F f) {
  constexpr int kBatch =
      kWidth == 1 ? kAhead : kAhead * static_cast<int>(sizeof(float) / sizeof(T)) / kWidth;
  const int step = team.size * kRowThreads * kWidth;
  const int first = team.rank * kRowThreads + static_cast<int>(threadIdx.x);
  const int whole = n - n % kWidth;
  for (int i = first * kWidth; i < whole; i += kBatch * step) {
    ElementPack<T, kWidth> loaded[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (i + b * step < whole) loaded[b] = LoadPack<T, kWidth>(x + i + b * step);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (i + b * step >= whole) break;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) f(i + b * step + j, loaded[b][j]);
    }
  }
  if (whole + first < n) f(whole + first, ToFloat(x[whole + first]));
}

// Registers do not hold more of a row that is read one by one.
template <int kWidth>
inline constexpr int kAhead = kWidth == 1 ? 4 : 8;

// Floats in the order of unsigned integers; both zeros are one.
__device__ __forceinline__ uint32_t OrderedBits(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

struct CountAndMass {
  int count = 0;
  double mass = 0.0;

  __device__ __forceinline__ CountAndMass operator+(const CountAndMass& o) const {
    return {count + o.count, mass + o.mass};
  }
};

__device__ __forceinline__ CountAndMass ShuffleUp(const CountAndMass& s, int step) {
  return {__shfl_up_sync(kFullWarp, s.count, step), __shfl_up_sync(kFullWarp, s.mass, step)};
}

__device__ __forceinline__ CountAndMass ScanWarp(CountAndMass value) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const CountAndMass other = ShuffleUp(value, step);
    if (lane >= step) value = other + value;
  }
  return value;
}

struct ScanScratch {
  CountAndMass warps[kRowWarps];
};

// The sum over the threads before this one, and over all of them. Barriers at both ends: scratch
// may be used again at once.
__device__ inline CountAndMass SumBefore(CountAndMass value, ScanScratch* scratch,
                                         CountAndMass* total) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const CountAndMass inclusive = ScanWarp(value);
  __syncthreads();
  if (lane == kWarpSize - 1) scratch->warps[warp] = inclusive;
  __syncthreads();
  if (warp == 0) {
    const CountAndMass sum = ScanWarp(lane < kRowWarps ? scratch->warps[lane] : CountAndMass{});
    __syncwarp();
    if (lane < kRowWarps) scratch->warps[lane] = sum;
  }
  __syncthreads();
  *total = scratch->warps[kRowWarps - 1];
  CountAndMass before = ShuffleUp(inclusive, 1);
  if (lane == 0) before = {};
  return warp == 0 ? before : scratch->warps[warp - 1] + before;
}

// The largest value of `key` over the CTA, in every thread.
__device__ inline unsigned long long LargestOfCta(unsigned long long key,
                                                  unsigned long long* scratch) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const auto of_warp = [](unsigned long long k) {
#pragma unroll
    for (int step = kWarpSize / 2; step > 0; step /= 2) {
      const unsigned long long other = __shfl_xor_sync(kFullWarp, k, step);
      k = other > k ? other : k;
    }
    return k;
  };
  key = of_warp(key);
  if (lane == 0) scratch[warp] = key;
  __syncthreads();
  return of_warp(lane < kRowWarps ? scratch[lane] : 0);
}

// The largest logit and the lowest id that has it. `nan`: the row is broken.
struct Largest {
  float value;
  int id;
  bool nan;
};

// A key that is larger for a larger logit and, among equals, for a lower id.
__device__ __forceinline__ unsigned long long LargestKey(float x, int id) {
  return static_cast<unsigned long long>(OrderedBits(x)) << 32 | static_cast<uint32_t>(~id);
}

// The same where the largest is searched for, and little else is done.
template <int kWidth>
inline constexpr int kAheadOfLargest = kWidth == 1 ? 4 : 24;

// The largest of the elements that a thread has looked at, in rising order: two comparisons each.
struct LargestOfThread {
  float value = -INFINITY;
  int id = 0;  // of the first that is larger than -inf; the row's first where none is
  bool nan = false;

  __device__ __forceinline__ void Take(int i, float x) {
    nan = nan || isnan(x);
    if (x > value) {
      value = x;
      id = i;
    }
  }
};

struct LargestScratch {
  unsigned long long warps[kRowWarps];
  unsigned long long team[kMaxTeam];
  int nan[kMaxTeam];
};

// From those of all threads of the team.
template <typename T>
__device__ Largest FindLargest(const RowTeam& team, const T* x, const LargestOfThread& mine,
                               LargestScratch* scratch) {
  bool nan = __syncthreads_or(mine.nan) != 0;
  unsigned long long key = LargestOfCta(LargestKey(mine.value, mine.id), scratch->warps);
  const int other = static_cast<int>(threadIdx.x);
  if (other < team.size) {
    *team.Of(&scratch->team[team.rank], other) = key;
    *team.Of(&scratch->nan[team.rank], other) = nan ? 1 : 0;
  }
  team.Sync();
  key = 0;
  nan = false;
  for (int r = 0; r < team.size; ++r) {
    key = scratch->team[r] > key ? scratch->team[r] : key;
    nan = nan || scratch->nan[r] != 0;
  }
  Largest found;
  found.nan = nan;
  found.id = static_cast<int>(~static_cast<uint32_t>(key));
  found.value = ToFloat(x[found.id]);
  return found;
}

struct PickScratch {
  double sums[kChunks];
  ScanScratch scan;
  int chunk;
  int last;
  double before;
  int picked;
};

// A chunk is summed by a warp, a lane's part of a piece at a time.
inline constexpr int kLanePart = 8;
inline constexpr int kPiece = kLanePart * kWarpSize;

// Elements of one of at most kChunks neighbouring chunks of a row.
__device__ __forceinline__ int ChunkOf(int n) {
  return CeilDiv(CeilDiv(n, kChunks), kPiece) * kPiece;
}

// A non-negative float as a double; what is subnormal becomes 0 or about as small. Integer
// instructions, of which a multiprocessor does several times as many as conversions.
__device__ __forceinline__ double ToDouble(float x) {
  constexpr int64_t kBiases = int64_t{1023 - 127} << 52;  // of the exponents of the two
  constexpr int kMantissas = 52 - 23;
  const int64_t bits = (static_cast<int64_t>(__float_as_uint(x)) << kMantissas) + kBiases;
  return x == 0.0f ? 0.0 : __longlong_as_double(bits);
}

// A lane's part of a piece of a row, as it is stored.
template <int kWidth, typename T>
struct LanePart {
  ElementPack<T, kWidth> pack[kLanePart / kWidth];
  static_assert(kLanePart % kWidth == 0 && sizeof(pack) == kLanePart * sizeof(T));

  __device__ __forceinline__ float operator[](int i) const { return pack[i / kWidth][i % kWidth]; }

  // REQUIRES: the row has all of it.
  __device__ __forceinline__ void Load(const T* x) {
#pragma unroll
    for (int j = 0; j < kLanePart / kWidth; ++j) pack[j] = LoadPack<T, kWidth>(x + j * kWidth);
  }

  // -inf is what lies behind the row's `left` elements.
  __device__ __forceinline__ void LoadUpTo(const T* x, int left) {
    if (left >= kLanePart) return Load(x);
    T elements[kLanePart];
#pragma unroll
    for (int j = 0; j < kLanePart; ++j) {
      octavo::cuda::Store(&elements[j], -INFINITY);
      if (j < left) elements[j] = x[j];
    }
    memcpy(static_cast<void*>(pack), elements, sizeof(pack));
  }

  // Each element becomes the larger of the two; NaN only where both are.
  __device__ __forceinline__ void TakeLarger(const LanePart& other) {
#pragma unroll
    for (int j = 0; j < kLanePart / kWidth; ++j) pack[j] = LargerOfEach(pack[j], other.pack[j]);
  }

  __device__ __forceinline__ float Largest() const {
    float largest = (*this)[0];
#pragma unroll
    for (int j = 1; j < kLanePart; ++j) largest = fmaxf(largest, (*this)[j]);
    return largest;
  }
};

// Sums weight(i, x[i]) over each chunk, into `sums` of every CTA of the team. Lanes add in the same
// order whatever the width of a load is.
template <int kWidth, typename T, class Weight>
__device__ void SumChunks(const RowTeam& team, const T* x, int n, Weight weight, double* sums) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int size = ChunkOf(n), warps = team.size * kRowWarps, chunks = CeilDiv(n, size);
  // Several chunks at a time, so that their loads are under way together.
  constexpr int kTogether = kWidth == 1 ? 1 : 2;
  team.Sync();  // nobody reads what was there
  for (int c = chunks + static_cast<int>(threadIdx.x); c < kChunks; c += kRowThreads) sums[c] = 0.0;
  for (int c = team.rank * kRowWarps + warp; c < chunks; c += warps * kTogether) {
    double sum[kTogether] = {};
    for (int i = lane * kLanePart; i < size; i += kPiece) {
      LanePart<kWidth, T> part[kTogether];
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        const int at = (c + t * warps) * size + i;
        if (at + kLanePart <= n) part[t].Load(x + at);
      }
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        const int at = (c + t * warps) * size + i;
        if (at + kLanePart <= n) {
#pragma unroll
          for (int j = 0; j < kLanePart; ++j) {
            sum[t] += ToDouble(weight(at + j, part[t][j]));
          }
          continue;
        }
#pragma unroll 1
        for (int j = at; j < n; ++j) sum[t] += ToDouble(weight(j, ToFloat(x[j])));
      }
    }
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
#pragma unroll
      for (int step = kWarpSize / 2; step > 0; step /= 2) {
        sum[t] += __shfl_xor_sync(kFullWarp, sum[t], step);
      }
      const int chunk = c + t * warps;
      if (lane < team.size && chunk < chunks) *team.Of(&sums[chunk], lane) = sum[t];
    }
  }
  team.Sync();
}

// The sum of weight(i, x[i]) over the row.
template <int kWidth, typename T, class Weight>
__device__ double SumOfRow(const RowTeam& team, const T* x, int n, Weight weight, PickScratch* s) {
  SumChunks<kWidth>(team, x, n, weight, s->sums);
  const int first = 2 * static_cast<int>(threadIdx.x);
  CountAndMass total;
  SumBefore({0, s->sums[first] + s->sums[first + 1]}, &s->scan, &total);
  return total.mass;
}

// The first token at which the running sum of weight(i, x[i]) exceeds the goal: goal(total). Where
// rounding leaves the goal beyond them all, the last token with a weight. 0 if none has one.
template <int kWidth, typename T, class Weight, class Goal>
__device__ int PickInOrder(const RowTeam& team, const T* x, int n, Weight weight, Goal goal,
                           PickScratch* s) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int size = ChunkOf(n);
  SumChunks<kWidth>(team, x, n, weight, s->sums);
  if (threadIdx.x == 0) {
    s->chunk = kChunks;
    s->last = -1;
    s->picked = 0;
  }
  __syncthreads();
  const int first = 2 * static_cast<int>(threadIdx.x);
  const double a = s->sums[first], b = s->sums[first + 1];
  CountAndMass total;
  const CountAndMass before = SumBefore({0, a + b}, &s->scan, &total);
  const double wanted = goal(total.mass);
  if (a > 0.0 && before.mass + a > wanted) atomicMin(&s->chunk, first);
  if (b > 0.0 && before.mass + (a + b) > wanted) atomicMin(&s->chunk, first + 1);
  if (a > 0.0 || b > 0.0) atomicMax(&s->last, b > 0.0 ? first + 1 : first);
  __syncthreads();
  const int chunk = s->chunk < kChunks ? s->chunk : s->last;
  if (chunk >= 0 && chunk / 2 == static_cast<int>(threadIdx.x)) {
    s->before = before.mass + (chunk % 2 == 0 ? 0.0 : a);
  }
  __syncthreads();
  if (warp == 0 && chunk >= 0) {
    double running = s->before;
    for (int i = chunk * size; i < Min(n, (chunk + 1) * size); i += kWarpSize) {
      const int mine = i + lane;
      const double w = mine < n ? ToDouble(weight(mine, ToFloat(x[mine]))) : 0.0;
      const CountAndMass sum = ScanWarp({0, w});
      const unsigned live = __ballot_sync(kFullWarp, w > 0.0);
      const unsigned past = __ballot_sync(kFullWarp, w > 0.0 && running + sum.mass > wanted);
      if (lane == 0 && live != 0) s->picked = i + (past != 0 ? __ffs(past) - 1 : 31 - __clz(live));
      if (past != 0) break;
      running += __shfl_sync(kFullWarp, sum.mass, kWarpSize - 1);
    }
  }
  __syncthreads();
  return s->picked;
}

}  // namespace octavo::cuda
