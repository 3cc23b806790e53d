// Where a tile's pieces lie in shared memory.
#pragma once

#include "common/ptx.cuh"

namespace octavo::cuda {

// The offset of 16-byte piece `piece` of row `row`: swizzled, so that the eight rows of an ldmatrix
// lie in different banks.
template <class S>
__device__ __forceinline__ uint32_t PieceOffset(int row, int piece) {
  return row * S::kRowBytes + ((piece ^ (row & 7)) * kPieceBytes);
}

}  // namespace octavo::cuda
