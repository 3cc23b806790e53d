// Harness: an engine with a clock under control, a model behind it, and its invariants checked
// after every operation. Tests of the scheduler drive it step by step, or let it run.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <string_view>
#include <vector>

#include "engine/core_engine.h"
#include "sim/hash_model.h"

namespace octavo::engine {

class ManualClock final : public Clock {
 public:
  int64_t NowMicros() override { return now_us; }
  int64_t now_us = 1'000'000;
};

// A small engine: blocks of 4 tokens, a vocabulary of 50, and room for everything.
inline EngineConfig SmallConfig() {
  EngineConfig c;
  c.num_blocks = 101;
  c.block_size = 4;
  c.vocab_size = 50;
  c.max_model_len = 200;
  c.max_num_seqs = 8;
  c.max_num_batched_tokens = 64;
  c.hash_seed = 1;
  return c;
}

// Greedy, `max_tokens` long.
inline SamplingParams Greedy(int32_t max_tokens) {
  SamplingParams p;
  p.temperature = 0;
  p.max_tokens = max_tokens;
  return p;
}

// A prompt of `length` tokens; different seeds share no prefix.
inline std::vector<int32_t> Prompt(int32_t length, int32_t seed = 0, int32_t vocab_size = 50) {
  std::vector<int32_t> tokens(length);
  for (int32_t i = 0; i < length; ++i) tokens[i] = (seed * 7 + i * (seed + 3) + i / 5) % vocab_size;
  return tokens;
}

struct Row {
  RequestId request;
  int32_t first = 0;  // position
  int32_t count = 0;
  int32_t sampled = 0;  // samples
  bool operator==(const Row&) const = default;
};

struct Done {
  std::vector<int32_t> tokens;
  FinishReason reason = FinishReason::kNone;
  int32_t stop_token = -1;
  int32_t cached_tokens = -1;
};

class Harness {
 public:
  explicit Harness(const EngineConfig& config, KvConnector* connector = nullptr)
      : engine(config, clock, SystemMemory(), connector), model(config, engine.arena()) {}

  // REQUIRES: the request is acceptable.
  RequestId Add(std::span<const int32_t> prompt, const SamplingParams& params, int32_t priority = 0,
                std::string_view salt = {}) {
    return Add(RequestInput{prompt, params, priority, salt});
  }
  RequestId Add(const RequestInput& input);
  // Plans a step and leaves it open. Null as BeginStep.
  const StepPlan* Begin();
  // Executes the oldest open step that has not run yet.
  void Execute();
  // Executes (if not done) and finishes the oldest open step, with the model's tokens.
  std::vector<StepOutput> Finish();
  // Finishes the oldest open step with these tokens, whatever a model would say.
  std::vector<StepOutput> FinishWith(std::vector<int32_t> tokens);
  std::vector<StepOutput> Fail();
  // Begin, Finish. False: nothing to do.
  bool Step();
  // Steps until nothing is left.
  void Drain();
  void Abort(RequestId id);
  // REQUIRES: the drafts are acceptable.
  void SetDrafts(RequestId id, const std::vector<int32_t>& drafts);

  std::vector<Row> Rows(const StepPlan* plan) const;
  std::vector<int32_t> TokenIds(const StepPlan* plan) const {
    return {plan->token_id, plan->token_id + plan->num_tokens};
  }
  int32_t open_steps() const { return int32_t(open_.size()); }
  const Done& done(RequestId id) { return done_[Value(id)]; }
  bool finished(RequestId id) { return done(id).reason != FinishReason::kNone; }
  EngineStats stats() const { return engine.Stats(); }

  ManualClock clock;
  CoreEngine engine;
  sim::HashModel model;

 private:
  struct Open {
    StepPlan plan;
    std::vector<int32_t> tokens;
    bool executed = false;
  };
  void Run(Open& open);
  std::vector<StepOutput> Take(const Result<std::span<const StepOutput>>& result);

  std::deque<Open> open_;
  std::map<uint64_t, Done> done_;
  std::map<uint64_t, std::vector<EncoderItem>> items_;
};

}  // namespace octavo::engine
