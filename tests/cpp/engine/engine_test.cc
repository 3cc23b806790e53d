#include "octavo/engine.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "engine/harness.h"

namespace octavo::engine {
namespace {

// Samples a fixed token, or fails.
class FixedExecutor final : public Executor {
 public:
  Status Execute(const StepPlan&, std::span<int32_t> tokens) override {
    if (fail) return Status::Unavailable("the device is gone");
    for (int32_t& token : tokens) token = 5;
    return Status::Ok();
  }
  bool fail = false;
};

TEST_CASE("an engine is not made from a configuration that cannot work") {
  EngineConfig c = SmallConfig();
  c.num_blocks = 0;
  const auto engine = Engine::Create(c);
  REQUIRE_FALSE(engine.ok());
  CHECK(engine.status().code() == StatusCode::kInvalidArgument);
  CHECK(engine.status().message().find("num_blocks=0") != std::string::npos);
}

TEST_CASE("what a request asked to keep outlives others under pressure, for its time") {
  EngineConfig c = SmallConfig();
  c.num_blocks = 31;
  c.max_model_len = 80;
  const RetentionRange wish[] = {{0, 20, 100, 1000}};
  const SamplingParams params = Greedy(1);
  for (const bool expired : {false, true}) {
    Harness h(c);
    const auto kept = Prompt(21, 1);
    h.Add({kept, params, 0, {}, {wish}});
    h.Drain();
    if (expired) h.clock.now_us += 2'000'000;
    // Each fills most of the pool, and hits the last one's prefix: that is proven.
    for (int i = 0; i < 3; ++i) {
      h.Add(Prompt(78, 7), params);
      h.Drain();
    }
    for (int i = 0; i < 3; ++i) {
      h.Add(Prompt(70, 10 + i), params);
      h.Drain();
    }
    const RequestId again = h.Add(kept, params);
    h.Drain();
    CHECK(h.done(again).cached_tokens == (expired ? 0 : 20));
  }
}

TEST_CASE("a wish for tokens that the prompt does not have is refused") {
  Harness h(SmallConfig());
  const RetentionRange wish[] = {{0, 22, 100, 1000}};
  const auto refused = h.engine.AddRequest(RequestInput{Prompt(21), Greedy(1), 0, {}, {wish}});
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.status().message().find("retention[0].end=22") != std::string::npos);
  CHECK_FALSE(h.engine.HasUnfinished());
}

TEST_CASE("Step turns the crank until nothing is left") {
  auto engine = Engine::Create(SmallConfig());
  REQUIRE(engine.ok());
  REQUIRE((*engine)->AddRequest(Prompt(5), Greedy(3)).ok());
  FixedExecutor executor;
  int outputs = 0;
  while ((*engine)->HasUnfinished()) {
    const auto out = (*engine)->Step(executor);
    REQUIRE(out.ok());
    outputs += int(out->size());
  }
  CHECK(outputs == 3);
  CHECK((*engine)->Step(executor)->empty());
  CHECK((*engine)->LastError().ok());
}

TEST_CASE("an executor that fails ends the step's requests and leaves its reason") {
  auto engine = Engine::Create(SmallConfig());
  REQUIRE(engine.ok());
  REQUIRE((*engine)->AddRequest(Prompt(5), Greedy(3)).ok());
  FixedExecutor executor;
  executor.fail = true;
  const auto out = (*engine)->Step(executor);
  REQUIRE(out.ok());
  REQUIRE(out->size() == 1);
  CHECK(FinishReason{(*out)[0].finish} == FinishReason::kError);
  CHECK((*engine)->LastError().message() == "the device is gone");
  CHECK_FALSE((*engine)->HasUnfinished());
}

TEST_CASE("a step is finished once, in order, with one token a sample, or nothing changes") {
  Harness h(SmallConfig());
  h.Add(Prompt(5), Greedy(8));
  const std::vector<int32_t> one{5}, two{5, 5};
  const auto refused = [&](uint64_t step, const std::vector<int32_t>& tokens) {
    const auto out = h.engine.FinishStep(step, tokens);
    h.engine.CheckInvariants();
    return out.ok() ? std::string("accepted") : out.status().message();
  };
  CHECK(refused(1, one).find("step 1 is not open") != std::string::npos);
  const uint64_t first = h.engine.BeginStep()->step_id;
  const uint64_t second = h.engine.BeginStep()->step_id;
  CHECK(h.engine.BeginStep() == nullptr);
  CHECK(refused(second, one).find("not the oldest open step") != std::string::npos);
  CHECK(refused(first, two).find("has 1 samples, but 2 tokens") != std::string::npos);
  CHECK(refused(first, one) == "accepted");
  CHECK(refused(first, one).find("not the oldest open step") != std::string::npos);
  CHECK_FALSE(h.engine.FailStep(first).ok());
  CHECK(refused(second, one) == "accepted");
}

TEST_CASE("an id that outlived its request names nobody, also when its place is taken again") {
  Harness h(SmallConfig());
  const RequestId old = h.Add(Prompt(5), Greedy(1));
  h.Drain();
  CHECK(h.engine.Abort(old).code() == StatusCode::kNotFound);
  const RequestId next = h.Add(Prompt(5), Greedy(1));
  CHECK(Value(next) != Value(old));
  CHECK(h.engine.Abort(old).code() == StatusCode::kNotFound);
  CHECK(h.engine.Abort(RequestId{0}).code() == StatusCode::kNotFound);
  CHECK(h.engine.Abort(RequestId{12345}).code() == StatusCode::kNotFound);
  CHECK(h.engine.Abort(next).ok());
}

TEST_CASE("a refused request changes nothing") {
  Harness h(SmallConfig());
  h.Add(Prompt(5), Greedy(4));
  h.Step();
  const EngineStats before = h.stats();
  SamplingParams bad = Greedy(4);
  bad.top_p = 2;
  CHECK_FALSE(h.engine.AddRequest(Prompt(5), bad, 0, "").ok());
  const std::vector<int32_t> outside{1, 50};
  const auto refused = h.engine.AddRequest(outside, Greedy(4), 0, "");
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.status().message() ==
        "prompt token 1 is 50: token ids of this model lie in [0, 50)");
  CHECK(h.stats().waiting == before.waiting);
  CHECK(h.stats().free_blocks == before.free_blocks);
  h.engine.CheckInvariants();
}

