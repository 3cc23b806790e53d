// Random: the simulator's only source of chance. The same seed gives the same run everywhere, which
// the distributions of the standard library do not promise.
#pragma once

#include <cmath>
#include <cstdint>

namespace octavo::sim {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {  // splitmix64 (Steele, Lea, Flood 2014)
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  // [0, n). REQUIRES: n > 0.
  int32_t Below(int32_t n) { return static_cast<int32_t>((Next() >> 32) * uint64_t(n) >> 32); }
  // [low, high].
  int32_t Between(int32_t low, int32_t high) { return low + Below(high - low + 1); }
  bool OneIn(int32_t n) { return Below(n) == 0; }
  double Unit() { return double(Next() >> 11) * 0x1.0p-53; }  // [0, 1)
  double Exponential(double mean) { return -mean * std::log1p(-Unit()); }
  double Normal() {  // Box-Muller; the second value is not kept
    const double radius = std::sqrt(-2 * std::log1p(-Unit()));
    return radius * std::cos(6.283185307179586 * Unit());
  }

 private:
  uint64_t state_;
};

}  // namespace octavo::sim
