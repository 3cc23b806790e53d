// Stands before cuda/common/wgmma.cuh in the emulator: the same wrappers, in C++.
#pragma once

#include <type_traits>

#include "common/hopper.cuh"
#include "common/matrix_descriptor.cuh"

namespace octavo::cuda {

inline void WgmmaFence() {}
inline void WgmmaCommit(Where where = Where::current()) { emulator::CommitWgmma(where); }
template <int kPending>
void WgmmaWait(Where where = Where::current()) {
  emulator::WaitWgmma(kPending, where);
}

template <int kCount>
void PinRegisters(float (&)[kCount]) {}

inline float Exp2InPlace(float x) { return Exp2(x); }

template <typename T, bool kAdd, int kCount>
void WgmmaShared(float (&d)[kCount], uint64_t a, uint64_t b, Where where = Where::current()) {
  emulator::IssueWgmma({d, 2 * kCount, nullptr, a, b, false, kAdd, std::is_same_v<T, __half>},
                       where);
}

template <typename T, int kCount>
void WgmmaRegisters(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b,
                    Where where = Where::current()) {
  emulator::IssueWgmma({d, 2 * kCount, a, 0, b, true, true, std::is_same_v<T, __half>}, where);
}

}  // namespace octavo::cuda
