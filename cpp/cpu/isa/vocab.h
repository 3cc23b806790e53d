// Passes over a row of logits or weights, one number per token of the vocabulary. Bounded by
// reading the row, which is in L2 after the first pass.
#pragma once

#include "cpu/isa/simd.h"

namespace octavo::cpu::OCTAVO_CPU_ISA {

float Largest(const float* x, int64_t n, bool* nan) {
  VecF top[4] = {Set(-kInfinity), Set(-kInfinity), Set(-kInfinity), Set(-kInfinity)};
  VecI bad{};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      const VecF v = Load(x + i + j * kLanes);
      bad |= v != v;
      top[j] = Max(v, top[j]);
    }
  }
  VecF best = Max(Max(top[0], top[1]), Max(top[2], top[3]));
  for (; i + kLanes <= n; i += kLanes) {
    const VecF v = Load(x + i);
    bad |= v != v;
    best = Max(v, best);
  }
  bool any = AnyLane(bad);
  float result = LargestLane(best);
  for (; i < n; ++i) {
    any = any || x[i] != x[i];
    result = x[i] > result ? x[i] : result;
  }
  *nan = any;
  return result;
}

int64_t Find(const float* x, int64_t n, float value) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    if (AnyLane(Load(x + i) == Set(value))) break;
  }
  while (i < n && x[i] != value) ++i;
  return i;
}

OCTAVO_INLINE VecF Weight(VecF x, float largest, float scale) {
  const VecF w = Exp((x - largest) * scale);
  return x == Set(largest) ? Set(1.0f) : w;
}

void ExpWeights(float* x, int64_t n, float largest, float scale, float* sums) {
  for (int64_t begin = 0; begin < n; begin += kSumChunk) {
    const int64_t end = begin + kSumChunk < n ? begin + kSumChunk : n;
    VecF sum{};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const VecF w = Weight(Load(x + i), largest, scale);
      Store(x + i, w);
      sum = sum + w;
    }
    float total = Sum(sum);
    for (; i < end; ++i) {
      x[i] = Weight(Set(x[i]), largest, scale)[0];
      total += x[i];
    }
    sums[begin / kSumChunk] = total;
  }
}

double ExpSum(const float* x, int64_t n, float largest) {
  double total = 0.0;
  for (int64_t begin = 0; begin < n; begin += kSumChunk) {
    const int64_t end = begin + kSumChunk < n ? begin + kSumChunk : n;
    VecF sum{};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) sum = sum + Weight(Load(x + i), largest, 1.0f);
    total += static_cast<double>(Sum(sum));
    for (; i < end; ++i) total += static_cast<double>(Weight(Set(x[i]), largest, 1.0f)[0]);
  }
  return total;
}

void ChunkSums(const float* x, int64_t n, float* sums) {
  for (int64_t begin = 0; begin < n; begin += kSumChunk) {
    const int64_t end = begin + kSumChunk < n ? begin + kSumChunk : n;
    VecF sum{};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) sum = sum + Load(x + i);
    float total = Sum(sum);
    for (; i < end; ++i) total += x[i];
    sums[begin / kSumChunk] = total;
  }
}

// Comparisons yield -1 in a lane where they hold, so that subtracting one counts.
int64_t CountAbove(const float* x, int64_t n, float value) {
  int64_t count = 0;
  int64_t i = 0;
  VecI lanes{};
  for (; i + kLanes <= n; i += kLanes) lanes -= Load(x + i) > Set(value);
  for (int j = 0; j < kLanes; ++j) count += lanes[j];
  for (; i < n; ++i) count += x[i] > value ? 1 : 0;
  return count;
}

int64_t Select(const float* x, int64_t begin, int64_t n, float low, float high, int32_t* ids,
               int64_t capacity, int64_t* count) {
  int64_t kept = *count;
  int64_t i = begin;
  // A vector is taken whole or not at all, so that the caller can go on at the returned index.
  for (; i + kLanes <= n; i += kLanes) {
    const VecF v = Load(x + i);
    const VecI hit = (v >= Set(low)) & ~(v >= Set(high));
    if (!AnyLane(hit)) continue;
    if (kept + kLanes > capacity) break;
    for (int j = 0; j < kLanes; ++j) {
      ids[kept] = static_cast<int32_t>(i + j);
      kept += hit[j] & 1;
    }
  }
  if (i + kLanes > n) {
    for (; i < n && kept < capacity; ++i) {
      ids[kept] = static_cast<int32_t>(i);
      kept += x[i] >= low && !(x[i] >= high) ? 1 : 0;
    }
  }
  *count = kept;
  return i;
}

void ApplyMask(float* x, int64_t n, const uint32_t* words) {
  const VecU bit = (VecU{} + 1u) << BitCast<VecU>(LaneIndex());
  for (int64_t i = 0; i < n; i += kLanes) {
    const uint32_t word = words[i / 32] >> (i % 32);
    const VecF v = i + kLanes <= n ? Load(x + i) : LoadPart(x + i, n - i);
    const VecI keep = (((VecU{} + word) & bit) != 0u) | (v != v);
    const VecF masked = keep ? v : Set(-kInfinity);
    if (i + kLanes <= n) {
      Store(x + i, masked);
    } else {
      StorePart(x + i, masked, n - i);
    }
  }
}

void MassAbove(const float* x, int64_t n, const float* thresholds, double* mass, int64_t* count) {
  for (int p = 0; p < kPivots; ++p) {
    mass[p] = 0.0;
    count[p] = 0;
  }
  for (int64_t begin = 0; begin < n; begin += kSumChunk) {
    const int64_t end = begin + kSumChunk < n ? begin + kSumChunk : n;
    VecF sum[kPivots] = {};
    VecI lanes[kPivots] = {};
    for (int64_t i = begin; i < end; i += kLanes) {
      const VecF v = i + kLanes <= end ? Load(x + i) : LoadPart(x + i, end - i);
      for (int p = 0; p < kPivots; ++p) {
        const VecI hit = v >= Set(thresholds[p]);  // thresholds are > 0: a tail's zeros never count
        sum[p] = sum[p] + BitCast<VecF>(BitCast<VecI>(v) & hit);
        lanes[p] -= hit;
      }
    }
    for (int p = 0; p < kPivots; ++p) {
      mass[p] += static_cast<double>(Sum(sum[p]));
      for (int j = 0; j < kLanes; ++j) count[p] += lanes[p][j];
    }
  }
}

void DropBelow(float* x, int64_t n, float value, int64_t tie_end) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const VecF v = Load(x + i);
    const bool ties_stay = i + kLanes <= tie_end;
    const VecI keep = ties_stay ? v >= Set(value) : v > Set(value);
    const bool mixed = i < tie_end && !ties_stay;
    if (mixed) break;
    Store(x + i, BitCast<VecF>(BitCast<VecI>(v) & keep));
  }
  const int64_t mixed_end = i + kLanes < n ? i + kLanes : n;
  for (; i < mixed_end; ++i) {
    if (!(x[i] > value || (x[i] == value && i < tie_end))) x[i] = 0.0f;
  }
  for (; i + kLanes <= n; i += kLanes) {
    const VecF v = Load(x + i);
    Store(x + i, BitCast<VecF>(BitCast<VecI>(v) & (v > Set(value))));
  }
  for (; i < n; ++i) {
    if (!(x[i] > value || (x[i] == value && i < tie_end))) x[i] = 0.0f;
  }
}

}  // namespace octavo::cpu::OCTAVO_CPU_ISA
