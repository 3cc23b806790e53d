// The scheduler beside an encoder budget, which the engine does not have yet.
#include <vector>

#include "doctest/doctest.h"
#include "engine/harness.h"

namespace octavo::sched {
namespace {

using engine::Greedy;
using engine::ManualClock;
using engine::Prompt;
using engine::SmallConfig;

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
  Parts(const EngineConfig& c, encoder::EncoderBudget* encoder)
      : kv(KvConfigOf(c)), batch(c), scheduler(c, kv, batch, clock, nullptr, encoder) {}
  ManualClock clock;
  kv::KvManager kv;
  batch::StepBatch batch;
  Scheduler scheduler;
};

TEST_CASE("a chunk ends where the encoder's budget ends, and waits when there is none") {
  FakeEncoder encoder;
  Parts p(SmallConfig(), &encoder);
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
