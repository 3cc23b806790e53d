// Random lives: thousands of steps over tiny pools with aborts, failures and preemption, invariants
// checked after every operation. Each request's tokens must be those of the same request run alone.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "octavo/config.h"

namespace octavo::engine {

inline int32_t Below(std::mt19937& random, int32_t n) { return int32_t(random() % uint32_t(n)); }

// What a connector does wrong.
struct Trouble {
  bool failures = false;  // loads fail from some token on
  bool losses = false;    // some reports never come
  bool death = false;     // the connector dies on the way
};

struct SimulationOptions {
  uint32_t seed = 0;
  int lag = 0;        // steps that stay open while the next one is planned
  bool late = false;  // a step runs only when it is about to finish
  uint32_t fail_one_in = 0;
  bool fail_steps = false;
  bool drafts = false;  // guess what follows, right and wrong
  int requests = 60;
  // The cache groups of a run; null: one of full attention.
  std::vector<GroupSpec> (*groups)(std::mt19937& random) = nullptr;
  bool connector = false;  // a RandomConnector
  int host_blocks = 0;     // a HostTier of so many parents
  bool slow_copies = false;
  Trouble trouble = {};
};

// Runs `count` simulations, and checks that they reached the hard parts: many steps, preemptions,
// prefix hits.
void RunMany(SimulationOptions options, uint32_t first_seed, uint32_t count);

}  // namespace octavo::engine
