// The cut of a row: the smallest set of its largest elements that reaches a count and a mass.
//
// Elements are unsigned keys; 0 is no element. Where mass counts, the key is the bits of a positive
// float and its mass that float. The search descends 11, 11 and 10 bits at a time: each level
// counts the undecided elements in bins and keeps the one bin in which the goal is reached. It
// stops early when so few elements are left that they can be sorted. All elements of a bin share
// their exponent, so a bin's mass is an exact sum of integer mantissas, in two halves of 12 bits:
// whatever the order of the additions, the result is the same.
#pragma once

#include "sampling/row.cuh"

namespace octavo::cuda {

inline constexpr int kBins = 2048;
inline constexpr int kLevels = 3;
inline constexpr int kGathered = 2048;              // elements that are sorted in shared memory
inline constexpr int kOwned = kBins / kRowThreads;  // bins of a thread, and gathered elements
static_assert(kBins == kOwned * kRowThreads && kGathered == kOwned * kRowThreads);

struct BinScratch {
  uint32_t count[kBins];
  uint32_t low[kBins];  // sums of the mantissas' low and high 12 bits
  uint32_t high[kBins];
  ScanScratch scan;
  int bin;       // the topmost in which the goal is reached, -1: none
  int last_bin;  // the lowest that holds anything
  CountAndMass above;
  int in_bin;
};

// Keeps the keys >= low, and among those equal to low only the tokens below tie_end.
struct Cut {
  uint32_t low = 1;
  int tie_end = kMaxVocab;
  bool exact = true;   // else some that are kept lie beyond the cut: sort them
  double total = 0.0;  // mass of all elements, where mass counts

