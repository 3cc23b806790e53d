// Where a row of a view lies, and how many rows are worth a thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "octavo/tensor_view.h"

namespace octavo::cpu {

// The address of v[i, ...], or of v[i, j, ...].
inline void* RowOf(const TensorView& v, int64_t i) {
  return static_cast<char*>(v.data) + i * v.stride[0] * DTypeSize(v.dtype);
}
inline void* RowOf(const TensorView& v, int64_t i, int64_t j) {
  const int64_t second = v.rank == 3 ? j * v.stride[1] : 0;
  return static_cast<char*>(v.data) + (i * v.stride[0] + second) * DTypeSize(v.dtype);
}

// Rows of n elements that take some ten microseconds: below two such grains an op stays on the
// calling thread.
inline constexpr int64_t kGrainElements = 32768;
inline int64_t GrainOfRows(int64_t n) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, n));
}

}  // namespace octavo::cpu
