// The largest elements of a row, without sorting the row.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace octavo::cpu {

// Room that SelectTop needs in `ids`.
constexpr int64_t SelectTopCapacity(int64_t k) { return 2 * k + 256; }

// Leaves in ids[0..result) the indices of the k largest elements above -inf, the lower index first
// among equals, in no order; fewer where there are fewer. NaNs are passed over. One pass with a
// rising threshold: the buffer is cut back to k whenever it is full.
int64_t SelectTop(const Kernels& kernels, const float* x, int64_t n, int64_t k, int32_t* ids);

// A cut keeps what is larger than `value`, and what equals it at an index below tie_end.
struct Cut {
  float value;
  int64_t tie_end;
};

// Room that FindCut needs in `ids`.
inline constexpr int64_t kCutCapacity = 512 + 16;

// The cut that keeps the fewest of the largest elements such that their sum reaches `mass` and
// their number `count` (the element that reaches it is kept; the lower index first among equals).
// The elements lie in [0, 1] and at least one is 1. A search over thresholds, eight a pass, until
// the undecided elements fit `ids`; those are sorted.
Cut FindCut(const Kernels& kernels, const float* x, int64_t n, double mass, int64_t count,
            int32_t* ids);

}  // namespace octavo::cpu
