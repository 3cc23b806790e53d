// The uniform number of a sample, as on the CPU: a function of (seed, index) alone.
#pragma once

#include "common/host_device.h"

namespace octavo::cuda {

// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
OCTAVO_HOST_DEVICE uint64_t MixBits(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// In [0, 1), 53 bits.
OCTAVO_HOST_DEVICE double Uniform(uint64_t seed, uint64_t index) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u, kSeedOffset = 0x2545f4914f6cdd1du;
  const uint64_t bits = MixBits(MixBits(seed + kSeedOffset) + (index + 1) * kGolden);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace octavo::cuda
