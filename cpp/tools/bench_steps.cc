// The step path: what planning and finishing cost while a full batch decodes, and at admission.
#include <algorithm>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/strcat.h"
#include "octavo/engine.h"
#include "tools/allocation_counter.h"
#include "tools/bench.h"
#include "tools/bench_load.h"

namespace octavo::tools {
namespace {

constexpr int32_t kMeasuredSteps = 256;

// The budgets, in microseconds at 1,024 running; 4,096 may take four times that.
constexpr double kScheduleBudget = 50;
constexpr double kFinishBudget = 10;

// Plans and finishes steps with a token that ends nobody.
void RunSteps(Engine& engine, int32_t steps, int32_t rows, StepTimes* times) {
  const std::vector<int32_t> tokens(rows, 5);
  for (int32_t i = 0; i < steps; ++i) {
    const int32_t planned = RunStep(engine, tokens, times);
    OCTAVO_CHECK(!times || planned == rows, "not everybody decodes");
  }
}

StepTimes DecodeRound(int32_t running) {
  EngineConfig c = LoadConfig(running);
  // The first requests decode while the last ones prefill.
  const int32_t prefill_steps = running * (kContext + kBlockSize) / c.max_num_batched_tokens + 2;
  const int32_t longest = kContext + kBlockSize + prefill_steps + kWarmSteps + kMeasuredSteps;
  c.num_blocks = running * (longest / kBlockSize + 1) + 1;
  const auto engine = MakeEngine(c);
  // Lengths differ, so that each step one request in kBlockSize crosses into a new block.
  for (int32_t i = 0; i < running; ++i) {
    Add(*engine, Prompt(kContext + i % kBlockSize, i), Greedy(2048));
  }
  while (engine->Stats().waiting > 0) RunSteps(*engine, 1, running, nullptr);
  RunSteps(*engine, kWarmSteps, running, nullptr);
  StepTimes times;
  times.begin_us.reserve(kMeasuredSteps);
  times.finish_us.reserve(kMeasuredSteps);
  RunSteps(*engine, kMeasuredSteps, running, &times);
  return times;
}

}  // namespace

Measures BenchDecode(const Effort& effort) {
  Measures measures;
  for (int32_t running : {256, 1024, 4096}) {
    const double scale = running > 1024 ? 4 : 1;
    const std::string suffix = StrCat("_", running);
    for (int round = 0; round < effort.rounds; ++round) {
      StepTimes t = DecodeRound(running);
      KeepBest(
          &measures,
          {{"schedule_p50" + suffix, Percentile(&t.begin_us, 0.5), "us", kScheduleBudget * scale},
           {"schedule_p99" + suffix, Percentile(&t.begin_us, 0.99), "us"},
           {"finish_p50" + suffix, Percentile(&t.finish_us, 0.5), "us", kFinishBudget * scale},
           {"finish_p99" + suffix, Percentile(&t.finish_us, 0.99), "us"}});
    }
  }
  return measures;
}

Measures BenchAdmission(const Effort& effort) {
  constexpr int32_t kPrompts = 1024;
  constexpr int32_t kLength = 512;
  EngineConfig c;
  c.block_size = kBlockSize;
  c.vocab_size = kVocab;
  c.max_model_len = 2048;
  c.max_num_seqs = kPrompts;
  c.max_num_batched_tokens = kPrompts * kLength;
  c.num_blocks = kPrompts * (kLength / kBlockSize + 1) + 1;
  Measures measures;
  for (int round = 0; round < effort.rounds; ++round) {
    const auto engine = MakeEngine(c);
    std::vector<std::vector<int32_t>> prompts;
    for (int32_t i = 0; i < kPrompts; ++i) prompts.push_back(Prompt(kLength, i));
    const SamplingParams params = Greedy(16);
    const auto start = BenchClock::now();
    for (const auto& prompt : prompts) Add(*engine, prompt, params);
    const auto added = BenchClock::now();
    const StepPlan* plan = engine->BeginStep();
    const auto planned = BenchClock::now();
    OCTAVO_CHECK(plan && plan->num_rows == kPrompts, "not everybody was admitted");
    KeepBest(&measures,
             {{"submit_512_tokens", Nanoseconds(start, added) / 1000 / kPrompts, "us/request"},
              {"admit_512_tokens", Nanoseconds(added, planned) / 1000 / kPrompts, "us/request"}});
  }
  return measures;
}

Measures BenchAllocations(const Effort&) {
  // A pool for two thirds of what runs: hits, evictions and preemptions all the time.
  EngineConfig c;
  c.block_size = kBlockSize;
  c.vocab_size = kVocab;
  c.max_model_len = 512;
  c.max_num_seqs = 64;
  c.max_num_batched_tokens = 512;
  c.num_blocks = 64 * 12 + 1;
  const auto engine = MakeEngine(c);
  SamplingParams params = Greedy(150);
  params.temperature = 0.8f;
  params.presence_penalty = 0.5f;
  params.logit_bias = {{7, 1.0f}};
  params.bad_words = {{1, 2}};
  for (int32_t i = 0; i < 128; ++i) Add(*engine, Prompt(100 + i % 40, i % 16), params);
  const std::vector<int32_t> tokens(c.max_num_seqs, 5);
  int64_t allocations = 0;
  int64_t steps = 0;
  while (engine->HasUnfinished()) {
    const int64_t before = HeapAllocations();
    const StepPlan* plan = engine->BeginStep();
    OCTAVO_CHECK(plan, "the engine stands still");
    const auto out = engine->FinishStep(plan->step_id, {tokens.data(), size_t(plan->num_samples)});
    OCTAVO_CHECK(out.ok(), "a step did not finish");
    // The first steps are the warm-up.
    if (++steps > 2) allocations += HeapAllocations() - before;
  }
  const EngineStats s = engine->Stats();
  OCTAVO_CHECK(s.preemptions > 0 && s.prefix_hits > 0, "the load does not reach the hard parts");
  return {{"step_allocations", double(allocations), "count", 0}};
}

}  // namespace octavo::tools
