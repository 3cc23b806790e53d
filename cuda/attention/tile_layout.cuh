// Where a tile's pieces lie in shared memory.
#pragma once

#include "common/ptx.cuh"

namespace octavo::cuda {

// The offset of 16-byte piece `piece` of row `row`: swizzled, so that the eight rows of an ldmatrix
// lie in different banks. Of rows of four pieces two lie side by side in all banks.
template <class S>
__device__ __forceinline__ uint32_t PieceOffset(int row, int piece) {
  static_assert(S::kRowPieces >= 4);
  const int turn = S::kRowPieces == 4 ? row >> 1 & 3 : row & 7;
  return row * S::kRowBytes + ((piece ^ turn) * kPieceBytes);
}

// The address of `half` (piece 0 or 1) of row `row`, and from there the one `step` pairs of pieces
// on: because rows are aligned to their size, swizzling is linear and a step is one exclusive or.
// REQUIRES: `tile` is aligned to kRowBytes.
template <class S>
__device__ __forceinline__ uint32_t LaneAddress(uint32_t tile, int row, int half) {
  return tile + PieceOffset<S>(row, half);
}

__device__ __forceinline__ uint32_t StepPieces(uint32_t lane_address, int step) {
  return lane_address ^ static_cast<uint32_t>(step * 2 * kPieceBytes);
}

}  // namespace octavo::cuda
