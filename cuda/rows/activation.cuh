// What a gate does to its input.
#pragma once

#include "common/host_device.h"

namespace octavo::cuda {

struct Silu {
  __device__ static float Of(float x) { return x / (1.0f + expf(-x)); }
};

struct GeluTanh {
  __device__ static float Of(float x) {
    constexpr float kSqrt2OverPi = 0.7978845608028654f, kCubic = 0.044715f;
    return 0.5f * x * (1.0f + tanhf(kSqrt2OverPi * (x + kCubic * x * x * x)));
  }
};

}  // namespace octavo::cuda