TEST_CASE("block tables hold a row's blocks in order and the null block after them") {
  Harness h(SmallConfig());
  h.Add(Prompt(9), Greedy(4));
  const StepPlan* plan = h.Begin();
  const BlockTableView& table = plan->block_tables[0];
  CHECK(table.block_size == 4);
  CHECK(table.row_stride == 50);
  const int32_t* row = table.data + plan->row_slot[0] * table.row_stride;
  for (int i = 0; i < 3; ++i) CHECK(row[i] > 0);
  for (int i = 3; i < 50; ++i) CHECK(row[i] == 0);
}

TEST_CASE("the statistics count tokens, hits and the slots that hold nothing") {
  Harness h(SmallConfig());
  h.Add(Prompt(9), Greedy(2));
  h.Step();
  EngineStats s = h.stats();
  CHECK(s.steps == 1);
  CHECK(s.scheduled_tokens == 9);
  CHECK(s.prompt_tokens == 9);
  CHECK(s.generation_tokens == 1);
  CHECK(s.prefix_queries == 9);
  CHECK(s.prefix_hits == 0);
  CHECK(s.kv_slots_allocated == 12);
  CHECK(s.kv_slots_filled == 9);
  CHECK(s.total_blocks == 100);
  CHECK(s.free_blocks == 97);
  CHECK(s.cached_blocks == 2);
  h.Drain();
  h.Add(Prompt(9), Greedy(2));
  h.Drain();
  s = h.stats();
  CHECK(s.prefix_hits == 8);
  CHECK(s.finished_length == 2);
  CHECK(s.prompt_tokens == 10);
}

