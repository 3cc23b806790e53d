// The row loops of a mixture of experts. Bounded by memory traffic.
#pragma once

#include "cpu/isa/rows.h"

namespace octavo::cpu::OCTAVO_CPU_ISA {

template <typename T>
void WeightedSumRow(T* out, const T* rows, int64_t stride, const int32_t* place,
                    const float* weights, int64_t k, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const bool whole = i + kLanes <= n;
    VecF sum{};
    for (int64_t j = 0; j < k; ++j) {
      const T* row = rows + place[j] * stride + i;
      sum = Fma(whole ? Load(row) : LoadPart(row, n - i), Set(weights[j]), sum);
    }
    if (whole) {
      Store(out + i, sum);
    } else {
      StorePart(out + i, sum, n - i);
    }
  }
}

// Min and Max yield their second operand where either is NaN: the value stands there, so that a NaN
// stays one.
OCTAVO_INLINE VecF ClampedGate(VecF gate, VecF up, float alpha, float limit) {
  const VecF g = Min(Set(limit), gate);
  const VecF u = Max(Set(-limit), Min(Set(limit), up));
  return (u + 1.0f) * (g / (Exp(g * -alpha) + 1.0f));
}

template <typename T>
void ClampedSwigluRow(T* out, const T* gate, const T* up, int64_t n, float alpha, float limit) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t rest = n - i;
    if (rest >= kLanes) {
      Store(out + i, ClampedGate(Load(gate + i), Load(up + i), alpha, limit));
    } else {
      const VecF g = LoadPart(gate + i, rest);
      StorePart(out + i, ClampedGate(g, LoadPart(up + i, rest), alpha, limit), rest);
    }
  }
}

void WeightedSum(DType dtype, void* out, const void* rows, int64_t stride, const int32_t* place,
                 const float* weights, int64_t k, int64_t n) {
  WithStorageType(dtype, [&]<typename T>(T*) {
    WeightedSumRow(static_cast<T*>(out), static_cast<const T*>(rows), stride, place, weights, k, n);
  });
}

void ClampedSwiglu(DType dtype, void* out, const void* gate, const void* up, int64_t n, float alpha,
                   float limit) {
  WithStorageType(dtype, [&]<typename T>(T*) {
    ClampedSwigluRow(static_cast<T*>(out), static_cast<const T*>(gate), static_cast<const T*>(up),
                     n, alpha, limit);
  });
}

}  // namespace octavo::cpu::OCTAVO_CPU_ISA
