// One vector of floats in the widest registers of the instruction set that this file is compiled
// for, and the few operations the kernels are written in. Included once by each of
// isa/{avx512,avx2,base}.cc, which define OCTAVO_CPU_ISA (the namespace) and OCTAVO_CPU_LANES
// first. Nothing here or in the kernel headers may use a standard-library template: the linker
// keeps one copy of an inline function, and it might be the one compiled for AVX-512.
#pragma once

#if !defined(OCTAVO_CPU_ISA) || !defined(OCTAVO_CPU_LANES)
#error "define OCTAVO_CPU_ISA and OCTAVO_CPU_LANES before this header"
#endif

#define OCTAVO_INLINE inline __attribute__((always_inline))

namespace octavo::cpu::OCTAVO_CPU_ISA {

inline constexpr int kLanes = OCTAVO_CPU_LANES;

typedef float VecF __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecU __attribute__((vector_size(kLanes * 4)));
typedef uint16_t VecH __attribute__((vector_size(kLanes * 2)));

// Storage types of the 16-bit floats.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

inline constexpr float kInfinity = __builtin_inff();

template <typename To, typename From>
OCTAVO_INLINE To BitCast(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To r;
  __builtin_memcpy(&r, &v, sizeof(r));
  return r;
}

OCTAVO_INLINE VecF Set(float x) { return VecF{} + x; }
OCTAVO_INLINE VecI SetI(int32_t x) { return VecI{} + x; }

OCTAVO_INLINE VecI LaneIndex() {
#if OCTAVO_CPU_LANES == 16
  return VecI{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif OCTAVO_CPU_LANES == 8
  return VecI{0, 1, 2, 3, 4, 5, 6, 7};
#else
  return VecI{0, 1, 2, 3};
#endif
}

// a * b + c. Fused on every named instruction set, because the compiler is told not to fuse on its
// own.
OCTAVO_INLINE VecF Fma(VecF a, VecF b, VecF c) {
#if OCTAVO_CPU_LANES == 16
  return _mm512_fmadd_ps(a, b, c);
#elif OCTAVO_CPU_LANES == 8
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// Where a lane of either is NaN the result is b's lane.
OCTAVO_INLINE VecF Max(VecF a, VecF b) {
#if OCTAVO_CPU_LANES == 16
  return _mm512_max_ps(a, b);
#elif OCTAVO_CPU_LANES == 8
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
OCTAVO_INLINE VecF Min(VecF a, VecF b) {
#if OCTAVO_CPU_LANES == 16
  return _mm512_min_ps(a, b);
#elif OCTAVO_CPU_LANES == 8
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

OCTAVO_INLINE VecF Abs(VecF x) { return BitCast<VecF>(BitCast<VecU>(x) & 0x7fffffffu); }

// To the nearest integer, ties to even. REQUIRES: |x| < 2^22.
OCTAVO_INLINE VecF Round(VecF x) {
#if OCTAVO_CPU_LANES == 16
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif OCTAVO_CPU_LANES == 8
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const VecF magic =
      Set(12582912.0f);  // 1.5 * 2^23: adding it pushes the fraction out of the mantissa
  return (x + magic) - magic;
#endif
}

// ---- Loads and stores, unaligned ----

OCTAVO_INLINE VecF Load(const float* p) {
  VecF v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
OCTAVO_INLINE void Store(float* p, VecF v) { __builtin_memcpy(p, &v, sizeof(v)); }

OCTAVO_INLINE VecH LoadBits(const void* p) {
  VecH h;
  __builtin_memcpy(&h, p, sizeof(h));
  return h;
}

OCTAVO_INLINE VecF Load(const Bf16* p) {
  const VecU wide = __builtin_convertvector(LoadBits(p), VecU);
  return BitCast<VecF>(wide << 16);
}

// Rounds to nearest, ties to even; a NaN stays a NaN.
OCTAVO_INLINE void Store(Bf16* p, VecF v) {
  const VecU bits = BitCast<VecU>(v);
  const VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecU nan = (bits >> 16) | 0x40u;
  const VecU result = (v == v) ? rounded : nan;
  const VecH narrow = __builtin_convertvector(result, VecH);
  __builtin_memcpy(p, &narrow, sizeof(narrow));
}

OCTAVO_INLINE VecF Load(const F16* p) {
#if OCTAVO_CPU_LANES == 16
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif OCTAVO_CPU_LANES == 8
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
#else
  // Exponent and mantissa moved into place, times 2^112 to mend the bias: exact, subnormals
  // included.
  const VecU wide = __builtin_convertvector(LoadBits(p), VecU);
  const VecU sign = (wide & 0x8000u) << 16;
  const VecF scaled = BitCast<VecF>((wide & 0x7fffu) << 13) * BitCast<VecF>(VecU{} + 0x77800000u);
  const VecU bits = BitCast<VecU>(scaled);
  const VecU special = (scaled >= Set(65536.0f)) ? (bits | 0x7f800000u) : bits;
  return BitCast<VecF>(special | sign);
#endif
}

OCTAVO_INLINE void Store(F16* p, VecF v) {
#if OCTAVO_CPU_LANES == 16
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif OCTAVO_CPU_LANES == 8
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__aarch64__)
  vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(v)));
#else
  const VecU bits = BitCast<VecU>(v);
  const VecU magnitude = bits & 0x7fffffffu;
  const VecU sign = (bits >> 16) & 0x8000u;
  // Normal results: mend the bias and round to nearest, ties to even. A carry into the exponent is
  // right.
  const VecU normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results: adding 0.5 makes the float unit round at the half's last place.
  const VecU tiny = BitCast<VecU>(BitCast<VecF>(magnitude) + Set(0.5f)) - 0x3f000000u;
  VecU half = (magnitude < 0x38800000u) ? tiny : normal;
  half = (magnitude >= 0x477ff000u) ? (VecU{} + 0x7c00u) : half;
  half = (magnitude > 0x7f800000u) ? (VecU{} + 0x7e00u) : half;
  const VecH narrow = __builtin_convertvector(half | sign, VecH);
  __builtin_memcpy(p, &narrow, sizeof(narrow));
#endif
}

// The first n < kLanes elements; the other lanes are zero.
template <typename T>
OCTAVO_INLINE VecF LoadPart(const T* p, int64_t n) {
  T buffer[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return Load(buffer);
}
template <typename T>
OCTAVO_INLINE void StorePart(T* p, VecF v, int64_t n) {
  T buffer[kLanes];
  Store(buffer, v);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}

// ---- Across lanes ----

#define OCTAVO_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

// Lane 0 of the result combines all lanes of v, halving the distance at each level.
template <typename F>
OCTAVO_INLINE float FoldLanes(VecF v, F combine) {
#if OCTAVO_CPU_LANES == 16
  v = combine(v, OCTAVO_SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = combine(v, OCTAVO_SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  v = combine(v, OCTAVO_SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  v = combine(v, OCTAVO_SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
#elif OCTAVO_CPU_LANES == 8
  v = combine(v, OCTAVO_SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
  v = combine(v, OCTAVO_SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
  v = combine(v, OCTAVO_SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6));
#else
  v = combine(v, OCTAVO_SHUFFLE(v, v, 2, 3, 0, 1));
  v = combine(v, OCTAVO_SHUFFLE(v, v, 1, 0, 3, 2));
#endif
  return v[0];
}

OCTAVO_INLINE float Sum(VecF v) {
  return FoldLanes(v, [](VecF a, VecF b) { return a + b; });
}

OCTAVO_INLINE float LargestLane(VecF v) {
  return FoldLanes(v, [](VecF a, VecF b) { return Max(a, b); });
}

OCTAVO_INLINE bool AnyLane(VecI mask) {
#if OCTAVO_CPU_LANES == 16
  return _mm512_movepi32_mask(BitCast<__m512i>(mask)) != 0;
#elif OCTAVO_CPU_LANES == 8
  return _mm256_movemask_ps(BitCast<__m256>(mask)) != 0;
#else
  return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}

// Lane i of the result is the sum of all lanes of v[i]: a tree in which each level halves the
// vectors.
OCTAVO_INLINE VecF SumEach(VecF* v) {
#if OCTAVO_CPU_LANES == 16
  for (int i = 0; i < 8; ++i) {
    const VecF a = v[i], b = v[i + 8];
    v[i] = OCTAVO_SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           OCTAVO_SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  for (int i = 0; i < 4; ++i) {
    const VecF a = v[i], b = v[i + 4];
    v[i] = OCTAVO_SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
           OCTAVO_SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  }
  for (int i = 0; i < 2; ++i) {
    const VecF a = v[i], b = v[i + 2];
    v[i] = OCTAVO_SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           OCTAVO_SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  return OCTAVO_SHUFFLE(v[0], v[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
         OCTAVO_SHUFFLE(v[0], v[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
#elif OCTAVO_CPU_LANES == 8
  for (int i = 0; i < 4; ++i) {
    const VecF a = v[i], b = v[i + 4];
    v[i] = OCTAVO_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
           OCTAVO_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (int i = 0; i < 2; ++i) {
    const VecF a = v[i], b = v[i + 2];
    v[i] = OCTAVO_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
           OCTAVO_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  }
  return OCTAVO_SHUFFLE(v[0], v[1], 0, 8, 2, 10, 4, 12, 6, 14) +
         OCTAVO_SHUFFLE(v[0], v[1], 1, 9, 3, 11, 5, 13, 7, 15);
#else
  for (int i = 0; i < 2; ++i) {
    const VecF a = v[i], b = v[i + 2];
    v[i] = OCTAVO_SHUFFLE(a, b, 0, 1, 4, 5) + OCTAVO_SHUFFLE(a, b, 2, 3, 6, 7);
  }
  return OCTAVO_SHUFFLE(v[0], v[1], 0, 4, 2, 6) + OCTAVO_SHUFFLE(v[0], v[1], 1, 5, 3, 7);
#endif
}

// Transposes kLanes vectors of kLanes lanes in place: at each level a pair swaps its off-diagonal
// quarters.
OCTAVO_INLINE void Transpose(VecF* v) {
#define OCTAVO_SWAP(distance, low, high)                          \
  for (int i = 0; i < kLanes; ++i) {                              \
    if ((i & (distance)) != 0) continue;                          \
    const VecF a = v[i], b = v[i + (distance)];                   \
    v[i] = OCTAVO_SHUFFLE(a, b, OCTAVO_UNPACK low);               \
    v[i + (distance)] = OCTAVO_SHUFFLE(a, b, OCTAVO_UNPACK high); \
  }
#define OCTAVO_UNPACK(...) __VA_ARGS__
#if OCTAVO_CPU_LANES == 16
  OCTAVO_SWAP(8, (0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
              (8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
  OCTAVO_SWAP(4, (0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
              (4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
  OCTAVO_SWAP(2, (0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
              (2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
  OCTAVO_SWAP(1, (0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
              (1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
#elif OCTAVO_CPU_LANES == 8
  OCTAVO_SWAP(4, (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))
  OCTAVO_SWAP(2, (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))
  OCTAVO_SWAP(1, (0, 8, 2, 10, 4, 12, 6, 14), (1, 9, 3, 11, 5, 13, 7, 15))
#else
  OCTAVO_SWAP(2, (0, 1, 4, 5), (2, 3, 6, 7))
  OCTAVO_SWAP(1, (0, 4, 2, 6), (1, 5, 3, 7))
#endif
#undef OCTAVO_UNPACK
#undef OCTAVO_SWAP
}

// ---- Functions ----

// e^x within 1.5 ulp; 0 and inf beyond the float range, NaN for NaN. x = n ln 2 + r, |r| <= ln 2 /
// 2; the polynomial is a minimax fit of e^r of degree 6 (relative error 3e-9); ln 2 is split in two
// so that r keeps its bits.
OCTAVO_INLINE VecF Exp(VecF x) {
  x = Max(Set(-104.5f), Min(Set(89.0f), x));
  const VecF n = Round(x * 1.44269504f);
  VecF r = Fma(n, Set(-0.693359375f), x);
  r = Fma(n, Set(2.12194440e-4f), r);
  VecF p = Fma(Set(0x1.6a23dp-10f), r, Set(0x1.123a2p-7f));
  p = Fma(p, r, Set(0x1.5558f2p-5f));
  p = Fma(p, r, Set(0x1.555492p-3f));
  p = Fma(p, r, Set(0x1.fffffcp-2f));
  p = Fma(p * r, r, r) + 1.0f;
#if OCTAVO_CPU_LANES == 16
  return _mm512_scalef_ps(p, n);
#else
  // 2^n in two steps, so that subnormal results come out as such.
  const VecI e = __builtin_convertvector(n, VecI);
  const VecI half = e >> 1;
  return p * BitCast<VecF>((half + 127) << 23) * BitCast<VecF>((e - half + 127) << 23);
#endif
}

// tanh(x) with an absolute error below 1e-7 and a relative one below 3e-7: a series near 0, where 1
// - 2/(e^2x + 1) cancels.
OCTAVO_INLINE VecF Tanh(VecF x) {
  const VecF magnitude = Min(Set(10.0f), Abs(x));
  const VecF large = 1.0f - 2.0f / (Exp(magnitude + magnitude) + 1.0f);
  const VecF s = magnitude * magnitude;
  VecF series = Fma(s, Set(-1382.0f / 155925.0f), Set(62.0f / 2835.0f));
  series = Fma(series, s, Set(-17.0f / 315.0f));
  series = Fma(series, s, Set(2.0f / 15.0f));
  series = Fma(series, s, Set(-1.0f / 3.0f));
  const VecF small = Fma(series * s, magnitude, magnitude);
  const VecF t = magnitude < Set(0.3f) ? small : large;
  const VecU sign = BitCast<VecU>(x) & 0x80000000u;
  const VecF result = BitCast<VecF>(BitCast<VecU>(t) | sign);
  return (x == x) ? result : x;
}

}  // namespace octavo::cpu::OCTAVO_CPU_ISA
