// The requests and engines that several suites of octavo-bench measure with.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "octavo/engine.h"

namespace octavo::tools {

inline constexpr int32_t kVocab = 32'000;
inline constexpr int32_t kBlockSize = 16;
inline constexpr int32_t kContext = 1000;
inline constexpr int32_t kWarmSteps = 32;

// A prompt that shares nothing with another's.
std::vector<int32_t> Prompt(int32_t length, int32_t which);
SamplingParams Greedy(int32_t max_tokens);
// For `running` requests of up to 2,048 tokens; the number of blocks is left open.
EngineConfig LoadConfig(int32_t running);
std::unique_ptr<Engine> MakeEngine(const EngineConfig& config);
RequestId Add(Engine& engine, const std::vector<int32_t>& prompt, const SamplingParams& params);

struct StepTimes {
  std::vector<double> begin_us;
  std::vector<double> finish_us;
};
// Plans and finishes a step with these tokens; null `times`: unmeasured. How many rows it had.
int32_t RunStep(Engine& engine, const std::vector<int32_t>& tokens, StepTimes* times);

}  // namespace octavo::tools
