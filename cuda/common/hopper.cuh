// The PTX of sm_90a beside its matrix products (wgmma.cuh), one wrapper each: barriers in shared
// memory, copies by tensor map, fences, and what warpgroups share. Kernels that use it have a body
// where OCTAVO_SM90A is set; elsewhere they are empty and the host does not launch them.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "common/ptx.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define OCTAVO_SM90A 1
#endif

namespace octavo::cuda {

inline constexpr int kWarpgroupSize = 128;
inline constexpr int kBarrierBytes = 8;  // of an mbarrier

// A phase of the barrier ends when `arrivals` have been counted and all expected bytes have landed.
__device__ __forceinline__ void InitBarrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes this thread's InitBarrier seen by the copy engine. A __syncthreads tells the other threads.
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void ArriveBarrier(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and has the phase wait for `bytes` that copies complete on the barrier.
__device__ __forceinline__ void ArriveBarrierExpecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Waits for the end of the barrier's phase of this parity: phases count 0, 1, 0, ..., and the one
// before the first has parity 1, so that a wait for it returns at once.
__device__ __forceinline__ void WaitBarrier(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
        "selp.u32 %0, 1, 0, p;}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
}

// Has the copy engine fetch a map before its first copy does.
__device__ __forceinline__ void PrefetchMap(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Copies the map's box at these coordinates, the innermost first, to shared memory and completes
// its bytes on the barrier. What lies outside the tensor becomes zeros and counts as bytes too.
__device__ __forceinline__ void CopyBox5(uint32_t shared, const CUtensorMap& map, uint32_t barrier,
                                         int c0, int c1, int c2, int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}

// Orders this thread's ordinary accesses to shared memory, cp.async included, before later ones of
// the copy engine and the tensor cores.
__device__ __forceinline__ void FenceAsyncShared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// The same for global memory.
__device__ __forceinline__ void FenceAsyncGlobal() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

// Stores four 8 x 8 matrices of 16-bit elements that lie in the warp's registers as an MMA's sums
// do, transposed: lane l gives the address of column l % 8 of matrix l / 8.
__device__ __forceinline__ void StoreMatrix4Transposed(uint32_t shared, const uint32_t (&r)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
}

// Gives registers back, or takes them: every warp of a warpgroup calls it.
template <int kRegisters>
__device__ __forceinline__ void ShrinkRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void GrowRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Counts for a barrier of `threads` threads (SyncThreadsOf) without waiting there.
__device__ __forceinline__ void ArriveThreadsOf(int number, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

}  // namespace octavo::cuda
