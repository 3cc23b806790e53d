// The kernels in AVX-512 (F, BW, DQ, VL): sixteen lanes, chosen at run time where the processor has
// them.
#include "cpu/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

// Everything below is compiled for the set; everything above (the standard headers) is not, on
// purpose.
#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
// GCC 12 finds its own intrinsics' "undefined" vectors uninitialised (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define OCTAVO_CPU_ISA avx512
#define OCTAVO_CPU_LANES 16
#define OCTAVO_CPU_REGISTERS 32

#include "cpu/isa/table.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace octavo::cpu {

const Kernels* KernelsAvx512() {
  static constexpr Kernels kTable = OCTAVO_CPU_ISA::MakeTable("avx512");
  return &kTable;
}

}  // namespace octavo::cpu

#else

namespace octavo::cpu {

const Kernels* KernelsAvx512() { return nullptr; }

}  // namespace octavo::cpu

#endif
