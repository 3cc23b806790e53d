// Serve: the real engine under traffic, in virtual time. What the step would take says the cost
// model; everything else (queues, blocks, hits, preemptions) is what the engine does.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "octavo/config.h"
#include "octavo/stats.h"
#include "octavo/status.h"
#include "sim/serve/cost.h"

namespace octavo::sim {

struct ServeRequest {
  // When it arrives; with `after`, how long after the other has ended.
  double arrival = 0;   // seconds
  int32_t after = -1;   // an earlier request of the list; -1: none
  bool grows = false;   // its prompt begins with all tokens of the other
  int32_t prefix = -1;  // which shared prefix its prompt begins with; -1: none
  int32_t prefix_len = 0;
  // In place of `prefix`: an earlier request of the list whose own prompt's first prefix_len tokens
  // its prompt begins with; -1: none. That one has no `prefix` and does not grow.
  int32_t like = -1;
  int32_t input_len = 0;  // tokens of its own
  int32_t output_len = 0;
};

// Times in seconds since the start; negative: never.
struct ServeRecord {
  double arrival = -1;
  double first_token = -1;
  double end = -1;
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;
  int32_t output_tokens = 0;
  int32_t refused = 0;  // 1: longer than the engine takes, or the queue was full
};

// Gaps between tokens of one request, by powers of 1.02 from a microsecond on: 1 % exact.
class GapHistogram {
 public:
  static constexpr double kBase = 1.02;
  static constexpr double kFirst = 1e-6;
  static constexpr size_t kBuckets = 1200;  // to 2e4 seconds
  void Add(double seconds);
  const std::array<uint64_t, kBuckets>& counts() const { return counts_; }

 private:
  std::array<uint64_t, kBuckets> counts_ = {};
};

struct ServeSample {
  double time = 0;
  int32_t running = 0;
  int32_t waiting = 0;
  double kv_use = 0;  // share of the blocks that requests hold
  int32_t step_tokens = 0;
  double step_seconds = 0;
};

struct ServeOptions {
  int32_t lag = 0;               // steps that the device has queued while one is planned
  double sample_interval = 0.1;  // seconds between samples
  double submit_seconds = 0;     // the engine's thread takes for each request that arrives
  double max_seconds = 1e9;      // of virtual time; what has not ended by then never does
};

struct ServeResult {
  std::vector<ServeRecord> records;  // one a request, in order
  std::vector<ServeSample> samples;
  GapHistogram gaps;
  EngineStats stats;
  double seconds = 0;  // until the last token
  double busy_seconds = 0;
  double bandwidth_use = 0;  // over the busy time
  double compute_use = 0;
  double mean_kv_use = 0;
};

// Names what is wrong with the configuration or the requests.
Result<ServeResult> Serve(const EngineConfig& config, const CostModel& cost,
                          std::span<const ServeRequest> requests, const ServeOptions& options);

}  // namespace octavo::sim
