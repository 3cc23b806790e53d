#include "cpu/top.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace octavo::cpu {
namespace {

// Total order of elements: larger value first, then the lower index.
struct Before {
  const float* x;
  bool operator()(int32_t a, int32_t b) const { return x[a] != x[b] ? x[a] > x[b] : a < b; }
};

constexpr float kNoBound = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// Thresholds between which the cut lies: what is >= high is kept and does not reach the goal, what
// is
// >= low reaches it. Positive floats are ordered as their bits are.
struct Bracket {
  uint32_t low = 1;  // the smallest positive float
  uint32_t high = std::bit_cast<uint32_t>(1.0f) + 1;
  double mass_high = 0.0;
  int64_t count_high = 0;
  int64_t count_low = std::numeric_limits<int64_t>::max();

  int64_t undecided() const { return count_low - count_high; }
  bool single_value() const { return high - low <= 1; }
};

void Narrow(const Kernels& kernels, const float* x, int64_t n, double mass, int64_t count,
            Bracket* b) {
  float thresholds[kPivots];
  uint32_t bits[kPivots];
  const uint64_t width = b->high - b->low;
  for (int p = 0; p < kPivots; ++p) {
    bits[p] = b->low + static_cast<uint32_t>(width * static_cast<uint64_t>(p) / kPivots);
    thresholds[p] = std::bit_cast<float>(bits[p]);
  }
  double masses[kPivots];
  int64_t counts[kPivots];
  kernels.mass_above(x, n, thresholds, masses, counts);
  // The first threshold is the low end: rounding apart it reaches the goal, so it needs no proof.
  int reached = 0;
  while (reached + 1 < kPivots && masses[reached + 1] >= mass && counts[reached + 1] >= count) {
    ++reached;
  }
  if (reached + 1 < kPivots) {
    b->high = bits[reached + 1];
    b->mass_high = masses[reached + 1];
    b->count_high = counts[reached + 1];
  }
  b->low = bits[reached];
  b->count_low = counts[reached];
}

}  // namespace

int64_t SelectTop(const Kernels& kernels, const float* x, int64_t n, int64_t k, int32_t* ids) {
  if (k == 0) return 0;
  const Before before{x};
  const int64_t capacity = SelectTopCapacity(k);
  int64_t kept = 0;
  float low = std::numeric_limits<float>::lowest();
  for (int64_t i = 0;;) {
    i = kernels.select(x, i, n, low, kNoBound, ids, capacity, &kept);
    if (kept > k) {
      std::nth_element(ids, ids + k - 1, ids + kept, before);
      kept = k;
      // Equals that come later have higher indices and lose, so only larger ones matter now.
      // Nothing is larger than +inf: the threshold then becomes NaN, which no element reaches.
      const float least = x[ids[k - 1]];
      low = least == kInf ? kNoBound : std::nextafter(least, kInf);
    }
    if (i >= n) return kept;
  }
}

Cut FindCut(const Kernels& kernels, const float* x, int64_t n, double mass, int64_t count,
            int32_t* ids) {
  Bracket b;
  while (b.undecided() > kCutCapacity - 16 && !b.single_value()) {
    Narrow(kernels, x, n, mass, count, &b);
  }
  const float low = std::bit_cast<float>(b.low), high = std::bit_cast<float>(b.high);
  double sum = b.mass_high;
  int64_t number = b.count_high;
  if (b.single_value()) {
    // Equal elements are kept in the order of their indices.
    int64_t last = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (x[i] != low) continue;
      last = i;
      sum += static_cast<double>(low);
      ++number;
      if (sum >= mass && number >= count) break;
    }
    return {low, last + 1};
  }
  int64_t undecided = 0;
  kernels.select(x, 0, n, low, high, ids, kCutCapacity, &undecided);
  std::sort(ids, ids + undecided, Before{x});
  Cut cut{low, n};  // rounding may leave the goal unreached: then all of them stay
  for (int64_t i = 0; i < undecided; ++i) {
    sum += static_cast<double>(x[ids[i]]);
    ++number;
    if (sum >= mass && number >= count) return {x[ids[i]], ids[i] + 1};
  }
  return cut;
}

}  // namespace octavo::cpu
