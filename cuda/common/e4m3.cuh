// Numbers of e4m3: read exactly, written rounded to nearest even and held within +-448. sm_89 on
// has instructions for both; elsewhere it is arithmetic on bits. Source: arXiv 2209.05433.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/e4m3.h"

namespace octavo::cuda {

template <typename To, typename From>
__device__ __forceinline__ To BitsAs(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  memcpy(static_cast<void*>(&y), &x, sizeof(y));
  return y;
}

// The float16 numbers of the codes in the low and the high byte of `codes`.
__device__ __forceinline__ uint32_t HalvesOfCodes(uint16_t codes) {
#if __CUDA_ARCH__ >= 890
  uint32_t r;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(codes));
  return r;
#else
  // Shifted, a code's bits are those of a float16 number 2^8 times smaller, subnormals too. Only
  // NaN, all ones, carries into the bit that makes a NaN of it.
  const uint32_t spread = (codes & 0xffu) << 8 | (codes & 0xff00u) << 16;
  const uint32_t magnitude = spread >> 1 & 0x3f803f80u;
  const uint32_t nan = (magnitude + 0x00800080u) & 0x40004000u;
  const uint32_t bits = magnitude | nan | (spread & 0x80008000u);
  return BitsAs<uint32_t>(__hmul2(BitsAs<__half2>(bits), __float2half2_rn(256.0f)));
#endif
}

// The same as two numbers of T, 16 bits each: every number of e4m3 is one of either.
template <typename T>
__device__ __forceinline__ uint32_t Widened(uint16_t codes) {
  const uint32_t halves = HalvesOfCodes(codes);
  if constexpr (std::is_same_v<T, __half>) {
    return halves;
  } else {
    const float2 x = __half22float2(BitsAs<__half2>(halves));
    return BitsAs<uint32_t>(__floats2bfloat162_rn(x.x, x.y));
  }
}

__device__ __forceinline__ float ToFloat(E4m3 x) {
  return __low2float(BitsAs<__half2>(HalvesOfCodes(x.code)));
}

// The code of the number nearest to x.
__device__ __forceinline__ uint32_t CodeOf(float x) {
  const uint32_t bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
  // From 2^-6 on: the bias is mended and a carry into the exponent is right. Below, adding 2^14
  // makes the float unit round at 2^-9, the last place of a subnormal number.
  uint32_t code = (magnitude - (120u << 23) + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20;
  if (magnitude < 121u << 23) {
    code = __float_as_uint(__uint_as_float(magnitude) + 16384.0f) - (141u << 23);
  }
  if (code > 0x7eu) code = 0x7eu;
  if (magnitude > 0x7f800000u) code = 0x7fu;
  return code | (bits >> 24 & 0x80u);
}

// Two numbers' codes, `low` in the low byte.
__device__ __forceinline__ uint16_t CodesOf(float low, float high) {
#if __CUDA_ARCH__ >= 890
  uint16_t r;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(high), "f"(low));
  return r;
#else
  return static_cast<uint16_t>(CodeOf(low) | CodeOf(high) << 8);
#endif
}

// Stores x / scale, kWidth neighbours in one access: kWidth is 1, 4 or 8.
template <int kWidth>
__device__ __forceinline__ void StoreCodes(void* to, const float (&x)[kWidth], float scale) {
  if constexpr (kWidth == 1) {
    *static_cast<uint8_t*>(to) = static_cast<uint8_t>(CodesOf(__fdiv_rn(x[0], scale), 0.0f));
  } else {
    static_assert(kWidth % 4 == 0 && kWidth <= 8);
    uint32_t words[kWidth / 4];
#pragma unroll
    for (int i = 0; i < kWidth / 4; ++i) {
      const uint32_t low = CodesOf(__fdiv_rn(x[4 * i], scale), __fdiv_rn(x[4 * i + 1], scale));
      const uint32_t high = CodesOf(__fdiv_rn(x[4 * i + 2], scale), __fdiv_rn(x[4 * i + 3], scale));
      words[i] = low | high << 16;
    }
    if constexpr (kWidth == 8) {
      *static_cast<uint2*>(to) = make_uint2(words[0], words[1]);
    } else {
      *static_cast<uint32_t*>(to) = words[0];
    }
  }
}

}  // namespace octavo::cuda
