// Where a row of a view lies, and how many rows are worth a thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "octavo/tensor_view.h"

namespace octavo::cpu {

// The address of v[i, ...], or of v[i, j, ...]. In integers: a tensor without elements has no
// memory, and a pointer to nothing must not be moved even where nobody follows it.
inline void* RowOf(const TensorView& v, int64_t i) {
  const auto offset = static_cast<uintptr_t>(i * v.stride[0] * DTypeSize(v.dtype));
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(v.data) + offset);
}
inline void* RowOf(const TensorView& v, int64_t i, int64_t j) {
  const int64_t second = v.rank == 3 ? j * v.stride[1] : 0;
  const auto offset = static_cast<uintptr_t>((i * v.stride[0] + second) * DTypeSize(v.dtype));
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(v.data) + offset);
}

// Rows of n elements that take some ten microseconds: below two such grains an op stays on the
// calling thread.
inline constexpr int64_t kGrainElements = 32768;
inline int64_t GrainOfRows(int64_t n) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, n));
}

}  // namespace octavo::cpu
