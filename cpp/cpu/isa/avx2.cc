// The kernels in AVX2 with FMA and F16C: eight lanes, chosen at run time where the processor has
// them.
#include "cpu/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

// Everything below is compiled for the set; everything above (the standard headers) is not, on
// purpose.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define OCTAVO_CPU_ISA avx2
#define OCTAVO_CPU_LANES 8
#define OCTAVO_CPU_REGISTERS 16

#include "cpu/isa/table.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace octavo::cpu {

const Kernels* KernelsAvx2() {
  static constexpr Kernels kTable = OCTAVO_CPU_ISA::MakeTable("avx2");
  return &kTable;
}

}  // namespace octavo::cpu

#else

namespace octavo::cpu {

const Kernels* KernelsAvx2() { return nullptr; }

}  // namespace octavo::cpu

#endif
