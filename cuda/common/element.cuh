// Elements of float32, bfloat16 and float16 as floats, alone and several an access.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
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

// One access of 16 bytes. A pack that is assigned, or read through a reference, is loaded an
// element at a time where the compiler sees through it.
template <typename T, int kWidth>
__device__ __forceinline__ ElementPack<T, kWidth> LoadPack(const T* from) {
  static_assert(kWidth == 1 || kWidth == kWideElements<T>);
  ElementPack<T, kWidth> pack;
  if constexpr (kWidth == 1) {
    pack.element[0] = *from;
  } else {
    const uint4 bytes = *reinterpret_cast<const uint4*>(from);
    static_assert(sizeof(bytes) == sizeof(pack));
    memcpy(static_cast<void*>(&pack), &bytes, sizeof(pack));
  }
  return pack;
}

template <typename T, int kWidth>
__device__ __forceinline__ void StorePack(T* to, const ElementPack<T, kWidth>& pack) {
  if constexpr (kWidth == 1) {
    *to = pack.element[0];
  } else {
    uint4 bytes;
    memcpy(&bytes, &pack, sizeof(bytes));
    *reinterpret_cast<uint4*>(to) = bytes;
  }
}

template <typename T, int kWidth>
__device__ __forceinline__ void ToFloats(const ElementPack<T, kWidth>& pack, float (&x)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) x[i] = ToFloat(pack.element[i]);
}

template <typename T, int kWidth>
__device__ __forceinline__ void LoadElements(const T* from, float (&x)[kWidth]) {
  ToFloats(LoadPack<T, kWidth>(from), x);
}

template <typename T, int kWidth>
__device__ __forceinline__ void StoreElements(T* to, const float (&x)[kWidth]) {
  static_assert(kWidth == 1 || kWidth == kWideElements<T>);
  ElementPack<T, kWidth> pack;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) Store(&pack.element[i], x[i]);
  StorePack(to, pack);
}

}  // namespace octavo::cuda
