// Hits inside a block through the whole engine, with a model that reads what was copied.
#include <vector>

#include "doctest/doctest.h"
#include "engine/harness.h"

namespace octavo::engine {
namespace {

EngineConfig Config(bool sub_block_hits) {
  EngineConfig c = SmallConfig();
  c.block_size = 16;
  c.sub_block_hits = sub_block_hits;
  return c;
}

TEST_CASE("a prompt sent again computes one token of it, and says the same") {
  for (int32_t length : {16, 17, 40, 47, 64}) {
    CAPTURE(length);
    std::vector<int32_t> said[2];
    for (const bool on : {false, true}) {
      Harness h(Config(on));
      h.Add(Prompt(length, 1), Greedy(1));
      h.Drain();
      const auto before = h.stats().prompt_tokens;
      const RequestId again = h.Add(Prompt(length, 1), Greedy(8));
      h.Drain();
      said[on] = h.done(again).tokens;
      const int32_t cached = on ? length - 1 : (length - 1) / 16 * 16;
      CHECK(h.done(again).cached_tokens == cached);
      CHECK(int32_t(h.stats().prompt_tokens - before) == length - cached);
    }
    CHECK(said[0] == said[1]);
  }
}

TEST_CASE("what a request that failed was copied from is copied no more") {
  EngineConfig c = Config(true);
  c.max_num_batched_tokens = 16;
  Harness h(c);
  // Its first block is filed, with whatever is wrong in it, and no sample has looked at it.
  const RequestId first = h.Add(Prompt(40, 1), Greedy(1));
  h.Step();
  h.Abort(first);
  std::vector<int32_t> prompt = Prompt(12, 1);
  prompt.back() ^= 1;
  const RequestId second = h.Add(prompt, Greedy(2));
  h.Begin();
  h.FinishWith({-1});
  CHECK(h.done(second).cached_tokens == 11);
  const RequestId third = h.Add(prompt, Greedy(2));
  h.Drain();
  CHECK(h.done(third).cached_tokens == 0);
}

TEST_CASE("a conversation goes on where its last answer ended, inside a block") {
  Harness h(Config(true));
  const RequestId first = h.Add(Prompt(21, 1), Greedy(9));
  h.Drain();
  std::vector<int32_t> prompt = Prompt(21, 1);
  const auto& said = h.done(first).tokens;
  prompt.insert(prompt.end(), said.begin(), said.end());
  const auto more = Prompt(10, 5);
  prompt.insert(prompt.end(), more.begin(), more.end());
  const RequestId second = h.Add(prompt, Greedy(4));
  h.Drain();
  CHECK(h.done(second).cached_tokens == 29);  // the last token of an answer was never computed
  CHECK(h.stats().copied_tokens == 13);
}

TEST_CASE("a request that fills the pool alone does without the copy") {
  EngineConfig c = Config(true);
  c.num_blocks = 4;
  c.max_model_len = 48;
  Harness h(c);
  h.Add(Prompt(40, 1), Greedy(1));
  h.Drain();
  const RequestId again = h.Add(Prompt(40, 1), Greedy(8));
  h.Drain();
  CHECK(h.done(again).cached_tokens == 32);
  CHECK(h.done(again).reason == FinishReason::kLength);
}

TEST_CASE("a failed step leaves no copy behind that was never made") {
  Harness h(Config(true));
  h.Add(Prompt(40, 1), Greedy(1));
  h.Drain();
  h.Add(Prompt(40, 1), Greedy(8));
  const StepPlan* plan = h.Begin();
  REQUIRE(plan);
  REQUIRE(plan->num_copies == 1);
  CHECK(plan->copy_tokens[0] == 7);
  h.Fail();
  CHECK(h.stats().free_blocks == h.stats().total_blocks);
  const RequestId again = h.Add(Prompt(40, 1), Greedy(8));
  h.Drain();
  CHECK(h.done(again).cached_tokens == 39);
}

}  // namespace
}  // namespace octavo::engine
