// RMSNorm, RoPE and gated activations, one row at a time. Bounded by memory traffic: each element
// is read once from memory (twice for the norm, the second time from L1) and written once.
#pragma once

#include "cpu/isa/simd.h"

namespace octavo::cpu::OCTAVO_CPU_ISA {

OCTAVO_INLINE float InverseRms(float sum_of_squares, int64_t n, float eps) {
  return 1.0f / __builtin_sqrtf(sum_of_squares / static_cast<float>(n) + eps);
}

template <typename T>
void NormStore(T* out, const T* x, const T* weight, int64_t n, float inverse, float offset) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Store(out + i, Load(x + i) * inverse * (Load(weight + i) + offset));
  }
  if (i < n) {
    const VecF w = LoadPart(weight + i, n - i) + offset;
    StorePart(out + i, LoadPart(x + i, n - i) * inverse * w, n - i);
  }
}

template <typename T>
void RmsNormRow(T* out, const T* x, const T* weight, int64_t n, float eps, float offset) {
  VecF sum0{}, sum1{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const VecF a = Load(x + i), b = Load(x + i + kLanes);
    sum0 = Fma(a, a, sum0);
    sum1 = Fma(b, b, sum1);
  }
  for (; i < n; i += kLanes) {
    const VecF a = i + kLanes <= n ? Load(x + i) : LoadPart(x + i, n - i);
    sum0 = Fma(a, a, sum0);
  }
  NormStore(out, x, weight, n, InverseRms(Sum(sum0 + sum1), n, eps), offset);
}

// to += x, rounded.
template <typename T>
void AddRow(T* to, const T* x, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(to + i, Load(x + i) + Load(to + i));
  if (i < n) StorePart(to + i, LoadPart(x + i, n - i) + LoadPart(to + i, n - i), n - i);
}

template <typename T>
void AddRmsNormRow(T* out, const T* x, T* residual, const T* weight, int64_t n, float eps,
                   float offset) {
  AddRow(residual, x, n);  // rounded: the norm is that of what the next layer will read
  RmsNormRow(out, residual, weight, n, eps, offset);
}

// Halves: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 the first half and x2 the second.
template <typename T>
OCTAVO_INLINE void RotateHalves(T* x, const float* cos, const float* sin, int64_t half) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const VecF a = Load(x + i), b = Load(x + half + i), c = Load(cos + i), s = Load(sin + i);
    Store(x + i, Fma(a, c, -(b * s)));
    Store(x + half + i, Fma(b, c, a * s));
  }
  if (i < half) {
    const int64_t rest = half - i;
    const VecF a = LoadPart(x + i, rest), b = LoadPart(x + half + i, rest);
    const VecF c = LoadPart(cos + i, rest), s = LoadPart(sin + i, rest);
    StorePart(x + i, Fma(a, c, -(b * s)), rest);
    StorePart(x + half + i, Fma(b, c, a * s), rest);
  }
}

OCTAVO_INLINE VecF EvenLanes(VecF a, VecF b) {
#if OCTAVO_CPU_LANES == 16
  return OCTAVO_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
#elif OCTAVO_CPU_LANES == 8
  return OCTAVO_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
#else
  return OCTAVO_SHUFFLE(a, b, 0, 2, 4, 6);
#endif
}
OCTAVO_INLINE VecF OddLanes(VecF a, VecF b) {
#if OCTAVO_CPU_LANES == 16
  return OCTAVO_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif OCTAVO_CPU_LANES == 8
  return OCTAVO_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
  return OCTAVO_SHUFFLE(a, b, 1, 3, 5, 7);
#endif
}
OCTAVO_INLINE VecF LowPairs(VecF a, VecF b) {
#if OCTAVO_CPU_LANES == 16
  return OCTAVO_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif OCTAVO_CPU_LANES == 8
  return OCTAVO_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return OCTAVO_SHUFFLE(a, b, 0, 4, 1, 5);
#endif
}
OCTAVO_INLINE VecF HighPairs(VecF a, VecF b) {
#if OCTAVO_CPU_LANES == 16
  return OCTAVO_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif OCTAVO_CPU_LANES == 8
  return OCTAVO_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return OCTAVO_SHUFFLE(a, b, 2, 6, 3, 7);
#endif
}

