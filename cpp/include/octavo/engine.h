// Engine: the control plane of Octavo without a model. Requests in, step plans out, tokens back in.
//
// One thread owns an engine; no call locks. BeginStep and FinishStep allocate nothing once every
// vector has reached its size (a test counts allocations). Up to max_steps_in_flight steps may be
// open; they finish in the order they began. Nothing throws: a call that finds no memory gives
// kResourceExhausted and has changed nothing, or goes without (an event, a transfer).
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
#include "octavo/kv_connector.h"
#include "octavo/kv_event.h"
#include "octavo/request_input.h"
#include "octavo/sampling_params.h"
#include "octavo/stats.h"
#include "octavo/status.h"
#include "octavo/step.h"

namespace octavo {

// What an engine calls outwards through. Everything named must outlive it.
struct EngineParts {
  Clock* clock = nullptr;            // null: the system's steady clock
  KvConnector* connector = nullptr;  // null: KV lives in the pool only
};

class Engine {
 public:
  // kResourceExhausted without memory for it, with what it was for and the field to lower.
  static Result<std::unique_ptr<Engine>> Create(const EngineConfig& config,
                                                const EngineParts& parts = {});
  virtual ~Engine() = default;

  // Queues a request. Refuses, with the numbers, what can never run; a refusal changes nothing.
  virtual Result<RequestId> AddRequest(const RequestInput& input) = 0;
  Result<RequestId> AddRequest(std::span<const int32_t> prompt, const SamplingParams& params,
                               int32_t priority = 0, std::string_view cache_salt = {}) {
    return AddRequest(RequestInput{prompt, params, priority, cache_salt});
  }

  // Plans the next step. Null: nothing can be scheduled now (no work, or all of it is in flight).
  // Requests may end meanwhile (see TakeEnded).
  virtual const StepPlan* BeginStep() = 0;

  // Proposes tokens to follow what is known of a request, replacing what was proposed before. Its
  // next row carries them (fewer when tokens, blocks or length are short), samples one token at
  // each, and keeps those that the model itself would have sampled: outputs do not depend on
  // drafts, only the number of steps does. Tokens that are in flight now use up the drafts that
  // they equal and void the others. Without effect on a request that is not decoding.
  virtual Status SetDrafts(RequestId request, std::span<const int32_t> drafts) = 0;

  // Takes the tokens of the oldest open step, one for each sample, -1 for a failed row. A row with
  // drafts yields an output for each token that it keeps, in order. The outputs are valid until the
  // next call of FinishStep or FailStep. Refuses a wrong step or count without a change.
  virtual Result<std::span<const StepOutput>> FinishStep(uint64_t step_id,
                                                         std::span<const int32_t> tokens) = 0;

  // The step could not run: ends every request of it and of all later open steps with kError.
  virtual Result<std::span<const StepOutput>> FailStep(uint64_t step_id) = 0;

  // Outputs of requests that ended outside a step, each once: a load of their KV failed. FinishStep
  // and FailStep return them too; this is for when BeginStep has planned nothing. Valid as theirs.
  // Only for who gave a connector (EngineParts) and drives the steps himself: nothing else ends so.
  virtual std::span<const StepOutput> TakeEnded() = 0;

  // BeginStep, `executor`, FinishStep (or FailStep), or TakeEnded. Empty: nothing to do.
  virtual Result<std::span<const StepOutput>> Step(Executor& executor) = 0;
  // Why the executor last failed a step; ok when it never has.
  virtual Status LastError() const = 0;

  // Ends a request at any moment; no further output names it. kNotFound when it has ended already.
  virtual Status Abort(RequestId request) = 0;
  // The same for a front end that saw a stop string: counted as a normal end.
  virtual Status Stop(RequestId request) = 0;

  // From now on; requests may still be added and ended, and open steps be finished. A pause ends
  // nothing and loses nothing: BeginStep returns null when what is left is held back.
  virtual void SetPause(PauseMode mode) = 0;
  virtual PauseMode pause() const = 0;

  // Whether any request has not ended, paused or not: a loop that steps until this is false looks
  // at pause() when BeginStep returns null and no step is open.
  virtual bool HasUnfinished() const = 0;
  virtual EngineStats Stats() const = 0;
  // Forgets all cached prefixes. False, and no change, while a request holds blocks.
  virtual bool ResetPrefixCache() = 0;
  // Forgets the embeddings of images and audio that no request uses.
  virtual void ResetEncoderCache() = 0;
  // Moves the events since the last call to `events` (bounded; see EngineStats::dropped_events).
  virtual void TakeEvents(std::vector<KvEvent>* events) = 0;
  // The whole prefix cache as the events that would store it, for a reader who missed some. Empty
  // where it fails.
  virtual Status CachedContent(std::vector<KvEvent>* events) const = 0;

  virtual const EngineConfig& config() const = 0;
  virtual std::span<const BlockTableView> block_tables() const = 0;
};

}  // namespace octavo
