// Interfaces that the engine calls outwards through: who runs a step, and what time it is.
#pragma once

#include <cstddef>
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

// Runs steps beside the host, in the order of their launches: what a step loop drives
// (engine/step_loop.h). Several may have been launched before the first is waited for.
class StepDevice {
 public:
  virtual ~StepDevice() = default;
  // Whether Launch can start this step. One that it cannot is started by the loop's caller, in the
  // same order, who says so through NoteEnd.
  virtual bool Takes(const StepPlan& plan) = 0;
  virtual Status Launch(const StepPlan& plan) = 0;
  // What was started last, by whomever, is the step of this plan.
  virtual Status NoteEnd(const StepPlan& plan) = 0;
  // Waits for a step and gives its tokens, one for each sample, valid until its host slot is used
  // again. Callable while another thread launches a later step.
  virtual Result<std::span<const int32_t>> Wait(const StepPlan& plan) = 0;
};

// A device's queue as functions of C, because the extension module that knows the device and the
// one that holds the engine are linked apart and share no C++ types. Each returns 0 or an error,
// which `explain` puts into words that stay valid. `slot` names a mark, below the number of steps
// that may be open.
struct DeviceQueue {
  void* context = nullptr;
  int (*copy)(void* context, void* target, const void* source, size_t bytes) = nullptr;
  int (*launch)(void* context, void* graph) = nullptr;
  int (*mark)(void* context, int slot) = nullptr;
  int (*wait)(void* context, int slot) = nullptr;  // for the slot's last mark
  const char* (*explain)(void* context, int error) = nullptr;
};

class Clock {
 public:
  virtual ~Clock() = default;
  virtual int64_t NowMicros() = 0;  // never goes back
};

}  // namespace octavo
