// The step path takes nothing from the heap once the engine is warm.
#include <algorithm>
#include <vector>

#include "base/check.h"
#include "doctest/doctest.h"
#include "engine/counting_new.h"
#include "engine/harness.h"

namespace octavo::engine {
namespace {

struct Load {
  int32_t num_blocks = 101;
  int lag = 0;
  bool edits = false;
  VictimPolicy victim = VictimPolicy::kCost;
  int32_t drafts = 0;
  bool copies = false;
  std::vector<GroupSpec> groups = {};
};

EngineConfig ConfigOf(const Load& load) {
  EngineConfig c = SmallConfig();
  c.num_blocks = load.num_blocks;
  c.max_model_len = 64;
  c.victim = load.victim;
  c.max_steps_in_flight = load.lag + 1;
  c.max_draft_tokens = load.drafts;
  c.sub_block_hits = load.copies;
  c.groups = load.groups;
  c.policy = SchedulingPolicy::kPriority;
  return c;
}

// Prompts that share prefixes, some with everything that a sample can ask for.
void SubmitAll(CoreEngine& engine, const Load& load) {
  for (int32_t i = 0; i < 24; ++i) {
    SamplingParams p = Greedy(30);
    if (load.edits) {
      p.temperature = 1;
      p.presence_penalty = 0.5f;
      p.bad_words = {{1, 2}, {3}};
      p.logit_bias = {{4, 1.0f}};
      p.allowed_token_ids = {5, 6, 7};
      p.min_tokens = 2;
      p.stop_token_ids = {8};
    }
    if (i % 3 == 0) p.num_prompt_logprobs = 1;
    if (i % 5 == 0) p.eos_token_ids = {9};
    const EncoderItem item{{uint64_t(i) % 5, 1}, 0, 0, 7 + i % 5, false, /*cross=*/true};
    const std::vector<int32_t> prompt = Prompt(10 + i, i % 4);
    RequestInput input{prompt, p, i % 3};
    if (engine.kv().has_cross()) input.encoder_items = {&item, 1};
    REQUIRE(engine.AddRequest(input).ok());
  }
}

// Three drafts, some of them right, for every request that goes on.
void GuessAll(CoreEngine& engine, std::span<const StepOutput> outputs, int32_t turn) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    const bool last = i + 1 == outputs.size() || outputs[i + 1].request != outputs[i].request;
    if (!last || outputs[i].finish != 0) continue;
    const int32_t first = turn + 1 + int32_t(i);
    const int32_t guess[] = {first % 50, (first + 1) % 50, turn % 50};
    OCTAVO_CHECK(engine.SetDrafts(RequestId{outputs[i].request}, guess).ok(), "drafts are refused");
  }
}

// Counts inside BeginStep, FinishStep and SetDrafts only: submitting may allocate, a step may not.
int64_t AllocationsOf(CoreEngine& engine, const Load& load) {
  SubmitAll(engine, load);
  StepPlan open[kMaxStepsInFlight];
  int num_open = 0;
  std::vector<int32_t> tokens(64);
  const CountAllocations allocations;
  for (int32_t turn = 0; engine.HasUnfinished() || num_open > 0; ++turn) {
    const StepPlan* plan = engine.BeginStep();
    if (plan) open[num_open++] = *plan;
    while (num_open > (plan ? load.lag : 0)) {
      for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = (turn + int32_t(i)) % 50;
      if (turn % 13 == 0) tokens[0] = -1;
      const auto outputs =
          engine.FinishStep(open[0].step_id, {tokens.data(), size_t(open[0].num_samples)});
      if (!outputs.ok()) return -1;
      if (load.drafts > 0) GuessAll(engine, *outputs, turn);
      std::copy(open + 1, open + num_open, open);
      --num_open;
    }
  }
  return allocations.count();
}

TEST_CASE("the counter sees an allocation") {
  const CountAllocations allocations;
  const std::vector<int> some(10);
  CHECK(allocations.count() == 1);
}

TEST_CASE("a step allocates nothing: prefix hits, block boundaries, ends, failed rows") {
  const Load load;
  ManualClock clock;
  CoreEngine engine(ConfigOf(load), clock, SystemMemory());
  for (int round = 0; round < 3; ++round) CHECK(AllocationsOf(engine, load) == 0);
  CHECK(engine.Stats().prefix_hits > 0);
  CHECK(engine.Stats().evictions > 0);
}

