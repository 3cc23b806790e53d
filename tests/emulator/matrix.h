// The warp's matrix instructions: every lane brings and takes its registers.
#pragma once

#include <cstdint>

#include "emulator/cta.h"
#include "emulator/grid.h"

namespace octavo::emulator {

// A float16 if `half`, else a bfloat16.
float Widen(uint16_t bits, bool half);

void LoadMatrices(const char* what, Where where, uint32_t shared, bool transposed,
                  uint32_t (&r)[4]);
// Transposed: lane l's address is that of column l % 8 of matrix l / 8.
void StoreMatrices(const char* what, Where where, uint32_t shared, const uint32_t (&r)[4]);
uint32_t TransposeMatrix(Where where, uint32_t x);
// c[16 x 8] += a[16 x 16] b[16 x 8] in float32; a and b are float16 if `half`, else bfloat16.
void Mma16x8x16(Where where, bool half, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                uint32_t b1);

}  // namespace octavo::emulator
