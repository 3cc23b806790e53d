// Matrix products of a warpgroup (wgmma, sm_90a): d[64 x n] += a[64 x 16] b[16 x n], 16-bit
// operands, float32 sums in registers. They run late: what a product reads and writes is the tensor
// cores' from WgmmaFence until a WgmmaWait that covers its group.
//
// Fragments of thread t of the warpgroup, warp w = t / 32, lane l = t % 32: d[4 j + i] is row
// 16 w + l / 4 + 8 (i / 2), column 8 j + 2 (l % 4) + i % 2, and a[] is mma.sync's A of the warp's
// 16 rows.
#pragma once

#include <type_traits>

#include "common/hopper.cuh"
#include "common/matrix_descriptor.cuh"

namespace octavo::cuda {

// Before the first product of a group, after the registers it reads or adds to were written.
__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Ends a group of products.
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most kPending of the latest groups are still under way.
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// No use of these registers moves across this point. After a wait that covers the product that
// writes them the compiler has no other way to know.
template <int kCount>
__device__ __forceinline__ void PinRegisters(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// 2^x, not moved across a wait: left to itself, the compiler sinks exponentials below the wait for
// the products that they are meant to overlap.
__device__ __forceinline__ float Exp2InPlace(float x) {
  float y;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x) : "memory");
  return y;
}

// Operand lists of the products below: their sums, and the sums' numbers.
#define OCTAVO_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define OCTAVO_D8(i) OCTAVO_D4(i), OCTAVO_D4(i + 4)
#define OCTAVO_D32(i) OCTAVO_D8(i), OCTAVO_D8(i + 8), OCTAVO_D8(i + 16), OCTAVO_D8(i + 24)
#define OCTAVO_D16 OCTAVO_D8(0), OCTAVO_D8(8)
#define OCTAVO_D40 OCTAVO_D32(0), OCTAVO_D8(32)
#define OCTAVO_D64 OCTAVO_D32(0), OCTAVO_D32(32)
#define OCTAVO_D96 OCTAVO_D64, OCTAVO_D32(64)
#define OCTAVO_D128 OCTAVO_D96, OCTAVO_D32(96)
#define OCTAVO_N16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define OCTAVO_N32                                                                   \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
  "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define OCTAVO_N40 OCTAVO_N32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define OCTAVO_N64                                                                   \
  OCTAVO_N32                                                                         \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define OCTAVO_N96                                                                   \
  OCTAVO_N64                                                                         \
  ", "                                                                               \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define OCTAVO_N128                                                                      \
  OCTAVO_N96                                                                             \
  ", "                                                                                   \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, "     \
  "%110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, " \
  "%124, %125, %126, %127"
// `inputs` are the numbers of a and b. The immediates are the signs of a and b and whether operands
// in shared memory are transposed.
#define OCTAVO_WGMMA_SHARED(n, sums, numbers, inputs, add)                                       \
  if constexpr (std::is_same_v<T, __half>) {                                                     \
    asm volatile("{.reg .pred p; setp.ne.b32 p, " add ", 0; wgmma.mma_async.sync.aligned.m64n" n \
                 "k16.f32.f16.f16 {" numbers "}, " inputs ", p, 1, 1, 0, 0;}"                    \
                 : sums                                                                          \
                 : "l"(a), "l"(b), "n"(kAdd ? 1 : 0));                                           \
  } else {                                                                                       \
    asm volatile("{.reg .pred p; setp.ne.b32 p, " add ", 0; wgmma.mma_async.sync.aligned.m64n" n \
                 "k16.f32.bf16.bf16 {" numbers "}, " inputs ", p, 1, 1, 0, 0;}"                  \
                 : sums                                                                          \
                 : "l"(a), "l"(b), "n"(kAdd ? 1 : 0));                                           \
  }
