// Grids: CTAs in random order, several at a time, on threads of which one runs at any moment.
//
// A thread of the operating system holds one CTA at a time, so that a static __shared__ variable,
// which is thread-local here, is the CTA's own. A grid that may begin before the one in front of it
// has ended does so: its first CTAs run up to GridDependencyWait, then the grid in front runs.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "emulator/cta.h"

namespace octavo::emulator {

struct LaunchConfig {
  dim3 grid{1, 1, 1};
  dim3 block{1, 1, 1};
  int shared_bytes = 0;
  unsigned cluster = 1;
  bool dependent = false;
};

// Enqueues a kernel behind what was launched before; `params` is copied.
void LaunchGrid(const Call& call, size_t params_bytes, const char* name,
                const LaunchConfig& config);
// Runs everything that was launched to its end. False if a kernel failed, now or before.
bool FinishGrids();
// Why the first kernel failed since the last call; forgets it.
std::string TakeFault();
// Grids are drawn from this and their number.
void SetSeed(uint64_t seed);

// Waits for the grid in front of this one. For the running thread.
void WaitForGridInFront(Where where);

}  // namespace octavo::emulator
