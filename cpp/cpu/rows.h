// Where a row of a view lies, and how many rows are worth a thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernels.h"
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

// The product of a call: all columns, of all rows of x.
template <class Args>
LinearRowsArgs ProductOf(const Args& a) {
  LinearRowsArgs rows;
  rows.dtype = a.x.dtype;
  rows.out = a.out.data;
  rows.out_stride = a.out.stride[0];
  rows.x = a.x.data;
  rows.x_stride = a.x.stride[0];
  rows.weight = a.weight.data;
  rows.weight_stride = a.weight.stride[0];
  rows.bias = a.bias.has_value() ? a.bias->data : nullptr;
  rows.inputs = a.x.shape[0];
  rows.columns = a.x.shape[1];
  return rows;
}

}  // namespace octavo::cpu
