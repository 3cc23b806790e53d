// A block of the product of many rows of x with rows of a weight matrix. An element has the bits of
// linear.h: kLanes partial sums in the order of the columns, then a tree across the lanes. What
// makes it fast for many rows is that both operands are widened to float32 once a block, and that
// the sums across lanes are taken for a register's worth of elements together.
//
// Bounded by multiply-adds: a tile of 6 x 4 (2 x 4 of 16 registers) does 24 of them for 10 loads.
#pragma once

#include "cpu/isa/linear.h"
#include "cpu/isa/simd.h"

namespace octavo::cpu::OCTAVO_CPU_ISA {

// Rows of x whose sums are in registers together, beside kWeightRows rows of the weight.
#if OCTAVO_CPU_REGISTERS == 32
inline constexpr int kGemmInputs = 6;
#else
inline constexpr int kGemmInputs = 2;
#endif
static_assert(kGemmStep % kGemmInputs == 0);

OCTAVO_INLINE int64_t WholeVectors(int64_t columns) {
  return (columns + kLanes - 1) / kLanes * kLanes;
}

// `rows` rows as float32, padded with zeros to whole vectors, and rows of zeros up to `padded`.
template <typename T>
OCTAVO_INLINE void WidenRows(const T* from, int64_t stride, int64_t rows, int64_t padded,
                             int64_t columns, float* to) {
  const int64_t width = WholeVectors(columns);
  for (int64_t r = 0; r < padded; ++r, to += width) {
    const T* row = r < rows ? from + r * stride : from;
    for (int64_t c = 0; c < width; c += kLanes) {
      const int64_t rest = columns - c;
      VecF v{};
      if (r < rows) v = rest >= kLanes ? Load(row + c) : LoadPart(row + c, rest);
      Store(to + c, v);
    }
  }
}

// sum[i * kWeightRows + j] = the partial sums of x row i . weight row j
OCTAVO_INLINE void GemmSums(const float* x, const float* weight, int64_t width, VecF* sum) {
  VecF part[kGemmInputs][kWeightRows] = {};
  for (int64_t c = 0; c < width; c += kLanes) {
    VecF w[kWeightRows];
#pragma GCC unroll 4
    for (int j = 0; j < kWeightRows; ++j) w[j] = Load(weight + j * width + c);
#pragma GCC unroll 6
    for (int i = 0; i < kGemmInputs; ++i) {
      const VecF v = Load(x + i * width + c);
#pragma GCC unroll 4
      for (int j = 0; j < kWeightRows; ++j) part[i][j] = Fma(v, w[j], part[i][j]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kGemmInputs; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kWeightRows; ++j) sum[i * kWeightRows + j] = part[i][j];
  }
}

// Rounds and stores what a tile has summed: `inputs` x `weights` elements of it. `bias` is the
// weights' biases, over and over, or null.
template <typename T>
OCTAVO_INLINE void StoreGemmTile(VecF* sum, const VecF* bias, T* out, int64_t out_stride,
                                 int64_t inputs, int64_t weights) {
  constexpr int kTogether = kLanes / kWeightRows;  // rows of x whose sums fill a vector
  for (int64_t first = 0; first < inputs; first += kTogether) {
    VecF sums = SumEach(sum + first * kWeightRows);
    if (bias != nullptr) sums = sums + *bias;
    T narrow[kLanes];
    Store(narrow, sums);
    for (int64_t i = 0; i < kTogether && first + i < inputs; ++i) {
      T* row = out + (first + i) * out_stride;
      for (int64_t j = 0; j < weights; ++j) row[j] = narrow[i * kWeightRows + j];
    }
  }
}

int64_t GemmScratch(int64_t inputs, int64_t columns) {
  const int64_t padded = (inputs + kGemmStep - 1) / kGemmStep * kGemmStep;
  return (padded + kWeightRows) * WholeVectors(columns);
}

template <typename T>
void GemmBlockOf(const LinearRowsArgs& a, int64_t begin, int64_t end, float* scratch) {
  constexpr int kSums = (kGemmInputs * kWeightRows + kLanes - 1) / kLanes * kLanes;
  const int64_t width = WholeVectors(a.columns);
  const int64_t padded = (a.inputs + kGemmStep - 1) / kGemmStep * kGemmStep;
  float* const weight = scratch;
  float* const x = scratch + kWeightRows * width;
  WidenRows(static_cast<const T*>(a.x), a.x_stride, a.inputs, padded, a.columns, x);
  for (int64_t row = begin; row < end; row += kWeightRows) {
    const int64_t weights = end - row < kWeightRows ? end - row : kWeightRows;
    WidenRows(static_cast<const T*>(a.weight) + row * a.weight_stride, a.weight_stride, weights,
              kWeightRows, a.columns, weight);
    VecF bias{};
    for (int i = 0; a.bias != nullptr && i < kLanes; ++i) {
      const int64_t j = i % kWeightRows;
      if (j < weights) bias[i] = Widen(static_cast<const T*>(a.bias)[row + j]);
    }
    for (int64_t first = 0; first < a.inputs; first += kGemmInputs) {
      const int64_t rest = a.inputs - first;
      VecF sum[kSums] = {};
      GemmSums(x + first * width, weight, width, sum);
      StoreGemmTile(sum, a.bias == nullptr ? nullptr : &bias,
                    static_cast<T*>(a.out) + first * a.out_stride + row, a.out_stride,
                    rest < kGemmInputs ? rest : kGemmInputs, weights);
    }
  }
}

void GemmBlock(const LinearRowsArgs& a, int64_t begin, int64_t end, float* scratch) {
  WithStorageType(a.dtype, [&]<typename T>(T*) { GemmBlockOf<T>(a, begin, end, scratch); });
}

// ---- Soft cap ----

template <typename T>
OCTAVO_INLINE void SoftCapRow(T* x, int64_t n, float cap) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(x + i, Tanh(Load(x + i) / cap) * cap);
  if (i < n) StorePart(x + i, Tanh(LoadPart(x + i, n - i) / cap) * cap, n - i);
}

void SoftCap(DType dtype, void* x, int64_t n, float cap) {
  WithStorageType(dtype, [&]<typename T>(T*) { SoftCapRow(static_cast<T*>(x), n, cap); });
}

}  // namespace octavo::cpu::OCTAVO_CPU_ISA
