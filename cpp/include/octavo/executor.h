// Interfaces that the engine calls outwards through: who runs a step, and what time it is.
#pragma once

#include <cstdint>
#include <span>

#include "octavo/status.h"
#include "octavo/step.h"

namespace octavo {

// Runs the forward pass of a step. Called on the engine's thread.
class Executor {
 public:
  virtual ~Executor() = default;
  // Writes one token for each sample. A token of -1 fails that sample's request only; an error
  // fails every request of the step.
  virtual Status Execute(const StepPlan& plan, std::span<int32_t> tokens) = 0;
};

class Clock {
 public:
  virtual ~Clock() = default;
  virtual int64_t NowMicros() = 0;  // never goes back
};

}  // namespace octavo
