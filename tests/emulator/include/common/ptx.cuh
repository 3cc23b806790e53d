// Stands before cuda/common/ptx.cuh in the emulator: the same wrappers, in C++.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "emulator/matrix.h"

namespace octavo::cuda {

using emulator::Cta;
using emulator::Where;

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullWarp = 0xffffffffu;
inline constexpr int kSharedAlign = 1024;
inline constexpr int kPieceBytes = 16;
inline constexpr int kLineBytes = 128;

inline int ThreadAfresh() { return static_cast<int>(threadIdx.x); }

inline unsigned char* DynamicShared() { return Cta::Current().shared(); }

inline uint32_t SharedAddress(const void* p, Where where = Where::current()) {
  return Cta::Current().AddressOf(p, where);
}

inline void SyncThreadsOf(int number, int threads, Where where = Where::current()) {
  Cta::Current().SyncBarrier(number, threads, 0, "bar.sync", where);
}

inline void PrefetchL2(const void*) {}

inline void CopyAsync16(uint32_t shared, const void* global, Where where = Where::current()) {
  Cta::Current().IssueCopy(shared, global, kPieceBytes, where);
}

inline void CopyAsync16OrZero(uint32_t shared, const void* global, bool live,
                              Where where = Where::current()) {
  Cta::Current().IssueCopy(shared, global, live ? kPieceBytes : 0, where);
}

inline void CopyAsyncCommit() { Cta::Current().CommitCopies(); }

template <int kPending>
void CopyAsyncWait() {
  Cta::Current().WaitCopies(kPending);
}

inline void StoreSharedZero16(uint32_t shared, Where where = Where::current()) {
  memset(Cta::Current().At(shared, 16, where), 0, 16);
}

inline uint4 LoadShared16(uint32_t shared, Where where = Where::current()) {
  uint4 v;
  memcpy(&v, Cta::Current().At(shared, 16, where), 16);
  return v;
}

inline void StoreShared16(uint32_t shared, uint4 v, Where where = Where::current()) {
  memcpy(Cta::Current().At(shared, 16, where), &v, 16);
}

inline void LoadMatrix4(uint32_t (&r)[4], uint32_t shared, Where where = Where::current()) {
  emulator::LoadMatrices("ldmatrix", where, shared, false, r);
}

inline void LoadMatrix4Transposed(uint32_t (&r)[4], uint32_t shared,
                                  Where where = Where::current()) {
  emulator::LoadMatrices("ldmatrix.trans", where, shared, true, r);
}

inline uint32_t TransposeMatrix(uint32_t x, Where where = Where::current()) {
  return emulator::TransposeMatrix(where, x);
}

template <typename T>
void Mma16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                Where where = Where::current()) {
  emulator::Mma16x8x16(where, sizeof(T) == 2 && std::is_same_v<T, __half>, c, a, b0, b1);
}

template <typename T>
uint32_t Pack(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) {
    return emulator::Bits<uint32_t>(__floats2half2_rn(low, high));
  } else {
    return emulator::Bits<uint32_t>(__floats2bfloat162_rn(low, high));
  }
}

// Results below the normal numbers are 0, as ex2.approx.ftz has them.
inline float Exp2(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}

inline float Tanh(float x) {
  constexpr float kTwoLog2E = 2.8853900817779268f;
  return 1.0f - __fdividef(2.0f, 1.0f + Exp2(kTwoLog2E * x));
}

inline uint32_t CountAcquireRelease(uint32_t* counter) { return atomicAdd(counter, 1u); }

inline void GridDependencyWait(Where where = Where::current()) {
  emulator::WaitForGridInFront(where);
}

// The grids behind this one do not need it: they have begun already.
inline void GridDependencyLaunch() {}

}  // namespace octavo::cuda
