// What CUDA C++ has and C++ has not, for the emulator: built-in variables and functions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator/cta.h"

// The toolkit's headers mean these for nvcc. A CTA has a thread of the operating system to itself.
#undef __shared__
#define __shared__ static thread_local
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

#undef __noinline__
#define __noinline__

namespace octavo::emulator {

template <typename To, typename From>
To Bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  memcpy(&y, &x, sizeof(y));
  return y;
}

// One operation in memory. Others may run before it.
template <typename T, class F>
T Atomic(T* at, F f) {
  Cta::Current().MayYield(16);
  const T old = *at;
  *at = f(old);
  return old;
}

// Every lane gets the value of the lane it names; `from` is in the mask or the lane's own.
template <typename T>
[[gnu::noinline]] T Shuffle(const char* what, Where where, unsigned mask, const T& value,
                            int from) {
  struct In {
    T value;
    int from;
  };
  const In in{value, from};
  T out{};
  Cta& cta = Cta::Current();
  cta.Meet(what, where, mask, false, &in, &out,
           [&](const In* const* all, T* const* results, uint32_t lanes) {
             for (uint32_t left = lanes; left != 0; left &= left - 1) {
               const int lane = std::countr_zero(left), source = all[lane]->from;
               if ((lanes >> source & 1) == 0) {
                 cta.Fault(std::string(what) + " of lane " + std::to_string(lane) + " reads lane " +
                               std::to_string(source) + ", which is not in the mask",
                           where);
               }
               *results[lane] = all[source]->value;
             }
           });
  return out;
}

inline int FirstOfSegment(int lane, int width) { return lane / width * width; }

// The lanes of the mask that voted.
[[gnu::noinline]] inline unsigned Vote(const char* what, Where where, unsigned mask, bool vote) {
  unsigned out = 0;
  Cta::Current().Meet(what, where, mask, false, &vote, &out,
                      [](const bool* const* votes, unsigned* const* results, uint32_t lanes) {
                        unsigned all = 0;
                        for (int l = 0; l < kWarpLanes; ++l) {
                          if ((lanes >> l & 1) != 0 && *votes[l]) all |= 1u << l;
                        }
                        for (int l = 0; l < kWarpLanes; ++l) {
                          if ((lanes >> l & 1) != 0) *results[l] = all;
                        }
                      });
  return out;
}

}  // namespace octavo::emulator

using EmulatedWhere = std::source_location;
using std::isinf;
using std::isnan;

inline void __syncthreads(EmulatedWhere where = EmulatedWhere::current()) {
  octavo::emulator::Cta::Current().SyncThreads(0, "__syncthreads", where);
}
inline int __syncthreads_or(int vote, EmulatedWhere where = EmulatedWhere::current()) {
  return octavo::emulator::Cta::Current().SyncThreads(vote != 0, "__syncthreads_or", where) != 0;
}
inline int __syncthreads_count(int vote, EmulatedWhere where = EmulatedWhere::current()) {
  return octavo::emulator::Cta::Current().SyncThreads(vote != 0, "__syncthreads_count", where);
}
inline int __syncthreads_and(int vote, EmulatedWhere where = EmulatedWhere::current()) {
  auto& cta = octavo::emulator::Cta::Current();
  return cta.SyncThreads(vote != 0, "__syncthreads_and", where) == cta.threads();
}
inline void __syncwarp(unsigned mask = 0xffffffffu,
                       EmulatedWhere where = EmulatedWhere::current()) {
  octavo::emulator::Vote("__syncwarp", where, mask, true);
}
inline unsigned __ballot_sync(unsigned mask, int vote,
                              EmulatedWhere where = EmulatedWhere::current()) {
  return octavo::emulator::Vote("__ballot_sync", where, mask, vote != 0);
}
inline int __any_sync(unsigned mask, int vote, EmulatedWhere where = EmulatedWhere::current()) {
  return octavo::emulator::Vote("__any_sync", where, mask, vote != 0) != 0;
}
inline int __all_sync(unsigned mask, int vote, EmulatedWhere where = EmulatedWhere::current()) {
  return octavo::emulator::Vote("__all_sync", where, mask, vote != 0) == mask;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
              EmulatedWhere where = EmulatedWhere::current()) {
  const int own = octavo::emulator::Cta::Current().lane_of_warp();
  const int from = octavo::emulator::FirstOfSegment(own, width) + (lane & (width - 1));
  return octavo::emulator::Shuffle("__shfl_sync", where, mask, value, from);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  EmulatedWhere where = EmulatedWhere::current()) {
  const int own = octavo::emulator::Cta::Current().lane_of_warp(), other = own ^ bits;
  const int last = octavo::emulator::FirstOfSegment(own, width) + width - 1;
  return octavo::emulator::Shuffle("__shfl_xor_sync", where, mask, value,
                                   other <= last ? other : own);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned step, int width = 32,
                 EmulatedWhere where = EmulatedWhere::current()) {
  const int own = octavo::emulator::Cta::Current().lane_of_warp();
  const int other = own - static_cast<int>(step);
  return octavo::emulator::Shuffle(
      "__shfl_up_sync", where, mask, value,
      other >= octavo::emulator::FirstOfSegment(own, width) ? other : own);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned step, int width = 32,
                   EmulatedWhere where = EmulatedWhere::current()) {
  const int own = octavo::emulator::Cta::Current().lane_of_warp();
  const int other = own + static_cast<int>(step);
  return octavo::emulator::Shuffle(
      "__shfl_down_sync", where, mask, value,
      other < octavo::emulator::FirstOfSegment(own, width) + width ? other : own);
}
inline unsigned __activemask() { return 1u << octavo::emulator::Cta::Current().lane_of_warp(); }

