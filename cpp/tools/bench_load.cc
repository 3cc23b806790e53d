#include "tools/bench_load.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "tools/bench.h"

namespace octavo::tools {

std::vector<int32_t> Prompt(int32_t length, int32_t which) {
  std::vector<int32_t> tokens(length);
  uint32_t state = uint32_t(which) * 2654435761u + 1;
  for (int32_t& token : tokens) {
    state = state * 1664525u + 1013904223u;
    token = int32_t((state >> 8) % kVocab);
  }
  return tokens;
}

SamplingParams Greedy(int32_t max_tokens) {
  SamplingParams p;
  p.temperature = 0;
  p.max_tokens = max_tokens;
  p.eos_token_ids = {2};
  return p;
}

EngineConfig LoadConfig(int32_t running) {
  EngineConfig c;
  c.block_size = kBlockSize;
  c.vocab_size = kVocab;
  c.max_model_len = 2048;
  c.max_num_seqs = running;
  c.max_num_batched_tokens = std::max(running, 65'536);
  return c;
}

std::unique_ptr<Engine> MakeEngine(const EngineConfig& config) {
  auto engine = Engine::Create(config);
  OCTAVO_CHECK(engine.ok(), engine.status().message().c_str());
  return std::move(*engine);
}

RequestId Add(Engine& engine, const std::vector<int32_t>& prompt, const SamplingParams& params) {
  const auto id = engine.AddRequest(prompt, params);
  OCTAVO_CHECK(id.ok(), id.status().message().c_str());
  return *id;
}

int32_t RunStep(Engine& engine, const std::vector<int32_t>& tokens, StepTimes* times) {
  const auto start = BenchClock::now();
  const StepPlan* plan = engine.BeginStep();
  const auto planned = BenchClock::now();
  OCTAVO_CHECK(plan, "nothing to plan");
  const int32_t rows = plan->num_rows;
  const auto out = engine.FinishStep(plan->step_id, {tokens.data(), size_t(plan->num_samples)});
  const auto finished = BenchClock::now();
  OCTAVO_CHECK(out.ok(), "a step did not finish");
  if (times) {
    times->begin_us.push_back(Nanoseconds(start, planned) / 1000);
    times->finish_us.push_back(Nanoseconds(planned, finished) / 1000);
  }
  return rows;
}

}  // namespace octavo::tools
