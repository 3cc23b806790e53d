#include "emulator/matrix.h"

#include <cuda_fp16.h>

#include <cstring>

namespace octavo::emulator {
namespace {

constexpr uint32_t kAll = 0xffffffffu;

struct MmaIn {
  const float* c;
  const uint32_t* a;
  uint32_t b[2];
};

}  // namespace

float Widen(uint16_t bits, bool half) {
  if (half) {
    __half_raw raw;
    raw.x = bits;
    return __half2float(__half(raw));
  }
  const uint32_t wide = uint32_t{bits} << 16;
  float x;
  memcpy(&x, &wide, sizeof(x));
  return x;
}

void LoadMatrices(const char* what, Where where, uint32_t shared, bool transposed,
                  uint32_t (&r)[4]) {
  Cta& cta = Cta::Current();
  cta.At(shared, 16, where);  // here, so that a fault names the lane that asks
  cta.Meet(what, where, kAll, true, &shared, r,
           [&](const uint32_t* const* addresses, uint32_t* const* results, uint32_t) {
             for (int m = 0; m < 4; ++m) {
               uint16_t matrix[8][8];
               for (int row = 0; row < 8; ++row) {
                 memcpy(matrix[row], cta.At(*addresses[m * 8 + row], 16, where), 16);
               }
               for (int lane = 0; lane < kWarpLanes; ++lane) {
                 const int i = lane / 4, j = lane % 4 * 2;
                 const uint32_t low = transposed ? matrix[j][i] : matrix[i][j];
                 const uint32_t high = transposed ? matrix[j + 1][i] : matrix[i][j + 1];
                 results[lane][m] = low | high << 16;
               }
             }
           });
}

void StoreMatrices(const char* what, Where where, uint32_t shared, const uint32_t (&r)[4]) {
  struct In {
    uint32_t shared;
    const uint32_t* r;
  };
  const In in{shared, r};
  Cta& cta = Cta::Current();
  cta.At(shared, 16, where);  // here, so that a fault names the lane that asks
  uint32_t nothing = 0;
  cta.Meet(what, where, kAll, true, &in, &nothing,
           [&](const In* const* lanes, uint32_t* const*, uint32_t) {
             for (int m = 0; m < 4; ++m) {
               for (int column = 0; column < 8; ++column) {
                 uint16_t rows[8];
                 for (int row = 0; row < 8; ++row) {
                   const uint32_t pair = lanes[row * 4 + column / 2]->r[m];
                   rows[row] = static_cast<uint16_t>(pair >> column % 2 * 16);
                 }
                 memcpy(cta.At(lanes[m * 8 + column]->shared, 16, where), rows, 16);
               }
             }
           });
}

uint32_t TransposeMatrix(Where where, uint32_t x) {
  uint32_t out = 0;
  Cta::Current().Meet("movmatrix", where, kAll, true, &x, &out,
                      [](const uint32_t* const* in, uint32_t* const* results, uint32_t) {
                        uint16_t matrix[8][8];
                        for (int lane = 0; lane < kWarpLanes; ++lane) {
                          memcpy(&matrix[lane / 4][lane % 4 * 2], in[lane], 4);
                        }
                        for (int lane = 0; lane < kWarpLanes; ++lane) {
                          const int i = lane / 4, j = lane % 4 * 2;
                          *results[lane] = matrix[j][i] | uint32_t{matrix[j + 1][i]} << 16;
                        }
                      });
  return out;
}

void Mma16x8x16(Where where, bool half, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                uint32_t b1) {
  const MmaIn in{c, a, {b0, b1}};
  Cta::Current().Meet(half ? "mma.f16" : "mma.bf16", where, kAll, true, &in, c,
                      [half](const MmaIn* const* lanes, float* const* results, uint32_t) {
                        float left[16][16], right[16][8], sum[16][8];
                        for (int lane = 0; lane < kWarpLanes; ++lane) {
                          const int g = lane / 4, t = lane % 4 * 2;
                          for (int r = 0; r < 4; ++r) {
                            const int row = g + r % 2 * 8, column = t + r / 2 * 8;
                            const uint32_t x = lanes[lane]->a[r];
                            left[row][column] = Widen(static_cast<uint16_t>(x), half);
                            left[row][column + 1] = Widen(static_cast<uint16_t>(x >> 16), half);
                          }
                          for (int r = 0; r < 2; ++r) {
                            const uint32_t x = lanes[lane]->b[r];
                            right[t + r * 8][g] = Widen(static_cast<uint16_t>(x), half);
                            right[t + r * 8 + 1][g] = Widen(static_cast<uint16_t>(x >> 16), half);
                          }
                          for (int r = 0; r < 4; ++r)
                            sum[g + r / 2 * 8][t + r % 2] = lanes[lane]->c[r];
                        }
                        for (int row = 0; row < 16; ++row) {
                          for (int k = 0; k < 16; ++k) {
                            for (int column = 0; column < 8; ++column) {
                              sum[row][column] += left[row][k] * right[k][column];
                            }
                          }
                        }
                        for (int lane = 0; lane < kWarpLanes; ++lane) {
                          const int g = lane / 4, t = lane % 4 * 2;
                          for (int r = 0; r < 4; ++r)
                            results[lane][r] = sum[g + r / 2 * 8][t + r % 2];
                        }
                      });
}

}  // namespace octavo::emulator
