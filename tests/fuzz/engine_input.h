// What the engine target reads from the fuzzer's bytes, and what it asks of a plan.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "fuzz/bytes.h"
#include "octavo/config.h"
#include "octavo/request_input.h"
#include "octavo/step.h"

namespace octavo::fuzz {

// Any configuration, valid or not; most are near a small one that is.
EngineConfig ReadConfig(Bytes* bytes);
// Whether an engine of it takes little memory, so that a run is short.
bool IsSmall(const EngineConfig& config);

// Any request, and what its input points at.
class RequestParts {
 public:
  RequestParts(Bytes* bytes, const EngineConfig& config);
  RequestInput input() const {
    return {prompt_, params_, priority_, salt_, {kept_, decode_priority_, decode_ms_}, items_};
  }

 private:
  void ReadParams(Bytes* bytes, int32_t vocab);
  void ReadLists(Bytes* bytes, int32_t vocab);
  void ReadRetention(Bytes* bytes);
  void ReadItems(Bytes* bytes);

  std::vector<int32_t> prompt_;
  SamplingParams params_;
  int32_t priority_ = 0;
  std::string salt_;
  std::vector<RetentionRange> kept_;
  int32_t decode_priority_ = kOrdinaryPriority;
  int64_t decode_ms_ = 0;
  std::vector<EncoderItem> items_;
};

// Every index of a plan lies within what it points into.
void CheckPlan(const StepPlan& plan, const EngineConfig& config,
               std::span<const BlockTableView> tables);

// Which encoder entries hold something, as an executor that believes only the plans knows.
class EncoderEntries {
 public:
  void Follow(const StepPlan& plan);

 private:
  std::set<int32_t> kept_;
};

}  // namespace octavo::fuzz
