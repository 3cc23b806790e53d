// Under sustained overload everybody's wait is bounded by the work that comes before it.
//
// Why there is a bound: of all that have not ended, the first in order advances in each turn once
// it runs, and is never thrown out. While it waits, at most max_overtakes others are let past; the
// others that run advance too, or a prompt among them has the step for itself, or they are thrown
// out and stay out. So whoever has n before it in order is over after the turns that those n and
// itself take one after another, each after a drain. Who is before it: under fcfs whoever came
// earlier; under priority also those that come later within its aging.
#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "engine/harness.h"

namespace octavo::engine {
namespace {

int32_t Below(std::mt19937& random, int32_t n) { return int32_t(random() % uint32_t(n)); }

constexpr int kTurns = 8000;
constexpr int64_t kTurnMicros = 1000;

struct Overload {
  SchedulingPolicy policy = SchedulingPolicy::kFcfs;
  int lag = 0;
  int32_t drafts = 0;
  uint32_t seed = 1;
  // What the engine really does; the bound is that of the policies in ConfigOf.
  int32_t max_overtakes = 2;
  int64_t aging_ms = 10;
};

EngineConfig ConfigOf(const Overload& load) {
  EngineConfig c = SmallConfig();
  c.num_blocks = 17;  // one request of full length, or a few short ones
  c.max_model_len = 64;
  c.max_num_seqs = 4;
  c.max_num_batched_tokens = 16;
  c.max_queued_requests = 16;
  c.policy = load.policy;
  c.max_overtakes = load.max_overtakes;
  c.priority_aging_ms = load.aging_ms;
  c.max_steps_in_flight = load.lag + 1;
  c.max_draft_tokens = load.drafts;
  c.prompt_lookup_min = c.prompt_lookup_max = load.drafts > 0;
  c.enable_prefix_caching = false;
  return c;
}

struct Ticket {
  int64_t key = 0;   // its place in the order, then the order of arrival
  int64_t fill = 0;  // turns that it takes alone: for what it holds at most, if it must come back,
  int64_t decode = 0;  // and one for each token
  int begin = 0;
  int end = -1;
};

class Crowd {
 public:
  explicit Crowd(const Overload& load) : load_(load), config_(ConfigOf(load)), h_(config_) {}

  // Arrivals at every turn, refused when the queue is full; then whatever was accepted ends.
  void Run() {
    std::mt19937 random(load_.seed);
    for (; turn_ < kTurns; ++turn_) {
      Arrive(random);
      Turn();
    }
    while (h_.engine.HasUnfinished()) {
      Turn();
      REQUIRE_MESSAGE(++turn_ < 2 * kTurns, "what was accepted does not end");
    }
  }

  // Requests that took longer than what is before them in order explains.
  int Late() const {
    int late = 0;
    const int64_t drain = Drain();
    for (const auto& [id, t] : tickets_) late += t.end - t.begin > Bound(t, drain);
    return late;
  }
  int accepted() const { return int(tickets_.size()); }
  int refused() const { return refused_; }
  EngineStats stats() const { return h_.stats(); }

 private:
  void Arrive(std::mt19937& random) {
    // Short requests, but for one in two hundred that needs all of the pool, and as many that do
    // not matter.
    const int32_t draw = Below(random, 200);
    const int32_t prompt = draw == 0 ? 60 : 4 + Below(random, 8);
    const SamplingParams params = Greedy(draw == 0 ? 4 : 3 + Below(random, 7));
    const int32_t priority = draw == 1 ? 2 : 0;
    const auto id = h_.engine.AddRequest(Prompt(prompt, turn_ % 7), params, priority);
    if (!id.ok()) {
      REQUIRE(id.status().code() == StatusCode::kResourceExhausted);
      ++refused_;
      return;
    }
    Ticket& t = tickets_[Value(*id)];
    const bool aged = load_.policy == SchedulingPolicy::kPriority;
    t.key = aged ? h_.clock.now_us + priority * ConfigOf({}).priority_aging_ms * 1000 : 0;
    t.key = (t.key << 20) + int64_t(tickets_.size());
    t.begin = turn_;
    t.fill = (prompt + params.max_tokens) / config_.max_num_batched_tokens + 1;
    t.decode = params.max_tokens;
  }