// Pairs: the same rotation of (x[2i], x[2i + 1]).
template <typename T>
OCTAVO_INLINE void RotatePairs(T* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t rest = half - i;
    const bool full = rest >= kLanes;
    // A tail of n pairs is 2n elements: the first vector holds up to kLanes of them, the second the
    // others.
    const int64_t n0 = 2 * rest < kLanes ? 2 * rest : kLanes;
    const int64_t n1 = 2 * rest - n0;
    const VecF low = full ? Load(x + 2 * i) : LoadPart(x + 2 * i, n0);
    const VecF high = full ? Load(x + 2 * i + kLanes) : LoadPart(x + 2 * i + n0, n1);
    const VecF c = full ? Load(cos + i) : LoadPart(cos + i, rest);
    const VecF s = full ? Load(sin + i) : LoadPart(sin + i, rest);
    const VecF a = EvenLanes(low, high), b = OddLanes(low, high);
    const VecF ra = Fma(a, c, -(b * s)), rb = Fma(b, c, a * s);
    if (full) {
      Store(x + 2 * i, LowPairs(ra, rb));
      Store(x + 2 * i + kLanes, HighPairs(ra, rb));
    } else {
      StorePart(x + 2 * i, LowPairs(ra, rb), n0);
      StorePart(x + 2 * i + n0, HighPairs(ra, rb), n1);
    }
  }
}

template <typename T>
void RopeHeads(T* x, int64_t heads, int64_t head_stride, const float* cos, const float* sin,
               int64_t half, bool interleaved) {
  for (int64_t h = 0; h < heads; ++h) {
    if (interleaved) {
      RotatePairs(x + h * head_stride, cos, sin, half);
    } else {
      RotateHalves(x + h * head_stride, cos, sin, half);
    }
  }
}

struct Silu {
  static OCTAVO_INLINE VecF Apply(VecF x) { return x / (Exp(-x) + 1.0f); }
};

// 0.5 x (1 + tanh(u)) = x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluTanh {
  static OCTAVO_INLINE VecF Apply(VecF x) {
    const VecF cubic = Fma(x * x * 0.044715f, x, x);
    return x / (Exp(cubic * -1.5957691216f) + 1.0f);
  }
};

template <typename Activation, typename T>
void GatedRow(T* out, const T* gate, const T* up, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Store(out + i, Activation::Apply(Load(gate + i)) * Load(up + i));
  }
  if (i < n) {
    const VecF g = LoadPart(gate + i, n - i);
    StorePart(out + i, Activation::Apply(g) * LoadPart(up + i, n - i), n - i);
  }
}

// ---- By dtype ----

// Calls f with a null pointer of the storage type of `dtype`. REQUIRES: float32, bfloat16 or
// float16.
template <typename F>
OCTAVO_INLINE void WithStorageType(DType dtype, F f) {
  switch (dtype) {
    case DType::kBF16:
      return f(static_cast<Bf16*>(nullptr));
    case DType::kF16:
      return f(static_cast<F16*>(nullptr));
    default:
      return f(static_cast<float*>(nullptr));
  }
}

void RmsNorm(DType dtype, void* out, const void* x, const void* weight, int64_t n, float eps,
             float offset) {
  WithStorageType(dtype, [&]<typename T>(T*) {
    RmsNormRow(static_cast<T*>(out), static_cast<const T*>(x), static_cast<const T*>(weight), n,
               eps, offset);
  });
}

void AddRmsNorm(DType dtype, void* out, const void* x, void* residual, const void* weight,
                int64_t n, float eps, float offset) {
  WithStorageType(dtype, [&]<typename T>(T*) {
    AddRmsNormRow(static_cast<T*>(out), static_cast<const T*>(x), static_cast<T*>(residual),
                  static_cast<const T*>(weight), n, eps, offset);
  });
}

void Add(DType dtype, void* to, const void* x, int64_t n) {
  WithStorageType(
      dtype, [&]<typename T>(T*) { AddRow(static_cast<T*>(to), static_cast<const T*>(x), n); });
}

template <typename T>
void WidenRow(float* out, const T* x, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(out + i, Load(x + i));
  if (i < n) StorePart(out + i, LoadPart(x + i, n - i), n - i);
}

void WidenElements(DType dtype, float* out, const void* x, int64_t n) {
  WithStorageType(dtype, [&]<typename T>(T*) { WidenRow(out, static_cast<const T*>(x), n); });
}

void Rope(DType dtype, void* x, int64_t heads, int64_t head_stride, const float* cos,
          const float* sin, int64_t half, bool interleaved) {
  WithStorageType(dtype, [&]<typename T>(T*) {
    RopeHeads(static_cast<T*>(x), heads, head_stride, cos, sin, half, interleaved);
  });
}

template <typename Activation>
void Gated(DType dtype, void* out, const void* gate, const void* up, int64_t n) {
  WithStorageType(dtype, [&]<typename T>(T*) {
    GatedRow<Activation>(static_cast<T*>(out), static_cast<const T*>(gate),
                         static_cast<const T*>(up), n);
  });
}

}  // namespace octavo::cpu::OCTAVO_CPU_ISA
