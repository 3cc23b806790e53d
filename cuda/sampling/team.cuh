// The CTAs that look at one row together: a cluster of sm_90, which shares its shared memory, or
// one.
//
// All CTAs of a team take the same decisions from the same numbers; what they count apart is merged
// before anybody reads it. Nothing that is computed depends on the team's size.
#pragma once

#include "common/ptx.cuh"

namespace octavo::cuda {

inline constexpr int kMaxTeam = 8;  // the portable size of a cluster

struct RowTeam {
  int rank = 0;
  int size = 1;

  __device__ __forceinline__ RowTeam() {
#if __CUDA_ARCH__ >= 900
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  }

  // A barrier of all threads of the team; what they wrote before it, in shared or global memory, is
  // seen after it.
  __device__ __forceinline__ void Sync() const {
#if __CUDA_ARCH__ >= 900
    if (size > 1) {
      asm volatile(
          "barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
              : "memory");
      return;
    }
#endif
    __syncthreads();
  }

  // The same variable in the shared memory of another CTA of the team.
  template <typename T>
  __device__ __forceinline__ T* Of(T* variable, [[maybe_unused]] int other) const {
#if __CUDA_ARCH__ >= 900
    if (size > 1) {
      T* there;
      asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(variable), "r"(other));
      return there;
    }
#endif
    return variable;
  }
};

}  // namespace octavo::cuda
