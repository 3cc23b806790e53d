// The CTAs of a thread block cluster (sm_90 on; elsewhere a CTA is alone).
#pragma once

#include <cstdint>

namespace octavo::cuda {

// This CTA's number in its cluster.
__device__ __forceinline__ int ClusterRank() {
  int rank = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}

__device__ __forceinline__ int ClusterSize() {
  int size = 1;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  return size;
}

// A barrier of all threads of the cluster; what they wrote before it, in shared or global memory,
// is seen after it.
__device__ __forceinline__ void SyncCluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
#else
  __syncthreads();
#endif
}

// The same variable in the shared memory of CTA `rank` of the cluster. REQUIRES: it has begun, and
// does not end before the last access.
template <typename T>
__device__ __forceinline__ T* InClusterCta(T* variable, [[maybe_unused]] int rank) {
  T* there = variable;
#if __CUDA_ARCH__ >= 900
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(variable), "r"(rank));
#endif
  return there;
}

}  // namespace octavo::cuda
