// Stands before cuda/common/cluster.cuh in the emulator.
#pragma once

#include <cuda_runtime.h>

namespace octavo::cuda {

inline int ClusterRank() { return emulator::Cta::Current().rank(); }
inline int ClusterSize() {
  return static_cast<int>(emulator::Cta::Current().cluster().ctas.size());
}
inline void SyncCluster(emulator::Where where = emulator::Where::current()) {
  emulator::Cta::Current().SyncCluster(where);
}
template <typename T>
T* InClusterCta(T* variable, int rank, emulator::Where where = emulator::Where::current()) {
  return static_cast<T*>(emulator::Cta::Current().Map(variable, rank, where));
}

}  // namespace octavo::cuda
