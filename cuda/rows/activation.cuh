// What a gate does to its input: x times the sigmoid of something. A division that rounds correctly
// has a branch, so that one thread's gates come one after another, and a call where the sigmoid is
// small; this one errs by a few ulp of float32.
#pragma once

#include "common/host_device.h"
#include "common/ptx.cuh"

namespace octavo::cuda {

// x / (1 + 2^-power); 0 where that is below the normal numbers.
__device__ __forceinline__ float Sigmoided(float x, float power) {
  return __fdividef(x, 1.0f + Exp2(-power));
}

struct Silu {
  __device__ static float Of(float x) {
    constexpr float kLog2E = 1.4426950408889634f;
    return Sigmoided(x, kLog2E * x);
  }
};

// (1 + tanh(y)) / 2 is the sigmoid of 2 y, and loses nothing where tanh is near -1.
struct GeluTanh {
  __device__ static float Of(float x) {
    constexpr float kTwoLog2E = 2.8853900817779268f;
    constexpr float kSqrt2OverPi = 0.7978845608028654f, kCubic = 0.044715f;
    return Sigmoided(x, kTwoLog2E * kSqrt2OverPi * (x + kCubic * x * x * x));
  }
};

}  // namespace octavo::cuda