template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> x) {
  return octavo::emulator::Atomic(at, [x](T old) { return static_cast<T>(old + x); });
}
template <typename T>
T atomicSub(T* at, std::type_identity_t<T> x) {
  return octavo::emulator::Atomic(at, [x](T old) { return static_cast<T>(old - x); });
}
template <typename T>
T atomicMax(T* at, std::type_identity_t<T> x) {
  return octavo::emulator::Atomic(at, [x](T old) { return old < x ? x : old; });
}
template <typename T>
T atomicMin(T* at, std::type_identity_t<T> x) {
  return octavo::emulator::Atomic(at, [x](T old) { return x < old ? x : old; });
}
template <typename T>
T atomicOr(T* at, std::type_identity_t<T> x) {
  return octavo::emulator::Atomic(at, [x](T old) { return static_cast<T>(old | x); });
}
template <typename T>
T atomicAnd(T* at, std::type_identity_t<T> x) {
  return octavo::emulator::Atomic(at, [x](T old) { return static_cast<T>(old & x); });
}
template <typename T>
T atomicExch(T* at, std::type_identity_t<T> x) {
  return octavo::emulator::Atomic(at, [x](T) { return x; });
}
template <typename T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> x) {
  return octavo::emulator::Atomic(at, [=](T old) { return old == expected ? x : old; });
}
// Threads run one at a time, in the order of their accesses.
inline void __threadfence() { octavo::emulator::Cta::Current().MayYield(4); }
inline void __threadfence_block() { octavo::emulator::Cta::Current().MayYield(4); }
inline void __nanosleep(unsigned) { octavo::emulator::Cta::Current().Yield(); }

template <typename T>
T __ldg(const T* at) {
  return *at;
}
template <typename T>
T __ldcg(const T* at) {
  return *at;
}
template <typename T>
T __ldcs(const T* at) {
  return *at;
}
template <typename T>
void __stcs(T* at, std::type_identity_t<T> x) {
  *at = x;
}
template <typename T>
void __stcg(T* at, std::type_identity_t<T> x) {
  *at = x;
}

inline unsigned __float_as_uint(float x) { return octavo::emulator::Bits<unsigned>(x); }
inline int __float_as_int(float x) { return octavo::emulator::Bits<int>(x); }
inline float __uint_as_float(unsigned x) { return octavo::emulator::Bits<float>(x); }
inline float __int_as_float(int x) { return octavo::emulator::Bits<float>(x); }
inline long long __double_as_longlong(double x) { return octavo::emulator::Bits<long long>(x); }
inline double __longlong_as_double(long long x) { return octavo::emulator::Bits<double>(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1) << (31 - i);
  return y;
}
// Byte i of the result is the byte of {high, low} that nibble i names.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned nibbles) {
  const unsigned long long both = static_cast<unsigned long long>(high) << 32 | low;
  unsigned y = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned from = nibbles >> (4 * i) & 7;
    y |= static_cast<unsigned>(both >> (8 * from) & 0xff) << (8 * i);
  }
  return y;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
// 0 where the divisor lies between 2^126 and 2^128, as documented; NaN for an infinity above it.
inline float __fdividef(float a, float b) { return fabsf(b) > 0x1p126f ? a * 0.0f : a / b; }
inline float __expf(float x) { return expf(x); }
inline float __exp2f(float x) { return exp2f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __saturatef(float x) { return x > 1.0f ? 1.0f : x > 0.0f ? x : 0.0f; }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(nearbyintf(x)); }
