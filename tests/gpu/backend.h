// Where a test of the kernels runs: on a GPU, or in the emulator of tests/emulator, which is some
// ten thousand times slower.
#pragma once

namespace octavo::cuda {

#ifdef OCTAVO_EMULATED
inline constexpr bool kEmulated = true;
#else
inline constexpr bool kEmulated = false;
#endif

// A size of a test: `on_gpu`, but in the emulator less.
template <typename T>
constexpr T Size(T on_gpu, T emulated) {
  return kEmulated ? emulated : on_gpu;
}

}  // namespace octavo::cuda
