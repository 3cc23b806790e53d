// What the files of octavo._core share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <mutex>
#include <span>
#include <utility>

#include "engine/core_engine.h"
#include "octavo/status.h"

namespace octavo::bindings {

// Raises the Python exception for an error. REQUIRES: !status.ok().
[[noreturn]] void Throw(const Status& status);

// The engine for the length of a call: a loop may be stepping it on a thread of its own. Nobody
// waits for the other's call while holding the GIL, which a call may need to end.
class Turn {
 public:
  explicit Turn(const engine::CoreEngine& engine) : lock_(engine.gate(), std::try_to_lock) {
    if (lock_.owns_lock()) return;
    pybind11::gil_scoped_release release;
    lock_.lock();
  }

 private:
  std::unique_lock<std::mutex> lock_;
};

// A function of an engine that takes its turn.
template <typename R, typename E, typename... Args>
auto InTurn(R (*function)(E&, Args...)) {
  return [function](E& engine, Args... args) -> R {
    const Turn turn(engine);
    return function(engine, std::forward<Args>(args)...);
  };
}

// Outputs as an array of their own.
pybind11::array ArrayOf(std::span<const StepOutput> outputs);

// Configuration and sampling parameters.
void BindOptions(pybind11::module_& m);
// Block pool, prefix hasher and KV manager, for driving them without a scheduler.
void BindKv(pybind11::module_& m);
// The engine's tier in host memory.
void BindHostTier(pybind11::class_<engine::CoreEngine>& engine);
// The loop that steps an engine on a thread of its own, and what it launches.
void BindLoop(pybind11::module_& m);
// Serving in virtual time: octavo.simulate.
void BindSim(pybind11::module_& m);

}  // namespace octavo::bindings
