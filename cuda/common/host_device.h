// Small functions for schedules and masks, which are tested on the host, without a GPU.
#pragma once

#include <cstdint>

#include "base/host_device.h"

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