  __device__ __forceinline__ bool Keeps(uint32_t key, int i) const {
    return key > low || (key == low && i < tie_end);
  }
};

__device__ __forceinline__ int LevelShift(int level) {
  return level == 0 ? 21 : level == 1 ? 10 : 0;
}

__device__ __forceinline__ double MassOfBin(const BinScratch& s, int bin, uint32_t first_key) {
  constexpr int kMantissaBits = 23, kBias = 150;  // value = mantissa * 2^(exponent - 150)
  const int exponent = static_cast<int>(first_key >> kMantissaBits);
  const double mantissas = 4096.0 * s.high[bin] + s.low[bin];
  return ldexp(mantissas, (exponent == 0 ? 1 : exponent) - kBias);
}

__device__ __forceinline__ void AddToBin(BinScratch* s, int bin, uint32_t key, bool mass) {
  atomicAdd(&s->count[bin], 1u);
  if (!mass) return;
  const uint32_t mantissa = (key & 0x7fffffu) | (key >> 23 == 0 ? 0u : 0x800000u);
  atomicAdd(&s->low[bin], mantissa & 4095u);
  atomicAdd(&s->high[bin], mantissa >> 12);
}

// Makes the bins of every CTA those of the whole row.
__device__ inline void MergeBins(const RowTeam& team, bool mass, BinScratch* s) {
  if (team.size == 1) return;
  uint32_t count[kOwned] = {}, low[kOwned] = {}, high[kOwned] = {};
  team.Sync();
  for (int r = 0; r < team.size; ++r) {
#pragma unroll
    for (int j = 0; j < kOwned; ++j) {
      const int b = j * kRowThreads + static_cast<int>(threadIdx.x);
      count[j] += *team.Of(&s->count[b], r);
      if (!mass) continue;
      low[j] += *team.Of(&s->low[b], r);
      high[j] += *team.Of(&s->high[b], r);
    }
  }
  team.Sync();
#pragma unroll
  for (int j = 0; j < kOwned; ++j) {
    const int b = j * kRowThreads + static_cast<int>(threadIdx.x);
    s->count[b] = count[j];
    s->low[b] = low[j];
    s->high[b] = high[j];
  }
  __syncthreads();
}

// Counts the elements whose higher bits are `prefix` into the bins of a level. for_each(f) calls
// f(index, key).
template <class ForEachKey>
__device__ void FillBins(const RowTeam& team, ForEachKey for_each, int level, uint32_t prefix,
                         bool mass, BinScratch* s) {
  for (int b = threadIdx.x; b < kBins; b += kRowThreads) {
    s->count[b] = 0;
    s->low[b] = 0;
    s->high[b] = 0;
  }
  if (threadIdx.x == 0) {
    s->bin = -1;
    s->last_bin = kBins;
  }
  __syncthreads();
  const int shift = LevelShift(level);
  const uint32_t mask = level == kLevels - 1 ? 1023u : 2047u;
  for_each([&](int, uint32_t key) {
    if (key == 0) return;
    if (level > 0 && key >> LevelShift(level - 1) != prefix) return;
    AddToBin(s, static_cast<int>((key >> shift) & mask), key, mass);
  });
  __syncthreads();
  MergeBins(team, mass, s);
}

// Finds the bin, from the top, in which count and mass are reached, `above` being kept already; the
// lowest where rounding leaves them unreached. A fraction >= 0 makes the mass that part of the
// total, which level 0 finds. Returns false where there is no element.
__device__ inline bool FindBin(int level, uint32_t prefix, int count, double fraction,
                               CountAndMass above, double* total, BinScratch* s) {
  const int bits = level == kLevels - 1 ? 10 : 11;
  CountAndMass mine[kOwned], sum;
  const int top = kBins - 1 - kOwned * static_cast<int>(threadIdx.x);
#pragma unroll
  for (int j = 0; j < kOwned; ++j) {
    const int bin = top - j;
    mine[j].count = static_cast<int>(s->count[bin]);
    const uint32_t key = (prefix << bits | static_cast<uint32_t>(bin)) << LevelShift(level);
    if (fraction >= 0.0 && mine[j].count > 0) mine[j].mass = MassOfBin(*s, bin, key);
    sum = sum + mine[j];
  }
  CountAndMass all;
  const CountAndMass before = above + SumBefore(sum, &s->scan, &all);
  if (level == 0) *total = all.mass;
  const double mass = fraction >= 0.0 ? fraction * *total : 0.0;
  CountAndMass after = before;
#pragma unroll
  for (int j = 0; j < kOwned; ++j) {
    after = after + mine[j];
    if (mine[j].count == 0) continue;
    if (after.count >= count && after.mass >= mass) atomicMax(&s->bin, top - j);
    atomicMin(&s->last_bin, top - j);
  }
  __syncthreads();
  const int found = s->bin >= 0 ? s->bin : s->last_bin;
  after = before;
#pragma unroll
  for (int j = 0; j < kOwned; ++j) {
    if (top - j == found) {
      s->above = after;
      s->in_bin = mine[j].count;
    }
    after = after + mine[j];
  }
  __syncthreads();
  return found < kBins;
}

// The cut at which at least `count` elements and, with a fraction >= 0, that part of the whole mass
// are kept. REQUIRES: count >= 1. At most kGathered elements are left where it is not exact.
// key_of(i, x[i]) is the key of an element.
template <int kWidth, typename T, class ForEachKey, class KeyOf>
__device__ Cut FindCut(const RowTeam& team, const T* x, ForEachKey for_each, KeyOf key_of, int n,
                       int count, double fraction, BinScratch* bins, PickScratch* pick) {
  Cut cut;
  CountAndMass above;
  uint32_t prefix = 0;
  for (int level = 0; level < kLevels; ++level) {
    FillBins(team, for_each, level, prefix, fraction >= 0.0, bins);
    if (!FindBin(level, prefix, count, fraction, above, &cut.total, bins)) return cut;
    const int found = bins->bin >= 0 ? bins->bin : bins->last_bin;
    above = bins->above;
    prefix = prefix << (level == kLevels - 1 ? 10 : 11) | static_cast<uint32_t>(found);
    cut.low = prefix << LevelShift(level);
    const int left = above.count + bins->in_bin;
    __syncthreads();
    if (left <= kGathered) {
      cut.exact = false;
      return cut;
    }
  }
  // One value is left, and too many have it: how many of them, and which token is the first beyond.
  double need = count - above.count;
  if (fraction >= 0.0) {
    const double missing = fraction * cut.total - above.mass;
    need = fmax(need, ceil(missing / static_cast<double>(__uint_as_float(cut.low))));
  }
  const uint32_t low = cut.low;
  const auto tie = [&](int i, float value) { return key_of(i, value) == low ? 1.0f : 0.0f; };
  cut.tie_end = 1 + PickInOrder<kWidth>(team, x, n, tie, [&](double) { return need - 0.5; }, pick);
  return cut;
}

// The lowest key such that at most kGathered elements are at or above it, and no bin of level 0 is
// cut. 0 where one bin alone has more, or where what lies above is sure to have less mass than
// `mass`: no element weighs more than its bin's upper end.
template <class ForEachKey>
__device__ uint32_t LowestSorted(const RowTeam& team, ForEachKey for_each, double mass,
                                 BinScratch* bins) {
  double total = 0.0;
  FillBins(team, for_each, 0, 0, false, bins);
  if (!FindBin(0, 0, kGathered + 1, -1.0, {}, &total, bins)) return 0;
  if (bins->bin < 0) return 1;  // not reached: they all fit
  const int lowest = bins->bin + 1;
  CountAndMass mine, most;
  for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kRowThreads) {
    if (b < lowest || bins->count[b] == 0) continue;
    const float upper = __uint_as_float(static_cast<uint32_t>(b + 1) << LevelShift(0));
    mine.mass += static_cast<double>(bins->count[b]) * static_cast<double>(upper);
  }
  SumBefore(mine, &bins->scan, &most);
  return most.mass <= mass ? 0 : static_cast<uint32_t>(lowest) << LevelShift(0);
}

