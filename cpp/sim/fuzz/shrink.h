// Shrink: the shortest list of operations that it can find with the same failure.
#pragma once

#include <functional>
#include <vector>

#include "sim/fuzz/op.h"

namespace octavo::sim {

// Takes away ever smaller pieces for as long as `fails` holds without them (delta debugging), until
// no single operation can go. REQUIRES: fails(ops).
std::vector<Op> Shrink(std::vector<Op> ops,
                       const std::function<bool(const std::vector<Op>&)>& fails);

// The scenario with the fewest operations that still fails with `failure`.
Scenario ShrinkFailure(const Scenario& scenario, const std::string& failure);

}  // namespace octavo::sim
