// The OpenMP runtime that the process has loaded, if any: found among the loaded libraries, never
// linked.
#pragma once

namespace octavo::cpu {

struct OpenMp {
  // GOMP_parallel: runs fn(data) on a team of num_threads. libgomp's entry point; libomp and
  // libiomp5 export it too.
  void (*parallel)(void (*fn)(void*), void* data, unsigned num_threads, unsigned flags) = nullptr;
  int (*max_threads)() = nullptr;
  int (*in_parallel)() = nullptr;
};

// Null members where none is loaded. Looks once, at the first call that finds one.
const OpenMp& LoadedOpenMp();

}  // namespace octavo::cpu
