// From a seed to a scenario: the configuration, the requests and the operations.
#pragma once

#include <cstdint>

#include "octavo/config.h"
#include "sim/fuzz/op.h"
#include "sim/oracle.h"

namespace octavo::sim {

// A small engine, at times with barely the memory for its longest request. Valid for every seed.
EngineConfig MakeConfig(uint64_t seed);

// Whether the engine has a connector beside it.
bool UsesConnector(uint64_t config_seed, const EngineConfig& config);

// Or a tier in host memory, of so many bytes (0: none), whose copies may be late, and fail.
struct TierChoice {
  int64_t parent_bytes = 0;
  int64_t bytes = 0;
  bool slow = false;
  uint64_t failures = 0;  // their seed; 0: none
};
TierChoice ChooseTier(uint64_t config_seed, const EngineConfig& config);

// How often a run checks all invariants: after one operation in so many.
int32_t CheckInterval(uint64_t config_seed);

// Whether all that requests ask to be kept is for a time only.
bool EndsRetention(const EngineConfig& config);

// The most embeddings an image may have, and one of a few images; its content decides all but its
// place.
int32_t MostEmbeddings(const EngineConfig& config);
EncoderItem MakeItem(const EngineConfig& config, int32_t content, int32_t start);

// Cross groups for one engine in four, the most embeddings of an item there, 0 without, and the
// item of a request, one of a few (cross.cc).
void DrawCross(uint64_t seed, EngineConfig* config);
int32_t MostCross(const EngineConfig& config);
EncoderItem MakeCrossItem(const EngineConfig& config, uint64_t seed);

// A request that such an engine accepts. Requests come in families that share prefixes.
RequestSpec MakeRequest(const EngineConfig& config, uint64_t seed);

// `length` operations. Each scenario draws a subset of the fault kinds and how often they strike,
// because what hides in their combination hides from their sum.
Scenario MakeScenario(uint64_t seed, int32_t length = 600);

}  // namespace octavo::sim
