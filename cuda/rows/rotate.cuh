// Rotary positions: which element turns against which, and by how much (ops.h, RopeArgs).
#pragma once

#include <cstdint>

namespace octavo::cuda {

// (a, b) turned by the angle with cosine c and sine s. The operations and their order are the
// CPU's.
__device__ __forceinline__ void Rotate(float a, float b, float c, float s, float* x, float* y) {
  *x = fmaf(a, c, -__fmul_rn(b, s));
  *y = fmaf(b, c, __fmul_rn(a, s));
}

// Where the pair number i of a head stands.
struct PairPlace {
  int32_t first, second;
};

__device__ __forceinline__ PairPlace PlaceOfPair(int32_t i, int32_t half, bool interleaved) {
  return interleaved ? PairPlace{2 * i, 2 * i + 1} : PairPlace{i, i + half};
}

// A token's cosines, or null where its position lies outside the table.
struct RotaryTable {
  const float* cos_sin;
  int64_t stride;  // elements
  int64_t positions;
  int32_t half;
  bool interleaved;

  __device__ __forceinline__ const float* Of(int32_t position) const {
    if (static_cast<uint64_t>(int64_t{position}) >= static_cast<uint64_t>(positions)) {
      return nullptr;
    }
    return cos_sin + position * stride;
  }
};

}  // namespace octavo::cuda
