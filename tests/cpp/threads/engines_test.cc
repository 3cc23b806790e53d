// One thread owns an engine: engines of several threads share nothing, and an engine may be handed
// from one thread to another.
#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "doctest/doctest.h"
#include "octavo/engine.h"

namespace octavo {
namespace {

EngineConfig Config() {
  EngineConfig c;
  c.num_blocks = 30;
  c.block_size = 4;
  c.vocab_size = 50;
  c.max_model_len = 60;
  c.max_num_seqs = 6;
  c.max_num_batched_tokens = 32;
  c.enable_kv_events = true;
  c.hash_seed = 5;
  return c;
}

// The next token is the sum of what is seen, as far as a plan shows it.
class SumExecutor final : public Executor {
 public:
  Status Execute(const StepPlan& plan, std::span<int32_t> tokens) override {
    for (size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = (plan.token_id[plan.sample_token[i]] * 3 + 1) % 50;
    }
    return Status::Ok();
  }
};

void Submit(Engine& engine, int32_t count) {
  SamplingParams params;
  params.temperature = 0;
  params.max_tokens = 12;
  for (int32_t i = 0; i < count; ++i) {
    std::vector<int32_t> prompt(size_t(5 + i % 20), i % 3);
    if (!engine.AddRequest(prompt, params).ok()) FAIL("a request was refused");
  }
}

// All outputs, one number.
uint64_t Drain(Engine& engine, int steps) {
  SumExecutor executor;
  uint64_t digest = 0;
  std::vector<KvEvent> events;
  for (int i = 0; i < steps && engine.HasUnfinished(); ++i) {
    const auto outputs = engine.Step(executor);
    if (!outputs.ok()) FAIL("a step was refused");
    for (const StepOutput& o : *outputs) digest = digest * 31 + uint64_t(o.token) + o.request;
    engine.TakeEvents(&events);
    digest += events.size();
  }
  return digest;
}

TEST_CASE("engines of several threads know nothing of each other") {
  constexpr int kThreads = 4;
  uint64_t digests[kThreads] = {};
  std::vector<std::thread> threads;
  for (uint64_t& digest : digests) {
    threads.emplace_back([&digest] {
      for (int round = 0; round < 5; ++round) {
        auto engine = Engine::Create(Config());
        if (!engine.ok()) FAIL("an engine was refused");
        Submit(**engine, 20);
        digest = Drain(**engine, 10'000);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  CHECK(digests[0] != 0);
  for (uint64_t digest : digests) CHECK(digest == digests[0]);
}

TEST_CASE("an engine may be handed from thread to thread") {
  auto alone = Engine::Create(Config());
  auto handed = Engine::Create(Config());
  REQUIRE((alone.ok() && handed.ok()));
  Submit(**alone, 20);
  uint64_t a = 0, b = 0;
  std::thread([&] { Submit(**handed, 20); }).join();
  while ((*alone)->HasUnfinished()) {
    a += Drain(**alone, 7);
    std::thread([&] { b += Drain(**handed, 7); }).join();
  }
  CHECK(a == b);
  CHECK_FALSE((*handed)->HasUnfinished());
}

}  // namespace
}  // namespace octavo
