// Elements of float32, bfloat16 and float16 as floats, alone and several an access.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace octavo::cuda {

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(__half x) { return __half2float(x); }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void Store(float* to, float x) { *to = x; }
__device__ __forceinline__ void Store(__half* to, float x) { *to = __float2half_rn(x); }
__device__ __forceinline__ void Store(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }

// x as T holds it.
template <typename T>
__device__ __forceinline__ float Rounded(float x) {
  T stored;
  Store(&stored, x);
  return ToFloat(stored);
}

// The widest access of one thread.
inline constexpr int kWideBytes = 16;
template <typename T>
inline constexpr int kWideElements = kWideBytes / static_cast<int>(sizeof(T));

// kWidth neighbours, in one access: kWidth is 1 or kWideElements<T>.
template <typename T, int kWidth>
struct alignas(kWidth * sizeof(T)) ElementPack {
  T element[kWidth];
};

template <typename T, int kWidth>
__device__ __forceinline__ void ToFloats(const ElementPack<T, kWidth>& pack, float (&x)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) x[i] = ToFloat(pack.element[i]);
}

template <typename T, int kWidth>
__device__ __forceinline__ void LoadElements(const T* from, float (&x)[kWidth]) {
  static_assert(kWidth == 1 || kWidth == kWideElements<T>);
  ToFloats(*reinterpret_cast<const ElementPack<T, kWidth>*>(from), x);
}

template <typename T, int kWidth>
__device__ __forceinline__ void StoreElements(T* to, const float (&x)[kWidth]) {
  static_assert(kWidth == 1 || kWidth == kWideElements<T>);
  ElementPack<T, kWidth> pack;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) Store(&pack.element[i], x[i]);
  *reinterpret_cast<ElementPack<T, kWidth>*>(to) = pack;
}

}  // namespace octavo::cuda