// A key that at least `count` elements of the row reach, from the largest key of each thread of the
// team: the count-th largest of those, or a little less. 1 where fewer threads have any.
__device__ inline uint32_t KeyOfLargest(const RowTeam& team, uint32_t key, int count,
                                        BinScratch* bins) {
  double total = 0.0;
  FillBins(team, [&](auto f) { f(0, key); }, 0, 0, false, bins);
  FindBin(0, 0, count, -1.0, {}, &total, bins);
  return bins->bin <= 0 ? 1 : static_cast<uint32_t>(bins->bin) << LevelShift(0);
}

// Gathers the elements at or above `low` into the first CTA's `gathered`, at most kGathered, in no
// order; returns how many there are, which may be more. gathered[i] = key and ~index, so that
// falling order is that of values, then of indices.
template <class ForEachKey>
__device__ int Gather(const RowTeam& team, ForEachKey for_each, uint32_t low,
                      unsigned long long* gathered, int* counter) {
  if (threadIdx.x == 0) *counter = 0;
  team.Sync();
  int* const count = team.Of(counter, 0);
  unsigned long long* const words = team.Of(gathered, 0);
  for_each([&](int i, uint32_t key) {
    if (key == 0 || key < low) return;
    const int at = atomicAdd(count, 1);
    if (at < kGathered) {
      words[at] = static_cast<unsigned long long>(key) << 32 | static_cast<uint32_t>(~i);
    }
  });
  team.Sync();
  return *count;
}

// Sorts n <= kGathered words, falling; what lies behind them up to the next power of two is
// overwritten with 0. Bitonic: Batcher, 1968.
__device__ inline void SortFalling(unsigned long long* words, int n) {
  int size = 2;
  while (size < n) size *= 2;
  for (int i = n + static_cast<int>(threadIdx.x); i < size; i += kRowThreads) words[i] = 0;
  for (int block = 2; block <= size; block *= 2) {
    for (int step = block / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int t = threadIdx.x; t < size / 2; t += kRowThreads) {
        const int i = 2 * t - t % step, j = i + step;
        const unsigned long long a = words[i], b = words[j];
        const bool falling = (i & block) == 0;
        if (falling ? a < b : a > b) {
          words[i] = b;
          words[j] = a;
        }
      }
    }
  }
  __syncthreads();
}

}  // namespace octavo::cuda
