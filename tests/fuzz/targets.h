// The fuzz targets: each takes any bytes and returns, or aborts where Octavo does what it must not.
//
// libFuzzer calls them through entry.cc; octavo_tests feeds them tests/fuzz/corpus/<name>. The
// bytes are a program that a target reads (bytes.h), so that a mutation of them is another program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace octavo::fuzz {

using Input = std::span<const uint8_t>;

// One op of octavo/ops.h and its neighbours over tensors of any shape, dtype, stride and content,
// as the bindings pass them: what validation lets through stays inside its memory.
void Ops(Input input);
// An engine of any configuration under any requests, drafts, answers and calls.
void Engine(Input input);
// A life of the simulator (sim/fuzz/life.h), whose oracle knows every token.
void Life(Input input);
// The text of a life, as `octavo-sim replay` reads it.
void Trace(Input input);

}  // namespace octavo::fuzz
