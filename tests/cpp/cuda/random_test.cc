// The device's random numbers are the CPU's.
#include "sampling/random.h"

#include <random>

#include "cpu/random.h"
#include "doctest/doctest.h"

namespace octavo::cuda {
namespace {

TEST_CASE("a seed and an index give one number on both backends") {
  std::mt19937_64 rng(5);
  for (int i = 0; i < 1000; ++i) {
    const uint64_t seed = i < 10 ? static_cast<uint64_t>(i) : rng(), index = i < 500 ? i : rng();
    CHECK(Uniform(seed, index) == cpu::Uniform(seed, index));
  }
}

}  // namespace
}  // namespace octavo::cuda
