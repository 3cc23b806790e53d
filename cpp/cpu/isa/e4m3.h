// Numbers in e4m3 (1 sign, 4 exponent, 3 mantissa bits; no infinity; one NaN of either sign): read
// exactly, written rounded to nearest, ties to even, with what is too large at +-448. Source:
// Micikevicius et al., "FP8 formats for deep learning", arXiv 2209.05433.
#pragma once

#include "cpu/isa/rows.h"

namespace octavo::cpu::OCTAVO_CPU_ISA {

struct F8 {
  uint8_t bits;
};

typedef uint8_t VecB __attribute__((vector_size(kLanes)));

// A number's bits, shifted, are those of a float16 number 2^8 times smaller, subnormals too: the
// processor's own conversion then makes a float32 of it in a third of the instructions.
OCTAVO_INLINE VecF Load(const F8* p) {
#if OCTAVO_CPU_LANES == 16
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7);
  const __m256i top = _mm256_set1_epi16(0x3f80);
  const __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(wide, top), top);
  const __m256i half = _mm256_and_si256(wide, _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
  return _mm512_cvtph_ps(_mm256_or_si256(half, nan)) * 256.0f;
#elif OCTAVO_CPU_LANES == 8
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m128i wide = _mm_slli_epi16(_mm_cvtepi8_epi16(bytes), 7);
  const __m128i top = _mm_set1_epi16(0x3f80);
  const __m128i nan = _mm_cmpeq_epi16(_mm_and_si128(wide, top), top);
  const __m128i half = _mm_and_si128(wide, _mm_set1_epi16(static_cast<int16_t>(0xbf80)));
  return _mm256_cvtph_ps(_mm_or_si128(half, nan)) * 256.0f;
#else
  VecB bytes;
  __builtin_memcpy(&bytes, p, sizeof(bytes));
  const VecU code = __builtin_convertvector(bytes, VecU);
  const VecU magnitude = code & 0x7fu;
  // Subnormal numbers are counts of 2^-9; others have a bias of 7 where float32 has 127.
  const VecF tiny = __builtin_convertvector(BitCast<VecI>(magnitude), VecF) * 0x1p-9f;
  VecU bits = (magnitude << 20) + (120u << 23);
  bits = (magnitude < 8u) ? BitCast<VecU>(tiny) : bits;
  bits = (magnitude == 0x7fu) ? (VecU{} + 0x7fc00000u) : bits;
  return BitCast<VecF>(bits | (code & 0x80u) << 24);
#endif
}

OCTAVO_INLINE void Store(F8* p, VecF v) {
  const VecU bits = BitCast<VecU>(v);
  const VecU magnitude = bits & 0x7fffffffu;
  // Mends the bias and rounds; a carry into the exponent is right.
  const VecU normal = (magnitude - (120u << 23) + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
  // Below 2^-6: adding 2^14 makes the float unit round at 2^-9, a subnormal number's last place.
  const VecU tiny = BitCast<VecU>(BitCast<VecF>(magnitude) + 0x1p14f) - (141u << 23);
  VecU code = (magnitude < (121u << 23)) ? tiny : normal;
  code = (code > 0x7eu) ? (VecU{} + 0x7eu) : code;
  code = (magnitude > 0x7f800000u) ? (VecU{} + 0x7fu) : code;
  const VecB narrow = __builtin_convertvector(code | ((bits >> 24) & 0x80u), VecB);
  __builtin_memcpy(p, &narrow, sizeof(narrow));
}

template <typename T>
void QuantizeElements(F8* out, const T* x, int64_t n, float scale) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(out + i, Load(x + i) / scale);
  if (i < n) StorePart(out + i, LoadPart(x + i, n - i) / scale, n - i);
}

void Quantize(DType dtype, void* out, const void* x, int64_t n, float scale) {
  WithStorageType(dtype, [&]<typename T>(T*) {
    QuantizeElements(static_cast<F8*>(out), static_cast<const T*>(x), n, scale);
  });
}

}  // namespace octavo::cpu::OCTAVO_CPU_ISA
