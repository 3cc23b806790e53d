// Engine: the control plane of Octavo without a model. Requests in, step plans out, tokens back in.
//
// One thread owns an engine; no call locks. BeginStep and FinishStep allocate nothing once every
// vector has reached its size (a test counts allocations). Up to kMaxStepsInFlight steps may be
// open; they finish in the order they began.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/config.h"
#include "octavo/executor.h"
#include "octavo/ids.h"
#include "octavo/sampling_params.h"
#include "octavo/status.h"
#include "octavo/step.h"

namespace octavo {

struct EngineStats {
  uint64_t steps = 0;
  uint64_t failed_steps = 0;
  uint64_t scheduled_tokens = 0;
  uint64_t prompt_tokens = 0;  // prompt tokens computed, recomputation after preemption included
  uint64_t generation_tokens = 0;
  uint64_t prefix_queries = 0;  // tokens looked up at admission
  uint64_t prefix_hits = 0;     // tokens of them found
  uint64_t preemptions = 0;
  uint64_t evictions = 0;  // cached blocks given to other content
  uint64_t finished_stop = 0;
  uint64_t finished_length = 0;
  uint64_t finished_abort = 0;
  uint64_t finished_error = 0;
  uint64_t dropped_events = 0;
  int64_t running = 0;
  int64_t waiting = 0;
  int64_t total_blocks = 0;        // without the null block
  int64_t free_blocks = 0;         // cached ones included
  int64_t cached_blocks = 0;       // blocks that carry a prefix hash
  int64_t kv_slots_allocated = 0;  // slots of the blocks in running requests' tables
  int64_t kv_slots_filled = 0;     // of these, slots that hold a token
};

enum class KvEventKind : uint8_t { kStored, kRemoved, kCleared };

// What happened to the prefix cache, for routers. kStored and kRemoved name content: the first and
// the last copy of it.
struct KvEvent {
  KvEventKind kind;
  int32_t group;
  BlockId block;
  uint64_t hash[2];
  uint64_t parent[2];
  std::vector<int32_t> tokens;  // of a stored block
};

class Engine {
 public:
  // `clock` may be null (the system's steady clock) and must outlive the engine.
  static Result<std::unique_ptr<Engine>> Create(const EngineConfig& config, Clock* clock = nullptr);
  virtual ~Engine() = default;

  // Queues a request. Refuses, with the numbers, what can never run; a refusal changes nothing.
  virtual Result<RequestId> AddRequest(std::span<const int32_t> prompt,
                                       const SamplingParams& params, int32_t priority = 0,
                                       std::string_view cache_salt = {}) = 0;

  // Plans the next step. Null: nothing can be scheduled now (no work, or all of it is in flight).
  virtual const StepPlan* BeginStep() = 0;

  // Takes the tokens of the oldest open step, one for each sample, -1 for a failed row. The outputs
  // are valid until the next call of FinishStep or FailStep. Refuses a wrong step or count without
  // a change.
  virtual Result<std::span<const StepOutput>> FinishStep(uint64_t step_id,
                                                         std::span<const int32_t> tokens) = 0;

  // The step could not run: ends every request of it and of all later open steps with kError.
  virtual Result<std::span<const StepOutput>> FailStep(uint64_t step_id) = 0;

  // BeginStep, `executor`, FinishStep (or FailStep). Empty: nothing to do.
  virtual Result<std::span<const StepOutput>> Step(Executor& executor) = 0;
  // Why the executor last failed a step; ok when it never has.
  virtual Status LastError() const = 0;

  // Ends a request at any moment; no further output names it. kNotFound when it has ended already.
  virtual Status Abort(RequestId request) = 0;
  // The same for a front end that saw a stop string: counted as a normal end.
  virtual Status Stop(RequestId request) = 0;

  virtual bool HasUnfinished() const = 0;
  virtual EngineStats Stats() const = 0;
  // Forgets all cached prefixes. False, and no change, while a request holds blocks.
  virtual bool ResetPrefixCache() = 0;
  // Moves the events since the last call to `events` (bounded; see EngineStats::dropped_events).
  virtual void TakeEvents(std::vector<KvEvent>* events) = 0;

  virtual const EngineConfig& config() const = 0;
  virtual std::span<const BlockTableView> block_tables() const = 0;
};

}  // namespace octavo
