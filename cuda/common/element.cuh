// Elements of float32, bfloat16 and float16 as floats, alone and several an access.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

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

// Element i, 0 or 1, of the two of 16 bits that a word holds.
template <typename T>
__device__ __forceinline__ float WordElement(uint32_t word, int i) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __uint_as_float(i == 0 ? word << 16 : word & 0xffff0000u);
  } else {
    __half2 pair;
    memcpy(static_cast<void*>(&pair), &word, sizeof(pair));
    return i == 0 ? __low2float(pair) : __high2float(pair);
  }
}

// kWidth neighbours as they are stored: one element, or the words of one wide access. As an array
// of elements the compiler would take a pack apart at once: twice the registers, and a load is
// waited for before the next is under way.
template <typename T, int kWidth>
struct ElementPack {
  static_assert(kWidth == kWideElements<T>);
  static constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));
  uint4 words;

  __device__ __forceinline__ uint32_t Word(int i) const {
    return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
  }
  __device__ __forceinline__ float operator[](int i) const {
    const uint32_t word = Word(i / kPerWord);
    if constexpr (std::is_same_v<T, float>) {
      return __uint_as_float(word);
    } else {
      return WordElement<T>(word, i % 2);
    }
  }
};

template <typename T>
struct ElementPack<T, 1> {
  T element;

  __device__ __forceinline__ float operator[](int) const { return ToFloat(element); }
};

template <typename T, int kWidth>
__device__ __forceinline__ ElementPack<T, kWidth> LoadPack(const T* from) {
  return *reinterpret_cast<const ElementPack<T, kWidth>*>(from);
}

// Past L1, which may hold what lay there before the kernel in front of this one wrote.
template <typename T, int kWidth>
__device__ __forceinline__ ElementPack<T, kWidth> LoadPackPastL1(const T* from) {
  static_assert(kWidth > 1);
  return {__ldcg(reinterpret_cast<const uint4*>(from))};
}

template <typename T, int kWidth>
__device__ __forceinline__ void StorePack(T* to, const ElementPack<T, kWidth>& pack) {
  *reinterpret_cast<ElementPack<T, kWidth>*>(to) = pack;
}

__device__ __forceinline__ __nv_bfloat162 LargerOfPair(__nv_bfloat162 a, __nv_bfloat162 b) {
  return __hmax2(a, b);
}
__device__ __forceinline__ __half2 LargerOfPair(__half2 a, __half2 b) { return __hmax2(a, b); }

template <typename T>
__device__ __forceinline__ uint32_t LargerOfWord(uint32_t a, uint32_t b) {
  if constexpr (std::is_same_v<T, float>) {
    return __float_as_uint(fmaxf(__uint_as_float(a), __uint_as_float(b)));
  } else {
    using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
    Pair pair_a, pair_b;
    memcpy(static_cast<void*>(&pair_a), &a, sizeof(a));
    memcpy(static_cast<void*>(&pair_b), &b, sizeof(b));
    const Pair larger = LargerOfPair(pair_a, pair_b);
    uint32_t word;
    memcpy(&word, static_cast<const void*>(&larger), sizeof(word));
    return word;
  }
}

// The larger of each element of two packs; NaN only where both are.
template <typename T, int kWidth>
__device__ __forceinline__ ElementPack<T, kWidth> LargerOfEach(const ElementPack<T, kWidth>& a,
                                                               const ElementPack<T, kWidth>& b) {
  if constexpr (kWidth == 1) {
    return ToFloat(b.element) > ToFloat(a.element) || isnan(ToFloat(a.element)) ? b : a;
  } else {
    return {{LargerOfWord<T>(a.words.x, b.words.x), LargerOfWord<T>(a.words.y, b.words.y),
             LargerOfWord<T>(a.words.z, b.words.z), LargerOfWord<T>(a.words.w, b.words.w)}};
  }
}

// The word that holds two neighbours, or the one, rounded.
__device__ __forceinline__ uint32_t WordOf(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t word;
  memcpy(&word, static_cast<const void*>(&pair), sizeof(word));
  return word;
}
__device__ __forceinline__ uint32_t WordOf(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  uint32_t word;
  memcpy(&word, static_cast<const void*>(&pair), sizeof(word));
  return word;
}

template <typename T, int kWidth>
__device__ __forceinline__ ElementPack<T, kWidth> PackOf(const float (&x)[kWidth]) {
  ElementPack<T, kWidth> pack;
  if constexpr (kWidth == 1) {
    Store(&pack.element, x[0]);
  } else if constexpr (std::is_same_v<T, float>) {
    pack.words = {__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
                  __float_as_uint(x[3])};
  } else {
    pack.words = {WordOf(x[0], x[1], T()), WordOf(x[2], x[3], T()), WordOf(x[4], x[5], T()),
                  WordOf(x[6], x[7], T())};
  }
  return pack;
}

template <typename T, int kWidth>
__device__ __forceinline__ void ToFloats(const ElementPack<T, kWidth>& pack, float (&x)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) x[i] = pack[i];
}

template <typename T, int kWidth>
__device__ __forceinline__ void LoadElements(const T* from, float (&x)[kWidth]) {
  ToFloats(LoadPack<T, kWidth>(from), x);
}

template <typename T, int kWidth>
__device__ __forceinline__ void StoreElements(T* to, const float (&x)[kWidth]) {
  StorePack(to, PackOf<T>(x));
}

// What T holds of x.
template <typename T, int kWidth>
__device__ __forceinline__ void RoundElements(float (&x)[kWidth]) {
  ToFloats(PackOf<T>(x), x);
}

}  // namespace octavo::cuda
