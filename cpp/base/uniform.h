// Random numbers as a function of (seed, index) alone: no state to keep, save or share, and a
// sample drawn alone equals the same sample drawn in a batch, on any backend.
#pragma once

#include <cstdint>

#include "base/host_device.h"

namespace octavo {

// A bijection of 64-bit words in which every input bit flips every output bit with probability 1/2
// (the finaliser of SplitMix64: Steele, Lea and Flood 2014).
OCTAVO_HOST_DEVICE constexpr uint64_t MixBits(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Uniform in [0, 1), 53 bits. The seed picks a place on SplitMix64's cycle by way of a mix of its
// own and the index steps along it, so that neighbours in either are unrelated.
OCTAVO_HOST_DEVICE constexpr double Uniform(uint64_t seed, uint64_t index) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio, SplitMix64's step
  constexpr uint64_t kSeedOffset = 0x2545f4914f6cdd1du;
  const uint64_t start = MixBits(seed + kSeedOffset);
  const uint64_t bits = MixBits(start + (index + 1) * kGolden);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace octavo
