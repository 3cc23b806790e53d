// What the files of octavo._core share.
#pragma once

#include <pybind11/pybind11.h>

#include "engine/core_engine.h"
#include "octavo/status.h"

namespace octavo::bindings {

// Raises the Python exception for an error. REQUIRES: !status.ok().
[[noreturn]] void Throw(const Status& status);

// Configuration and sampling parameters.
void BindOptions(pybind11::module_& m);
// Block pool, prefix hasher and KV manager, for driving them without a scheduler.
void BindKv(pybind11::module_& m);
// The engine's tier in host memory.
void BindHostTier(pybind11::class_<engine::CoreEngine>& engine);
// Serving in virtual time: octavo.simulate.
void BindSim(pybind11::module_& m);

}  // namespace octavo::bindings
