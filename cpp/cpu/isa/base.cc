// The kernels in what every machine of the build's architecture has: SSE2 or NEON, four lanes.
#include "cpu/kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#define OCTAVO_CPU_REGISTERS 32
#else
#define OCTAVO_CPU_REGISTERS 16
#endif
#define OCTAVO_CPU_ISA base
#define OCTAVO_CPU_LANES 4

#include "cpu/isa/table.h"

namespace octavo::cpu {

const Kernels* KernelsBase() {
  static constexpr Kernels kTable = OCTAVO_CPU_ISA::MakeTable("base");
  return &kTable;
}

}  // namespace octavo::cpu
