// An element of a cache in 8 bits, as a type.
#pragma once

#include <cstdint>

namespace octavo::cuda {

// 1 sign, 4 exponent, 3 mantissa bits; no infinity. common/e4m3.cuh converts.
struct E4m3 {
  uint8_t code;
};

}  // namespace octavo::cuda
