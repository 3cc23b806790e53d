// The 64-bit words by which products of a warpgroup (wgmma.cuh) find operands in shared memory.
#pragma once

#include <cstdint>

namespace octavo::cuda {

// Where a 128-byte-swizzled operand lies in shared memory: blocks of eight rows of 128 bytes, whose
// 16-byte piece c of row r lies at piece c ^ r. Blocks begin at multiples of 1024 bytes.
//
// Rows along k (K-major): `block_bytes` leads from eight rows to the next eight, and 16 elements on
// are 32 bytes on. Rows along n (MN-major, a transposed operand): a row is 64 elements of one k;
// `block_bytes` leads to the next eight k, `column_bytes` to the next 64 columns.
__device__ __forceinline__ uint64_t MatrixDescriptor(uint32_t shared, int column_bytes,
                                                     int block_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return ((shared & 0x3ffff) >> 4) | static_cast<uint64_t>(column_bytes >> 4) << 16 |
         static_cast<uint64_t>(block_bytes >> 4) << 32 | kSwizzle128;
}

// The descriptor of an operand that begins `bytes` further on.
__device__ __forceinline__ uint64_t Advance(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes >> 4);
}

}  // namespace octavo::cuda
