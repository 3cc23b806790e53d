// The scheduler beside a connector and an encoder budget, which the engine does not have yet.
#include <map>
#include <vector>

#include "doctest/doctest.h"
#include "engine/harness.h"

namespace octavo::sched {
namespace {

using engine::Greedy;
using engine::ManualClock;
using engine::Prompt;
using engine::SmallConfig;

// Holds the first `tokens` tokens of every prompt.
class FakeConnector final : public transfer::KvConnector {
 public:
  int32_t MatchedTokens(RequestId, std::span<const int32_t> all, int32_t local_hit) override {
    return std::max(0, std::min(tokens, int32_t(all.size()) / 4 * 4) - local_hit);
  }
  void OnAdmitted(RequestId, std::span<const int32_t> blocks, int32_t external_tokens) override {
    admitted_blocks = int32_t(blocks.size());
    loaded = external_tokens;
  }
  void OnFinished(RequestId, std::span<const int32_t> blocks) override {
    finished_blocks = int32_t(blocks.size());
  }
  int32_t tokens = 0;
  int32_t loaded = -1;
  int32_t admitted_blocks = -1;
  int32_t finished_blocks = -1;
};

// Encodes at most `room` tokens past where a chunk starts.
class FakeEncoder final : public encoder::EncoderBudget {
 public:
  int32_t Clip(RequestId, int32_t, int32_t count) override { return std::min(count, room); }
  int32_t room = 0;
};

kv::KvConfig KvConfigOf(const EngineConfig& c) {
  kv::KvConfig config;
  config.num_blocks = c.num_blocks;
  config.block_size = c.block_size;
  config.num_slots = c.max_num_seqs;
  config.max_tokens_per_slot = c.max_model_len;
  return config;
}

struct Parts {
  explicit Parts(const EngineConfig& c, transfer::KvConnector* connector,
                 encoder::EncoderBudget* encoder = nullptr)
      : kv(KvConfigOf(c)), batch(c), scheduler(c, kv, batch, clock, connector, encoder) {}
  ManualClock clock;
  kv::KvManager kv;
  batch::StepBatch batch;
  Scheduler scheduler;
};

TEST_CASE("tokens that a connector loads are not computed") {
  FakeConnector connector;
  connector.tokens = 8;
  Parts p(SmallConfig(), &connector);
  REQUIRE(p.scheduler.Add({Prompt(11), Greedy(1)}).ok());
  const StepPlan* plan = p.scheduler.Begin();
  REQUIRE(plan);
  p.scheduler.CheckInvariants();
  CHECK(plan->position[0] == 8);
  CHECK(plan->num_tokens == 3);
  CHECK(connector.loaded == 8);
  CHECK(connector.admitted_blocks == 3);
  const std::vector<int32_t> tokens{5};
  const auto out = p.scheduler.Finish(plan->step_id, tokens);
  REQUIRE(out.ok());
  CHECK((*out)[0].cached_tokens == 8);
  CHECK(connector.finished_blocks == 3);
}

TEST_CASE("a local hit comes before what a connector could load") {
  FakeConnector connector;
  Parts p(SmallConfig(), &connector);
  const std::vector<int32_t> tokens{5};
  REQUIRE(p.scheduler.Add({Prompt(9), Greedy(1)}).ok());
  REQUIRE(p.scheduler.Finish(p.scheduler.Begin()->step_id, tokens).ok());
  connector.tokens = 12;
  REQUIRE(p.scheduler.Add({Prompt(20), Greedy(1)}).ok());
  const StepPlan* plan = p.scheduler.Begin();
  CHECK(connector.loaded == 4);
  CHECK(plan->position[0] == 12);
}

TEST_CASE("a chunk ends where the encoder's budget ends, and waits when there is none") {
  FakeEncoder encoder;
  Parts p(SmallConfig(), nullptr, &encoder);
  REQUIRE(p.scheduler.Add({Prompt(10), Greedy(2)}).ok());
  CHECK(p.scheduler.Begin() == nullptr);
  encoder.room = 6;
  const StepPlan* plan = p.scheduler.Begin();
  REQUIRE(plan);
  CHECK(plan->num_tokens == 6);
  CHECK(plan->num_samples == 0);
  REQUIRE(p.scheduler.Finish(plan->step_id, {}).ok());
  plan = p.scheduler.Begin();
  CHECK(plan->num_tokens == 4);
  CHECK(plan->num_samples == 1);
}

}  // namespace
}  // namespace octavo::sched