TEST_CASE("a step allocates nothing while requests are preempted") {
  for (VictimPolicy victim : {VictimPolicy::kCost, VictimPolicy::kLast}) {
    const Load load{.num_blocks = 20, .victim = victim};
    ManualClock clock;
    CoreEngine engine(ConfigOf(load), clock, SystemMemory());
    CHECK(AllocationsOf(engine, load) == 0);
    CHECK(engine.Stats().preemptions > 5);
  }
}

TEST_CASE("a step allocates nothing with two steps open") {
  const Load load{.num_blocks = 20, .lag = 1};
  ManualClock clock;
  CoreEngine engine(ConfigOf(load), clock, SystemMemory());
  CHECK(AllocationsOf(engine, load) == 0);
  CHECK(engine.Stats().preemptions > 0);
}

TEST_CASE("a step allocates nothing with three steps open") {
  const Load load{.num_blocks = 30, .lag = 2};
  ManualClock clock;
  CoreEngine engine(ConfigOf(load), clock, SystemMemory());
  CHECK(AllocationsOf(engine, load) == 0);
  CHECK(engine.Stats().preemptions > 0);
}

TEST_CASE("a step allocates nothing for rows with drafts") {
  for (int lag : {0, 1}) {
    const Load load{.num_blocks = 30, .lag = lag, .edits = lag == 0, .drafts = 3};
    ManualClock clock;
    CoreEngine engine(ConfigOf(load), clock, SystemMemory());
    CHECK(AllocationsOf(engine, load) == 0);
    CHECK(engine.Stats().draft_tokens > 20);
    CHECK(engine.Stats().accepted_tokens > 5);
  }
}

TEST_CASE("a step allocates nothing with six groups, also while requests are preempted") {
  const GroupSpec sliding{.kind = GroupKind::kSlidingWindow, .block_size = 4, .window = 9};
  const std::vector<GroupSpec> groups = {
      {.block_size = 4, .split = 2},
      {.block_size = 8},
      sliding,
      {.kind = GroupKind::kSlidingWindow, .block_size = 4, .window = 20, .sink = 3, .split = 3},
      {.kind = GroupKind::kChunkedLocal, .block_size = 4, .window = 16},
      {.kind = GroupKind::kState, .block_size = 8, .split = 2}};
  for (const int32_t num_blocks : {70, 400}) {
    const Load load{.num_blocks = num_blocks, .lag = 1, .groups = groups};
    ManualClock clock;
    CoreEngine engine(ConfigOf(load), clock, SystemMemory());
    for (int round = 0; round < 2; ++round) CHECK(AllocationsOf(engine, load) == 0);
    CHECK(engine.Stats().prefix_hits > 0);
    CHECK((engine.Stats().preemptions > 0) == (num_blocks == 70));
  }
}

TEST_CASE("a step allocates nothing while items are encoded, hit and evicted") {
  const GroupSpec cross{.kind = GroupKind::kCross, .block_size = 4, .split = 2, .encoder_len = 12};
  const Load load{.num_blocks = 30, .lag = 1, .groups = {{.block_size = 4}, cross}};
  ManualClock clock;
  CoreEngine engine(ConfigOf(load), clock, SystemMemory());
  for (int round = 0; round < 2; ++round) CHECK(AllocationsOf(engine, load) == 0);
  CHECK(engine.Stats().encoder_hits > 0);
  CHECK(engine.Stats().encoder_hits < engine.Stats().encoder_queries);
  CHECK(engine.Stats().preemptions > 0);
}

TEST_CASE("a step allocates nothing while blocks are copied") {
  const Load load{.num_blocks = 30, .lag = 1, .copies = true};
  ManualClock clock;
  CoreEngine engine(ConfigOf(load), clock, SystemMemory());
  for (int round = 0; round < 2; ++round) CHECK(AllocationsOf(engine, load) == 0);
  CHECK(engine.Stats().copied_tokens > 0);
  CHECK(engine.Stats().preemptions > 0);
}

TEST_CASE("a step allocates nothing for penalties, bias, bans and masks") {
  const Load load{.num_blocks = 30, .lag = 1, .edits = true};
  ManualClock clock;
  CoreEngine engine(ConfigOf(load), clock, SystemMemory());
  CHECK(AllocationsOf(engine, load) == 0);
}

}  // namespace
}  // namespace octavo::engine
