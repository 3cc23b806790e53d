// How large the tests of the kernels are. The emulator of tests/emulator is some ten thousand times
// slower than a GPU, and compute-sanitizer makes a GPU a hundred times slower: there a test has the
// same cases in smaller sizes. On a GPU OCTAVO_TEST_SIZES=small asks for them.
#pragma once

#include <cstdlib>
#include <string_view>

namespace octavo::cuda {

inline bool SmallSizes() {
#ifdef OCTAVO_EMULATED
  return true;
#else
  static const char* const asked = std::getenv("OCTAVO_TEST_SIZES");
  return asked != nullptr && std::string_view(asked) == "small";
#endif
}

// A size of a test.
template <typename T>
T Size(T on_gpu, T small) {
  return SmallSizes() ? small : on_gpu;
}

}  // namespace octavo::cuda