#define OCTAVO_WGMMA_REGISTERS(type, n, sums, numbers, inputs)                           \
  asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n" n \
               "k16.f32." type "." type " {" numbers "}, " inputs ", p, 1, 1, 1;}"       \
               : sums                                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// d = a b, or d += a b with kAdd. Both operands lie in shared memory, rows along k.
template <typename T, bool kAdd, int kCount>
__device__ __forceinline__ void WgmmaShared(float (&d)[kCount], uint64_t a, uint64_t b) {
  static_assert(kCount == 16 || kCount == 32 || kCount == 40 || kCount == 64 || kCount == 96 ||
                kCount == 128);
  if constexpr (kCount == 16) {
    OCTAVO_WGMMA_SHARED("32", OCTAVO_D16, OCTAVO_N16, "%16, %17", "%18");
  } else if constexpr (kCount == 32) {
    OCTAVO_WGMMA_SHARED("64", OCTAVO_D32(0), OCTAVO_N32, "%32, %33", "%34");
  } else if constexpr (kCount == 40) {
    OCTAVO_WGMMA_SHARED("80", OCTAVO_D40, OCTAVO_N40, "%40, %41", "%42");
  } else if constexpr (kCount == 64) {
    OCTAVO_WGMMA_SHARED("128", OCTAVO_D64, OCTAVO_N64, "%64, %65", "%66");
  } else if constexpr (kCount == 96) {
    OCTAVO_WGMMA_SHARED("192", OCTAVO_D96, OCTAVO_N96, "%96, %97", "%98");
  } else {
    OCTAVO_WGMMA_SHARED("256", OCTAVO_D128, OCTAVO_N128, "%128, %129", "%130");
  }
}

// d += a b with `a` in registers and b's rows along n.
template <typename T, int kCount>
__device__ __forceinline__ void WgmmaRegisters(float (&d)[kCount], const uint32_t (&a)[4],
                                               uint64_t b) {
  static_assert(kCount == 32 || kCount == 64 || kCount == 128);
  constexpr bool kHalf = std::is_same_v<T, __half>;
  if constexpr (kCount == 32 && kHalf) {
    OCTAVO_WGMMA_REGISTERS("f16", "64", OCTAVO_D32(0), OCTAVO_N32, "{%32, %33, %34, %35}, %36");
  } else if constexpr (kCount == 32) {
    OCTAVO_WGMMA_REGISTERS("bf16", "64", OCTAVO_D32(0), OCTAVO_N32, "{%32, %33, %34, %35}, %36");
  } else if constexpr (kCount == 64 && kHalf) {
    OCTAVO_WGMMA_REGISTERS("f16", "128", OCTAVO_D64, OCTAVO_N64, "{%64, %65, %66, %67}, %68");
  } else if constexpr (kCount == 64) {
    OCTAVO_WGMMA_REGISTERS("bf16", "128", OCTAVO_D64, OCTAVO_N64, "{%64, %65, %66, %67}, %68");
  } else if constexpr (kHalf) {
    OCTAVO_WGMMA_REGISTERS("f16", "256", OCTAVO_D128, OCTAVO_N128,
                           "{%128, %129, %130, %131}, %132");
  } else {
    OCTAVO_WGMMA_REGISTERS("bf16", "256", OCTAVO_D128, OCTAVO_N128,
                           "{%128, %129, %130, %131}, %132");
  }
}

#undef OCTAVO_WGMMA_REGISTERS
#undef OCTAVO_WGMMA_SHARED
#undef OCTAVO_N128
#undef OCTAVO_N96
#undef OCTAVO_N64
#undef OCTAVO_N40
#undef OCTAVO_N32
#undef OCTAVO_N16
#undef OCTAVO_D128
#undef OCTAVO_D96
#undef OCTAVO_D64
#undef OCTAVO_D40
#undef OCTAVO_D32
#undef OCTAVO_D16
#undef OCTAVO_D8
#undef OCTAVO_D4

}  // namespace octavo::cuda