  void Turn() {
    const int keep = h_.Begin() ? load_.lag : 0;
    while (h_.open_steps() > keep) {
      for (const StepOutput& o : h_.Finish()) {
        if (o.finish != 0) tickets_.at(o.request).end = turn_;
      }
    }
    h_.clock.now_us += kTurnMicros;
  }

  // Turns until nobody runs who comes after the head: prompts may have a step for themselves, and
  // who is let past may be let past as the one before it ends.
  int64_t Drain() const {
    Ticket most;
    for (const auto& [id, t] : tickets_) {
      most.fill = std::max(most.fill, t.fill);
      most.decode = std::max(most.decode, t.decode);
    }
    const int32_t passes = ConfigOf({}).max_overtakes;
    return (config_.max_num_seqs + passes) * most.fill + (1 + passes) * most.decode;
  }

  int64_t Bound(const Ticket& mine, int64_t drain) const {
    int64_t turns = 0;
    for (const auto& [id, t] : tickets_) {
      if (t.key <= mine.key && t.end >= mine.begin) turns += t.fill + t.decode + drain;
    }
    return turns * (load_.lag + 1);
  }

  Overload load_;
  EngineConfig config_;
  Harness h_;
  std::map<uint64_t, Ticket> tickets_;
  int turn_ = 0;
  int refused_ = 0;
};

void CheckBounded(const Overload& load) {
  CAPTURE(load.seed);
  CAPTURE(load.lag);
  CAPTURE(int(load.policy));
  Crowd crowd(load);
  crowd.Run();
  CHECK(crowd.Late() == 0);
  CHECK(crowd.refused() > kTurns / 4);  // else it was no overload
  CHECK(crowd.accepted() > 400);
  CHECK(crowd.stats().preemptions > 20);
}

TEST_CASE("under sustained overload nobody waits longer than the work before it in order takes") {
  for (const SchedulingPolicy policy : {SchedulingPolicy::kFcfs, SchedulingPolicy::kPriority}) {
    for (int lag = 0; lag < kMaxStepsInFlight; ++lag) {
      CheckBounded({.policy = policy, .lag = lag, .seed = uint32_t(lag) + 1});
    }
    CheckBounded({.policy = policy, .drafts = 3, .seed = 7});
  }
}

TEST_CASE("without a limit on overtaking somebody waits longer") {
  Crowd crowd({.max_overtakes = 1 << 20});
  crowd.Run();
  CHECK(crowd.Late() > 0);
}

TEST_CASE("without aging somebody unimportant waits longer") {
  Crowd crowd({.policy = SchedulingPolicy::kPriority, .aging_ms = 0});
  crowd.Run();
  CHECK(crowd.Late() > 0);
}

TEST_CASE("who does not fit is admitted in the step that finds enough room") {
  EngineConfig c = SmallConfig();
  c.num_blocks = 13;
  c.max_model_len = 44;
  Harness h(c);
  const RequestId first = h.Add(Prompt(8, 1), Greedy(10));
  h.Add(Prompt(20, 2), Greedy(20));
  h.Step();
  const RequestId last = h.Add(Prompt(36, 3), Greedy(2));
  while (!h.finished(first)) {
    CHECK(h.stats().waiting == 1);
    h.Step();
  }
  while (h.stats().running > 0 && !h.finished(last)) {
    const int32_t room = h.engine.kv().free_blocks();
    h.Step();
    CHECK((h.stats().waiting == 0 || h.finished(last)) == (room >= 9));
  }
}

}  // namespace
}  // namespace octavo::engine
