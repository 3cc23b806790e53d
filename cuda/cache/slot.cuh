// Where a slot of the cache lies.
#pragma once

#include <cstdint>

namespace octavo::cuda {

// The block of one of `slots` slots. 32 bits suffice almost always, and 64-bit division is slow.
__device__ __forceinline__ int64_t BlockOfSlot(int64_t slot, int64_t slots, int32_t block_size) {
  return slots <= UINT32_MAX ? static_cast<uint32_t>(slot) / static_cast<uint32_t>(block_size)
                             : slot / block_size;
}

}  // namespace octavo::cuda