TEST_CASE("a shared prefix of 2,000 tokens is computed once, also when all come at once") {
  EngineConfig c = SmallConfig();
  c.block_size = 16;
  c.num_blocks = 400;
  c.max_model_len = 2100;
  c.max_num_batched_tokens = 4096;
  Harness h(c);
  for (int32_t i = 0; i < 8; ++i) {
    std::vector<int32_t> prompt = Prompt(2000);
    prompt.push_back(i);
    h.Add(prompt, Greedy(4));
  }
  h.Drain();
  CHECK(h.stats().prompt_tokens == 2000 + 8);
}

TEST_CASE("a plan says how much of their prompts running requests share, until they end") {
  EngineConfig c = SmallConfig();
  c.block_size = 16;
  c.num_blocks = 400;
  c.max_model_len = 400;
  c.max_num_batched_tokens = 4096;
  Harness h(c);
  // As of one prompt that is sampled from six times; all but the first hit 18 blocks of it.
  std::vector<RequestId> ids;
  for (int32_t i = 0; i < 6; ++i) ids.push_back(h.Add(Prompt(300), Greedy(20)));
  const auto shared = [&h] {
    const StepPlan* plan = h.Begin();
    REQUIRE(plan);
    const int64_t tokens = plan->num_shared_tokens;
    h.Finish();
    return tokens;
  };
  for (int step = 0; step < 3; ++step) CHECK(shared() == 5 * 288);
  h.Abort(ids[0]);  // who computed the prompt
  CHECK(shared() == 5 * 288);
  h.Abort(ids[3]);
  CHECK(shared() == 4 * 288);
  h.Abort(ids[1]);
  CHECK(shared() == 0);  // three are not worth it
  for (int32_t i = 0; i < 2; ++i) h.Add(Prompt(300), Greedy(20));
  CHECK(shared() == 5 * 288);
  h.Add(Prompt(300, 1), Greedy(20));  // another prompt
  CHECK(shared() == 5 * 288);
  h.Begin();
  h.Fail();
  h.Add(Prompt(300), Greedy(1));
  CHECK(shared() == 0);
}

TEST_CASE("less than 4 percent of the slots of allocated blocks hold nothing") {
  // Prompts and outputs of a chat: log-normal lengths with medians of about 100 and 150 tokens.
  EngineConfig c = SmallConfig();
  c.block_size = 16;
  c.num_blocks = 4000;
  c.max_model_len = 2048;
  c.max_num_seqs = 64;
  c.max_num_batched_tokens = 2048;
  Harness h(c);
  std::mt19937 random(5);
  std::lognormal_distribution<double> prompt_length(4.6, 1.1), output_length(5.0, 0.9);
  for (int32_t i = 0; i < 200; ++i) {
    const int32_t length = std::clamp(int32_t(prompt_length(random)), 4, 1000);
    std::vector<int32_t> prompt(length);
    for (int32_t& token : prompt) token = int32_t(random() % 50);
    h.Add(prompt, Greedy(std::clamp(int32_t(output_length(random)), 1, 1000)));
  }
  int64_t allocated = 0;
  int64_t filled = 0;
  const std::vector<int32_t> tokens(64, 5);
  while (const StepPlan* plan = h.engine.BeginStep()) {
    allocated += h.stats().kv_slots_allocated;
    filled += h.stats().kv_slots_filled;
    const std::span<const int32_t> sampled(tokens.data(), size_t(plan->num_samples));
    REQUIRE(h.engine.FinishStep(plan->step_id, sampled).ok());
  }
  CHECK(double(allocated - filled) < 0.04 * double(allocated));
}

