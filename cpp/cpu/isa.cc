// Which kernel table is in use: the widest that the processor runs, unless SetIsa chose another.
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <cstring>
#include <string>

#include "cpu/kernels.h"
#include "octavo/ops.h"

namespace octavo::cpu {
namespace {

#if defined(__x86_64__)
// Not every compiler's __builtin_cpu_supports knows the name.
bool HasF16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

const Kernels* Usable(const char* name) {
#if defined(__x86_64__)
  if (std::strcmp(name, "avx512") == 0) {
    const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                     HasF16c() && __builtin_cpu_supports("fma");
    return has ? KernelsAvx512() : nullptr;
  }
  if (std::strcmp(name, "avx2") == 0) {
    const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
    return has ? KernelsAvx2() : nullptr;
  }
#endif
  return std::strcmp(name, "base") == 0 ? KernelsBase() : nullptr;
}

const Kernels* Widest() {
  for (const char* name : {"avx512", "avx2"}) {
    if (const Kernels* k = Usable(name)) return k;
  }
  return KernelsBase();
}

std::atomic<const Kernels*>& Active() {
  static std::atomic<const Kernels*> active{Widest()};
  return active;
}

}  // namespace

const Kernels& ActiveKernels() { return *Active().load(std::memory_order_relaxed); }

const char* Isa() { return ActiveKernels().name; }

Status SetIsa(const char* name) {
  const Kernels* k = Usable(name);
  if (k == nullptr) {
    return {
        StatusCode::kUnavailable,
        std::string("instruction set \"") + name +
            "\" is not available here: use avx512, avx2 or base, as far as the processor has it"};
  }
  Active().store(k, std::memory_order_relaxed);
  return Status::Ok();
}

}  // namespace octavo::cpu
