// Runs lives in processes of their own: a failed check aborts, and whoever searches for failures
// must outlive it. A crash, a sanitizer's report and a life without end are found the same way.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "octavo/config.h"
#include "sim/fuzz/op.h"

namespace octavo::sim {

struct Verdict {
  bool ok = true;
  // What failed: "cpp/kv/kv_manager.cc:12: check failed: ...". Two failures with one text are one.
  std::string failure;
  size_t ops_done = 0;  // operations begun before it failed
};

// Of computing. No life takes one, but under sanitizers.
inline constexpr uint32_t kMostSeconds = 30;

// One scenario, with a drain at its end; given up after `most_seconds`.
Verdict RunIsolated(const Scenario& scenario, uint32_t most_seconds = kMostSeconds);

struct CampaignResult {
  uint64_t lives = 0;
  uint64_t steps = 0;
  uint64_t next_seed = 0;  // where a later campaign goes on
  double seconds = 0;      // of the slowest job
  double cpu_seconds = 0;  // of all jobs
  OpCounts counts = {};
  bool ok = true;
  uint64_t failed_seed = 0;
};

struct Campaign {
  uint64_t first_seed = 1;
  uint64_t steps = 1'000'000;  // over all jobs
  int32_t jobs = 1;
  int32_t length = 600;  // operations of a scenario
  // Which seeds are lived, by their configuration; null: all.
  std::function<bool(uint64_t seed, const EngineConfig&)> accepts = nullptr;
  // Told how far all jobs are, about every `report_seconds` and not at the end; null: nobody.
  std::function<void(const CampaignResult&)> report = nullptr;
  double report_seconds = 5;
};

// Job j of n lives the seeds first + j, first + j + n, ... until its share of the steps is done, or
// until one job fails. The seeds do not depend on timing.
CampaignResult RunCampaign(const Campaign& campaign);

}  // namespace octavo::sim