// Everything a caller can see of a run.
std::vector<std::vector<int32_t>> Record(uint32_t seed) {
  EngineConfig c = SmallConfig();
  c.num_blocks = 24;
  c.max_model_len = 60;
  c.policy = SchedulingPolicy::kPriority;
  Harness h(c);
  std::vector<std::vector<int32_t>> all;
  for (int32_t turn = 0; turn < 60 || h.engine.HasUnfinished() || h.open_steps() > 0; ++turn) {
    if (turn < 60 && turn % 2 == 0) {
      h.Add(Prompt(5 + turn % 30, turn % 3), Greedy(20), turn % 3);
    }
    h.clock.now_us += seed;
    const StepPlan* plan = h.Begin();
    if (plan) {
      std::vector<int32_t> step = h.TokenIds(plan);
      for (int32_t r = 0; r < plan->num_rows; ++r) {
        const int32_t* row =
            plan->block_tables[0].data + plan->row_slot[r] * plan->block_tables[0].row_stride;
        step.push_back(plan->row_slot[r]);
        step.insert(step.end(), row, row + (plan->seq_len[r] + 3) / 4);
      }
      all.push_back(step);
    }
    if (h.open_steps() > (plan ? 1 : 0)) {
      std::vector<int32_t> tokens;
      for (const StepOutput& o : h.Finish()) tokens.push_back(o.token);
      all.push_back(tokens);
    }
  }
  CHECK(h.stats().preemptions > 0);
  return all;
}

TEST_CASE("the same calls at the same times give the same plans, bit for bit") {
  CHECK(Record(7) == Record(7));
}

TEST_CASE("events tell what entered and left the cache, and a drain forgets nothing") {
  EngineConfig c = SmallConfig();
  c.enable_kv_events = true;
  c.num_blocks = 12;
  c.max_model_len = 40;
  Harness h(c);
  int64_t cached = 0;
  for (int32_t i = 0; i < 10; ++i) {
    h.Add(Prompt(9 + i, i), Greedy(4));
    h.Drain();
    std::vector<KvEvent> events;
    h.engine.TakeEvents(&events);
    for (const KvEvent& e : events) cached += e.kind == KvEventKind::kStored ? 1 : -1;
    CHECK(cached == h.stats().cached_blocks);
  }
  CHECK(h.stats().evictions > 0);
  CHECK(h.stats().dropped_events == 0);
}

TEST_CASE("events carry a request's salt and its items, each block those that lie in it") {
  EngineConfig c = SmallConfig();
  c.enable_kv_events = true;
  c.encoder_cache_size = 16;
  Harness h(c);
  const int32_t size = c.block_size;
  const EncoderItem item{{5, 6}, size - 1, 2, 2, false};
  const std::vector<int32_t> prompt = Prompt(3 * size, 1);
  const SamplingParams params = Greedy(1);
  h.Add(RequestInput{prompt, params, 0, "tenant", {}, {&item, 1}});
  h.Drain();
  std::vector<KvEvent> events;
  h.engine.TakeEvents(&events);
  REQUIRE(events.size() == 3);
  REQUIRE(events[0].extra);
  CHECK(events[0].extra->salt == "tenant");
  CHECK(events[0].extra->items.at(0).hash[0] == 5);
  CHECK(events[0].extra->items.at(0).start == size - 1);
  REQUIRE(events[1].extra);
  CHECK(events[1].extra->salt.empty());
  CHECK(events[1].extra->items.at(0).start == -1);
  CHECK_FALSE(events[2].extra);
}

TEST_CASE("a host tier that comes too late, or twice, is refused and nothing is lost") {
  std::vector<std::byte> pool(64 * 64);
  Harness h(SmallConfig());
  const RequestId id = h.Add(Prompt(5), Greedy(4));
  while (h.engine.HasUnfinished()) {
    REQUIRE(h.Begin());
    h.Finish();
  }
  const Status late = h.engine.AddHostTier(pool.data(), 64, 640);
  CHECK(late.code() == StatusCode::kFailedPrecondition);
  CHECK(late.message().find("before the first request") != std::string::npos);
  CHECK(h.engine.host_tier() == nullptr);
  CHECK(h.done(id).tokens.size() == 4);

  Harness other(SmallConfig());
  REQUIRE(other.engine.AddHostTier(pool.data(), 64, 640).ok());
  const Status twice = other.engine.AddHostTier(pool.data(), 64, 640);
  CHECK(twice.code() == StatusCode::kFailedPrecondition);
  CHECK(twice.message().find("another engine") != std::string::npos);
}

}  // namespace
}  // namespace octavo::engine
