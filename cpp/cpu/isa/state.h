// The inner loops of recurrent layers: causal convolution, Mamba2's scan and the gated norm. The
// convolution and a prefill's scan are bounded by arithmetic (the state of a head stays in the
// first caches), a decode's scan by the bytes of the state, read and written once.
#pragma once

#include "cpu/isa/linear.h"
#include "cpu/isa/rows.h"
#include "cpu/isa/simd.h"

namespace octavo::cpu::OCTAVO_CPU_ISA {

template <typename T>
OCTAVO_INLINE VecF LoadUpTo(const T* p, int64_t n) {
  return n >= kLanes ? Load(p) : LoadPart(p, n);
}
template <typename T>
OCTAVO_INLINE void StoreUpTo(T* p, VecF v, int64_t n) {
  n >= kLanes ? Store(p, v) : StorePart(p, v, n);
}

// ---- Convolution ----

// `Taps` of them, or a.taps where it is 0. The last inputs of a channel stay in registers.
template <typename T, int Taps>
void ConvChannels(const ConvRow& a, int64_t first, int64_t n) {
  constexpr int kMost = Taps == 0 ? kMaxConvTaps : Taps;
  const int taps = Taps == 0 ? static_cast<int>(a.taps) : Taps;
  VecF weight[kMost] = {}, past[kMost] = {};
  const T* w = static_cast<const T*>(a.weight) + first * a.weight_stride;
  for (int k = 0; k < taps; ++k) {
    float column[kLanes] = {};
    for (int64_t i = 0; i < n && i < kLanes; ++i) column[i] = Widen(w[i * a.weight_stride + k]);
    weight[k] = Load(column);
  }
  const T* before = static_cast<const T*>(a.before);
  for (int k = 0; before != nullptr && k < taps - 1; ++k) {
    past[k] = LoadUpTo(before + k * a.state_stride + first, n);
  }
  const VecF bias = a.bias == nullptr ? VecF{} : LoadUpTo(static_cast<const T*>(a.bias) + first, n);
  for (int64_t t = 0; t < a.tokens; ++t) {
    past[taps - 1] = LoadUpTo(static_cast<const T*>(a.x) + t * a.x_stride + first, n);
    VecF sum = bias;
    for (int k = 0; k < taps; ++k) sum = Fma(weight[k], past[k], sum);
    StoreUpTo(static_cast<T*>(a.out) + t * a.out_stride + first, Silu::Apply(sum), n);
    for (int k = 0; k + 1 < taps; ++k) past[k] = past[k + 1];
  }
  T* after = static_cast<T*>(a.after);
  for (int k = 0; k < taps - 1; ++k) StoreUpTo(after + k * a.state_stride + first, past[k], n);
}

void ConvRowChannels(const ConvRow& a, int64_t begin, int64_t end) {
  WithStorageType(a.dtype, [&]<typename T>(T*) {
    for (int64_t c = begin; c < end; c += kLanes) {
      a.taps == 4 ? ConvChannels<T, 4>(a, c, end - c) : ConvChannels<T, 0>(a, c, end - c);
    }
  });
}

// ---- Scan ----

// torch's softplus: the line itself where e^x is beyond what 1 + e^x can tell from it.
OCTAVO_INLINE float Softplus(float x) {
  return x > 20.0f ? x : __builtin_log1pf(__builtin_expf(x));
}

// One token of one head, `Vectors` vectors of its values at a time: their sums over the state are
// independent chains that hide the latency of the multiply-add.
template <typename T, int Vectors>
OCTAVO_INLINE void ScanToken(const ScanHead& a, const T* x, T* out, const float* b, const float* c,
                             float step, float decay, float skip, int64_t first) {
  VecF value[Vectors], scaled[Vectors], sum[Vectors] = {};
  for (int j = 0; j < Vectors; ++j) {
    value[j] = LoadUpTo(x + first + j * kLanes, a.head_dim - first - j * kLanes);
    scaled[j] = value[j] * step;
  }
  float* state = a.after + first;
  for (int64_t s = 0; s < a.state_size; ++s, state += a.head_dim) {
    const VecF in = Set(b[s]), read = Set(c[s]);
    for (int j = 0; j < Vectors; ++j) {
      const int64_t rest = a.head_dim - first - j * kLanes;
      const VecF next = Fma(scaled[j], in, LoadUpTo(state + j * kLanes, rest) * decay);
      StoreUpTo(state + j * kLanes, next, rest);
      sum[j] = Fma(next, read, sum[j]);
    }
  }
  for (int j = 0; j < Vectors; ++j) {
    StoreUpTo(out + first + j * kLanes, Fma(value[j], Set(skip), sum[j]),
              a.head_dim - first - j * kLanes);
  }
}

template <typename T>
void ScanHeadOf(const ScanHead& a) {
  constexpr int kVectors = 4;
  const int64_t values = a.state_size * a.head_dim;
  if (a.before == nullptr) {
    __builtin_memset(a.after, 0, static_cast<uint64_t>(values) * sizeof(float));
  } else if (a.before != a.after) {
    __builtin_memcpy(a.after, a.before, static_cast<uint64_t>(values) * sizeof(float));
  }
  const float rate = -__builtin_expf(Widen(*static_cast<const T*>(a.a_log)));
  const float bias = Widen(*static_cast<const T*>(a.dt_bias));
  const float skip = Widen(*static_cast<const T*>(a.skip));
  float b[kMaxScanState], c[kMaxScanState];
  for (int64_t t = 0; t < a.tokens; ++t) {
    const float step = Softplus(Widen(static_cast<const T*>(a.dt)[t * a.dt_stride]) + bias);
    const float decay = __builtin_expf(rate * step);
    for (int64_t s = 0; s < a.state_size; s += kLanes) {
      const int64_t n = a.state_size - s;
      StoreUpTo(b + s, LoadUpTo(static_cast<const T*>(a.b) + t * a.b_stride + s, n), n);
      StoreUpTo(c + s, LoadUpTo(static_cast<const T*>(a.c) + t * a.c_stride + s, n), n);
    }
    const T* x = static_cast<const T*>(a.x) + t * a.x_stride;
    T* out = static_cast<T*>(a.out) + t * a.out_stride;
    int64_t p = 0;
    for (; p + kVectors * kLanes <= a.head_dim; p += kVectors * kLanes) {
      ScanToken<T, kVectors>(a, x, out, b, c, step, decay, skip, p);
    }
    for (; p < a.head_dim; p += kLanes) {
      ScanToken<T, 1>(a, x, out, b, c, step, decay, skip, p);
    }
  }
}

void Scan(const ScanHead& a) {
  WithStorageType(a.dtype, [&]<typename T>(T*) { ScanHeadOf<T>(a); });
}

// ---- Gated norm ----

// `scratch` holds n floats: the products are rounded once, with the result.
template <typename T>
void GatedNormRow(T* out, const T* x, const T* gate, const T* weight, int64_t n, float eps,
                  float* scratch) {
  VecF squares{};
  for (int64_t i = 0; i < n; i += kLanes) {
    const VecF y = LoadUpTo(x + i, n - i) * Silu::Apply(LoadUpTo(gate + i, n - i));
    squares = Fma(y, y, squares);
    StoreUpTo(scratch + i, y, n - i);
  }
  const float inverse = InverseRms(Sum(squares), n, eps);
  for (int64_t i = 0; i < n; i += kLanes) {
    const VecF y = LoadUpTo(scratch + i, n - i) * inverse;
    StoreUpTo(out + i, y * LoadUpTo(weight + i, n - i), n - i);
  }
}

void GatedNorm(DType dtype, void* out, const void* x, const void* gate, const void* weight,
               int64_t n, float eps, float* scratch) {
  WithStorageType(dtype, [&]<typename T>(T*) {
    GatedNormRow(static_cast<T*>(out), static_cast<const T*>(x), static_cast<const T*>(gate),
                 static_cast<const T*>(weight), n, eps, scratch);
  });
}

}  // namespace octavo::cpu::OCTAVO_CPU_ISA
