// Stands before cuda/common/hopper.cuh in the emulator: the same wrappers, in C++.
#pragma once

#include "common/ptx.cuh"
#include "emulator/hopper.h"

#define OCTAVO_SM90A 1

namespace octavo::cuda {

inline constexpr int kWarpgroupSize = 128;
inline constexpr int kBarrierBytes = 8;

inline void InitBarrier(uint32_t barrier, int arrivals, Where where = Where::current()) {
  emulator::InitMbarrier(barrier, arrivals, where);
}
inline void FenceBarrierInit() {}

inline void ArriveBarrier(uint32_t barrier, Where where = Where::current()) {
  emulator::ArriveMbarrier(barrier, 0, where);
}
inline void ArriveBarrierExpecting(uint32_t barrier, int bytes, Where where = Where::current()) {
  emulator::ArriveMbarrier(barrier, bytes, where);
}
inline void WaitBarrier(uint32_t barrier, uint32_t parity, Where where = Where::current()) {
  emulator::WaitMbarrier(barrier, parity, where);
}

inline void PrefetchMap(const CUtensorMap&) {}

inline void CopyBox5(uint32_t shared, const CUtensorMap& map, uint32_t barrier, int c0, int c1,
                     int c2, int c3, int c4, Where where = Where::current()) {
  emulator::CopyBox(shared, map, barrier, {c0, c1, c2, c3, c4}, where);
}

inline void FenceAsyncShared() {}
inline void FenceAsyncGlobal() {}

inline void StoreMatrix4Transposed(uint32_t shared, const uint32_t (&r)[4],
                                   Where where = Where::current()) {
  emulator::StoreMatrices("stmatrix.trans", where, shared, r);
}

template <int kRegisters>
void ShrinkRegisters() {}
template <int kRegisters>
void GrowRegisters() {}

inline void ArriveThreadsOf(int number, int threads, Where where = Where::current()) {
  Cta::Current().ArriveAtBarrier(number, threads, where);
}

}  // namespace octavo::cuda
