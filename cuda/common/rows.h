// Host helpers of the ops that work row by row: strides in bytes, and which access width fits.
#pragma once

#include <cstdint>

#include "octavo/tensor_view.h"

namespace octavo::cuda {

// Byte strides of a [N, n] or [N, heads, n] tensor. A kernel names a row by (token, head).
struct RowStrides {
  int64_t token = 0;
  int64_t head = 0;
};

inline RowStrides StridesOf(const TensorView& v) {
  const int64_t size = DTypeSize(v.dtype);
  return {v.stride[0] * size, v.rank == 3 ? v.stride[1] * size : 0};
}

// Whether every row of `v`, and every part of it that begins at a multiple of `elements`, begins on
// 16 bytes.
inline bool WideRows(const TensorView& v, int64_t elements) {
  const int64_t size = DTypeSize(v.dtype);
  int64_t all = static_cast<int64_t>(reinterpret_cast<uintptr_t>(v.data)) | elements * size;
  for (int d = 0; d + 1 < v.rank; ++d) {
    if (v.shape[d] > 1) all |= v.stride[d] * size;
  }
  return all % 16 == 0;
}

}  // namespace octavo::cuda
