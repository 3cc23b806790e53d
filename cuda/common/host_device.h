// Marks functions that run on the host and on the device, so that schedules and masks are tested
// without a GPU.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define OCTAVO_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define OCTAVO_HOST_DEVICE inline
#endif

namespace octavo::cuda {

template <typename A, typename B>
OCTAVO_HOST_DEVICE constexpr auto CeilDiv(A a, B b) {
  return (a + b - 1) / b;
}

template <typename T>
OCTAVO_HOST_DEVICE constexpr T Min(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
OCTAVO_HOST_DEVICE constexpr T Max(T a, T b) {
  return a < b ? b : a;
}

}  // namespace octavo::cuda
