// Rows of x times rows of a weight matrix, for few rows of x: decode. Bounded by the bytes of the
// weight, which is read once; each product sums kLanes partial sums in the order of the columns, so
// an element is the same bits for any number of rows, tiles and threads.
#pragma once

#include "cpu/isa/simd.h"

namespace octavo::cpu::OCTAVO_CPU_ISA {

// Rows of the weight and of x whose sums are in registers at a time: 16 of 32 (or 4 of 16), the
// rest holds what is being multiplied.
inline constexpr int kWeightRows = 4;
#if OCTAVO_CPU_REGISTERS == 32
inline constexpr int kInputRows = 4;
#else
inline constexpr int kInputRows = 2;
#endif

// sums[i][j] = x row i . weight row j
template <typename T, int Inputs, int Weights>
OCTAVO_INLINE void DotTile(const T* x, int64_t x_stride, const T* weight, int64_t weight_stride,
                           int64_t columns, float (*sums)[kWeightRows]) {
  VecF sum[Inputs][Weights] = {};
  VecF w[Weights];
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < Weights; ++j) {
      w[j] = Load(weight + j * weight_stride + c);
      // Rows are too short for the hardware to find its pace: 20 -> 16 ms for 170 MB of bf16.
      __builtin_prefetch(weight + (j + Weights) * weight_stride + c);
    }
#pragma GCC unroll 4
    for (int i = 0; i < Inputs; ++i) {
      const VecF v = Load(x + i * x_stride + c);
#pragma GCC unroll 4
      for (int j = 0; j < Weights; ++j) sum[i][j] = Fma(v, w[j], sum[i][j]);
    }
  }
  if (c < columns) {
    const int64_t rest = columns - c;
    for (int j = 0; j < Weights; ++j) w[j] = LoadPart(weight + j * weight_stride + c, rest);
    for (int i = 0; i < Inputs; ++i) {
      const VecF v = LoadPart(x + i * x_stride + c, rest);
      for (int j = 0; j < Weights; ++j) sum[i][j] = Fma(v, w[j], sum[i][j]);
    }
  }
  for (int i = 0; i < Inputs; ++i) {
    for (int j = 0; j < Weights; ++j) sums[i][j] = Sum(sum[i][j]);
  }
}

// As DotTile, for 1..kInputRows rows of x.
template <typename T, int Weights>
OCTAVO_INLINE void DotTileOf(int64_t inputs, const T* x, int64_t x_stride, const T* weight,
                             int64_t weight_stride, int64_t columns, float (*sums)[kWeightRows]) {
  if (inputs == 1) DotTile<T, 1, Weights>(x, x_stride, weight, weight_stride, columns, sums);
  if (inputs == 2) DotTile<T, 2, Weights>(x, x_stride, weight, weight_stride, columns, sums);
#if OCTAVO_CPU_REGISTERS == 32
  if (inputs == 3) DotTile<T, 3, Weights>(x, x_stride, weight, weight_stride, columns, sums);
  if (inputs == 4) DotTile<T, 4, Weights>(x, x_stride, weight, weight_stride, columns, sums);
#endif
}

OCTAVO_INLINE float Widen(float x) { return x; }
OCTAVO_INLINE float Widen(Bf16 x) { return LoadPart(&x, 1)[0]; }
OCTAVO_INLINE float Widen(F16 x) { return LoadPart(&x, 1)[0]; }
OCTAVO_INLINE void Narrow(float* p, float x) { *p = x; }
OCTAVO_INLINE void Narrow(Bf16* p, float x) { StorePart(p, Set(x), 1); }
OCTAVO_INLINE void Narrow(F16* p, float x) { StorePart(p, Set(x), 1); }

template <typename T>
void LinearRowsOf(const LinearRowsArgs& a, int64_t begin, int64_t end) {
  float sums[kInputRows][kWeightRows];
  const T* bias = static_cast<const T*>(a.bias);
  for (int64_t row = begin; row < end;) {
    const int64_t taken = end - row < kWeightRows ? 1 : kWeightRows;
    const T* weight = static_cast<const T*>(a.weight) + row * a.weight_stride;
    for (int64_t first = 0; first < a.inputs; first += kInputRows) {
      const int64_t inputs = a.inputs - first < kInputRows ? a.inputs - first : kInputRows;
      const T* x = static_cast<const T*>(a.x) + first * a.x_stride;
      if (taken == kWeightRows) {
        DotTileOf<T, kWeightRows>(inputs, x, a.x_stride, weight, a.weight_stride, a.columns, sums);
      } else {
        DotTileOf<T, 1>(inputs, x, a.x_stride, weight, a.weight_stride, a.columns, sums);
      }
      for (int64_t i = 0; i < inputs; ++i) {
        T* out = static_cast<T*>(a.out) + (first + i) * a.out_stride + row;
        for (int64_t j = 0; j < taken; ++j) {
          Narrow(out + j, bias == nullptr ? sums[i][j] : sums[i][j] + Widen(bias[row + j]));
        }
      }
    }
    row += taken;
  }
}

inline void LinearRows(const LinearRowsArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::kBF16:
      return LinearRowsOf<Bf16>(a, begin, end);
    case DType::kF16:
      return LinearRowsOf<F16>(a, begin, end);
    default:
      return LinearRowsOf<float>(a, begin, end);
  }
}

}  // namespace octavo::cpu::OCTAVO_CPU_ISA
