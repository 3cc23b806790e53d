// The step path where it does more than plain decoding: six cache groups, drafts, KV events, shared
// prompts, preemption, images.
#include <algorithm>
#include <ctime>
#include <string>
#include <vector>

#include "base/check.h"
#include "tools/bench.h"
#include "tools/bench_load.h"

namespace octavo::tools {
namespace {

constexpr int32_t kRunning = 1024;
constexpr int32_t kDrafts = 4;
constexpr double kSixGroupsBudget = 100;  // microseconds
constexpr double kFinishBudget = 10;

double ProcessMicros() { return 1e6 * double(std::clock()) / CLOCKS_PER_SEC; }

struct Times : StepTimes {
  double cpu_us = 0;  // of the process, a step
};

// Runs the engine until `steps` steps were measured after `warm` others. `before` may prepare one.
template <typename Before>
Times Run(Engine& engine, int32_t warm, int32_t steps, Before before) {
  Times times;
  std::vector<int32_t> tokens(size_t{kRunning} * (kDrafts + 1), 5);
  std::vector<KvEvent> events;
  double busy = 0;
  for (int32_t i = 0; i < warm + steps; ++i) {
    before();
    const double cpu = ProcessMicros();
    RunStep(engine, tokens, i < warm ? nullptr : &times);
    if (i >= warm) busy += ProcessMicros() - cpu;
    if (engine.config().enable_kv_events) engine.TakeEvents(&events);
  }
  times.cpu_us = busy / steps;
  return times;
}

EngineConfig DecodeConfig() {
  EngineConfig c = LoadConfig(kRunning);
  c.num_blocks = kRunning * 90 + 1;
  return c;
}

Times Decode(EngineConfig c) {
  const auto engine = MakeEngine(c);
  std::vector<RequestId> ids;
  for (int32_t i = 0; i < kRunning; ++i) {
    ids.push_back(Add(*engine, Prompt(kContext + i % kBlockSize, i), Greedy(2048)));
  }
  const auto nothing = [] {};
  while (engine->Stats().waiting > 0) Run(*engine, 1, 0, nothing);
  if (c.max_draft_tokens == 0) return Run(*engine, kWarmSteps, 128, nothing);
  // All of them right: each row yields kDrafts + 1 tokens.
  const std::vector<int32_t> drafts(kDrafts, 5);
  return Run(*engine, 4, 24, [&] {
    for (RequestId id : ids) {
      const Status s = engine->SetDrafts(id, drafts);
      OCTAVO_CHECK(s.ok(), s.message().c_str());
    }
  });
}

// Requests of eight prompts that come in turns, for an executor that wants them together, or that
// does not care. `ending`: in each step one of them ends.
Times SharedPrompts(int32_t running, bool together, bool ending = false) {
  constexpr int32_t kPrompts = 8;
  EngineConfig c = DecodeConfig();
  c.sharing_min_tokens = together ? 1 : 0;
  const auto engine = MakeEngine(c);
  for (int32_t i = 0; i < running; ++i) {
    std::vector<int32_t> prompt = Prompt(kContext, i % kPrompts);
    prompt.resize(prompt.size() + 1 + i % kBlockSize, i);
    Add(*engine, prompt, Greedy(ending ? kWarmSteps + i : 1000));
  }
  const auto nothing = [] {};
  while (engine->Stats().waiting > 0) Run(*engine, 1, 0, nothing);
  return Run(*engine, kWarmSteps, 128, nothing);
}

// Half of what runs fits: somebody steps back, is found again and resumes all the time.
Times Preempted() {
  EngineConfig c = LoadConfig(kRunning);
  c.num_blocks = kRunning * 40 + 1;
  const auto engine = MakeEngine(c);
  for (int32_t i = 0; i < kRunning; ++i) Add(*engine, Prompt(600 + i % 64, i), Greedy(1400));
  Times times = Run(*engine, 64, 128, [] {});
  OCTAVO_CHECK(engine->Stats().preemptions > 0, "the load preempts nobody");
  return times;
}

// A queue of long prompts that are cached for the most part, but find no room.
Times Crowded() {
  EngineConfig c = DecodeConfig();
  c.max_model_len = 16'384;
  c.max_num_seqs = 2 * kRunning;
  c.num_blocks = kRunning * 78;
  c.watermark = 0.15;
  const auto engine = MakeEngine(c);
  for (int32_t i = 0; i < kRunning - 1; ++i) Add(*engine, Prompt(kContext, i), Greedy(600));
  std::vector<int32_t> shared = Prompt(12'000, kRunning);
  Add(*engine, shared, Greedy(4000));
  const auto nothing = [] {};
  while (engine->Stats().waiting > 0) Run(*engine, 1, 0, nothing);
  shared.resize(15'000);
  for (int32_t i = 0; i < 64; ++i) {
    shared[12'000] = i;
    Add(*engine, shared, Greedy(600));
  }
  const Times times = Run(*engine, kWarmSteps, 128, nothing);
  OCTAVO_CHECK(engine->Stats().waiting > 32, "the queue finds room");
  return times;
}

// Prompts of 512 tokens, half of them an image out of 64; a step takes 16 prompts.
Times Images() {
  constexpr int32_t kLength = 512;
  EngineConfig c = LoadConfig(kRunning);
  c.max_num_batched_tokens = 16 * kLength;
  c.encoder_cache_size = 64 * 256;
  c.num_blocks = kRunning * (kLength / kBlockSize + 4) + 1;
  c.enable_prefix_caching = false;
  const auto engine = MakeEngine(c);
  const SamplingParams params = Greedy(64);
  for (int32_t i = 0; i < kRunning; ++i) {
    const std::vector<int32_t> prompt = Prompt(kLength, i);
    const EncoderItem item{{uint64_t(i % 64), 1}, 100, 256, 256, true};
    const auto id = engine->AddRequest(RequestInput{prompt, params, 0, {}, {}, {&item, 1}});
    OCTAVO_CHECK(id.ok(), id.status().message().c_str());
  }
  return Run(*engine, 4, 40, [] {});
}

EngineConfig SixGroups() {
  EngineConfig c = DecodeConfig();
  c.groups = {GroupSpec{}};
  for (int32_t i = 1; i < 6; ++i) {
    c.groups.push_back({.kind = GroupKind::kSlidingWindow, .window = 128 * i});
  }
  c.num_blocks = kRunning * 6 * 90 + 1;
  return c;
}

void Report(Measures* all, const std::string& name, Times t, double schedule = kNoBudget,
            double finish = kNoBudget) {
  // The budget of six groups is an aim: it is met on a quiet machine only.
  KeepBest(all, {{"schedule_p50_" + name, Percentile(&t.begin_us, 0.5), "us", schedule, false},
                 {"schedule_p99_" + name, Percentile(&t.begin_us, 0.99), "us"},
                 {"finish_p50_" + name, Percentile(&t.finish_us, 0.5), "us", finish},
                 {"finish_p99_" + name, Percentile(&t.finish_us, 0.99), "us"},
                 {"cpu_" + name, t.cpu_us, "us/step"}});
}

}  // namespace

Measures BenchMixes(const Effort& effort) {
  Measures all;
  for (int round = 0; round < std::max(1, effort.rounds / 2); ++round) {
    Report(&all, "6_groups", Decode(SixGroups()), kSixGroupsBudget, kFinishBudget);
    EngineConfig drafts = DecodeConfig();
    drafts.max_draft_tokens = kDrafts;
    Report(&all, "4_drafts", Decode(drafts));
    EngineConfig events = DecodeConfig();
    events.enable_kv_events = true;
    Report(&all, "events", Decode(events));
    for (const int32_t running : {256, kRunning}) {
      const std::string name = "8_prompts_" + std::to_string(running);
      Report(&all, name, SharedPrompts(running, /*together=*/true));
      Report(&all, name + "_apart", SharedPrompts(running, /*together=*/false));
    }
    Report(&all, "8_prompts_ending", SharedPrompts(kRunning, /*together=*/true, /*ending=*/true));
    Report(&all, "preemption", Preempted());
    Report(&all, "queue", Crowded());
    Report(&all, "images", Images());
  }
  return all;
}

}  // namespace octavo::tools
