// Engines of several cache groups: what is found again, and that nobody waits for ever.
#include <random>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "engine/harness.h"
#include "kv/cache_group.h"

namespace octavo::engine {
namespace {

EngineConfig Config(std::vector<GroupSpec> groups, int32_t num_blocks = 101) {
  EngineConfig c = SmallConfig();
  c.groups = std::move(groups);
  c.num_blocks = num_blocks;
  c.max_model_len = 64;
  return c;
}

const GroupSpec kFull{.block_size = 4};
const GroupSpec kState{.kind = GroupKind::kState, .block_size = 4};

// Steps with `lag` open steps while the next one is planned, until nothing is left.
void Drain(Harness& h, int lag) {
  for (int turn = 0; h.engine.HasUnfinished() || h.open_steps() > 0; ++turn) {
    REQUIRE_MESSAGE(turn < 1000, "the engine goes round in circles");
    const bool planned = h.Begin();
    while (h.open_steps() > (planned ? lag : 0)) h.Finish();
  }
}

int32_t CachedTokens(Harness& h, std::vector<int32_t> prompt, int lag) {
  const RequestId id = h.Add(prompt, Greedy(2));
  Drain(h, lag);
  return h.done(id).cached_tokens;
}

TEST_CASE("a prompt sent again resumes from its last state, also with a step in flight") {
  for (int lag : {0, 1}) {
    CAPTURE(lag);
    Harness h(Config({kFull, kState}));
    CHECK(CachedTokens(h, Prompt(22), lag) == 0);
    CHECK(CachedTokens(h, Prompt(22), lag) == 20);
  }
}

TEST_CASE("a conversation resumes from the state at its latest boundary") {
  for (int interval : {0, 4}) {
    for (int lag : {0, 1}) {
      CAPTURE(interval);
      CAPTURE(lag);
      EngineConfig c = Config({kFull, kState});
      c.snapshot_interval = interval;
      Harness h(c);
      const RequestId id = h.Add(Prompt(6), Greedy(20));
      Drain(h, lag);
      std::vector<int32_t> prompt = Prompt(6);
      const auto& said = h.done(id).tokens;
      prompt.insert(prompt.end(), said.begin(), said.end());
      prompt.push_back(1);
      const std::vector<int32_t> start(prompt.begin(), prompt.begin() + 18);
      // 25 of the 26 tokens were processed.
      CHECK(CachedTokens(h, prompt, lag) == 24);
      // Of the boundaries on the way there only those of the interval were kept.
      CHECK(CachedTokens(h, start, lag) == (interval == 4 ? 16 : 4));
    }
  }
}

TEST_CASE("a state is no hit while the step that writes it has not run") {
  Harness h(Config({kFull, kState}));
  h.Add(Prompt(5), Greedy(4));
  REQUIRE(h.Begin());
  const RequestId again = h.Add(Prompt(5), Greedy(4));
  REQUIRE(h.Begin());
  h.Finish();
  h.Finish();
  Drain(h, 0);
  CHECK(h.done(again).cached_tokens == 0);
}

TEST_CASE("a prefix that a second prompt shares is resumed from by the third") {
  for (int lag : {0, 1}) {
    CAPTURE(lag);
    Harness h(Config({kState, kFull}));
    const auto prompt = [](int32_t seed) {
      std::vector<int32_t> tokens = Prompt(18);
      const std::vector<int32_t> own = Prompt(20, seed);
      tokens.insert(tokens.end(), own.begin(), own.end());
      return tokens;
    };
    CHECK(CachedTokens(h, prompt(1), lag) == 0);
    CHECK(CachedTokens(h, prompt(2), lag) ==
          0);  // but leaves a state where it parts from the first
    CHECK(CachedTokens(h, prompt(3), lag) == 16);
    CHECK(CachedTokens(h, prompt(4), lag) == 16);
  }
}

TEST_CASE("without chunks or without a cache a prompt with states is computed in one step") {
  for (const bool chunks : {false, true}) {
    EngineConfig c = Config({kFull, kState});
    c.enable_chunked_prefill = chunks;
    c.enable_prefix_caching = !chunks;
    Harness h(c);
    h.Add(Prompt(22), Greedy(2));
    const StepPlan* plan = h.Begin();
    REQUIRE(plan);
    CHECK(plan->num_tokens == 22);
    h.Finish();
    Drain(h, 0);
  }
}

TEST_CASE("between two steps a running request holds one state") {
  EngineConfig c = Config({kFull, kState});
  c.max_num_batched_tokens = 7;
  Harness h(c);
  h.Add(Prompt(22), Greedy(20));
  for (int32_t computed = 0; const StepPlan* plan = h.Begin();) {
    computed += plan->num_tokens;
    h.Finish();
    if (!h.engine.HasUnfinished()) break;
    const EngineStats stats = h.stats();
    CHECK(stats.total_blocks - stats.free_blocks == (computed + 3) / 4 + 1);
  }
}

TEST_CASE("a waiting request whose hit lies scattered over too many parents starts afresh") {
  // Parents of three full blocks. The prefix lies in many parents, one block in each.
  for (uint32_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    EngineConfig c = Config({{.block_size = 1, .split = 1 + int32_t(seed % 5)},
                             {.kind = GroupKind::kSlidingWindow, .block_size = 1, .window = 8}});
    c.max_num_batched_tokens = 3;
    c.max_num_seqs = 3;
    c.snapshot_interval = -1;
    c.num_blocks = 1 + int32_t(kv::ParentsFor(c.groups, 4, c.max_model_len - 1, {.tokens = 6}));
    Harness h(c);
    for (int i = 0; i < 60; ++i) {
      h.Add(Prompt(40 + int32_t(random() % 23), int32_t(random() % 3)), Greedy(20));
    }
    for (int turn = 0; h.engine.HasUnfinished(); ++turn) {
      REQUIRE_MESSAGE(turn < 20000, "the engine goes round in circles");
      if (h.Begin()) h.Finish();
    }
  }
}

TEST_CASE("a request alone is never preempted for ever by what it left behind") {
  // What stays cached behind the window shares parents with the sink, and the pool has room for one
  // request only if it is given up first.
  std::mt19937 random(1);
  for (int run = 0; run < 300; ++run) {
    CAPTURE(run);
    EngineConfig c = Config({{.block_size = 1},
                             {.kind = GroupKind::kSlidingWindow,
                              .block_size = 1,
                              .window = 1 + int32_t(random() % 12),
                              .sink = int32_t(random() % 4),
                              .split = 2 + int32_t(random() % 10)}});
    c.max_num_batched_tokens = 1;
    c.snapshot_interval = int32_t(random() % 10) - 1;
    c.num_blocks = 1 + int32_t(kv::ParentsFor(c.groups, 4, c.max_model_len - 1, {.tokens = 2}));
    Harness h(c);
    const RequestId id = h.Add(Prompt(2 + int32_t(random() % 30)), Greedy(64));
    Drain(h, 0);
    CHECK(h.done(id).reason == FinishReason::kLength);
    CHECK(h.stats().preemptions <= 1);
  }
}

TEST_CASE("what windows left behind goes back before anybody takes a block") {
  EngineConfig c = Config({{.kind = GroupKind::kSlidingWindow, .block_size = 4, .window = 4}}, 5);
  c.max_model_len = 16;
  Harness h(c);
  h.Add(Prompt(4), Greedy(8));
  h.Add(Prompt(12, 1), Greedy(4));
  REQUIRE(h.Begin());
  h.Finish();
  REQUIRE(h.stats().free_blocks == 0);
  // The first takes a block that only the second, which comes after it, can let go of.
  const StepPlan* const plan = h.Begin();
  REQUIRE(plan);
  CHECK(plan->num_rows == 2);
  CHECK(h.stats().preemptions == 0);
  h.Finish();
}

}  // namespace
}  // namespace octavo::engine
