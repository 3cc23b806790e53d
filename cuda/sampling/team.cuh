// The CTAs that look at one row together: a cluster of sm_90, which shares its shared memory, or
// one.
//
// All CTAs of a team take the same decisions from the same numbers; what they count apart is merged
// before anybody reads it. Nothing that is computed depends on the team's size.
#pragma once

#include "common/cluster.cuh"

namespace octavo::cuda {

inline constexpr int kMaxTeam = 8;  // the portable size of a cluster

struct RowTeam {
  const int rank = ClusterRank();
  const int size = ClusterSize();

  // A barrier of all threads of the team; what they wrote before it, in shared or global memory, is
  // seen after it.
  __device__ __forceinline__ void Sync() const {
    if (size > 1) {
      SyncCluster();
    } else {
      __syncthreads();
    }
  }

  // The same variable in the shared memory of another CTA of the team.
  template <typename T>
  __device__ __forceinline__ T* Of(T* variable, int other) const {
    return size > 1 ? InClusterCta(variable, other) : variable;
  }
};

}  // namespace octavo::cuda
