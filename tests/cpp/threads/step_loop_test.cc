#include "engine/step_loop.h"

#include <atomic>
#include <deque>
#include <map>
#include <random>
#include <vector>

#include "base/check.h"
#include "doctest/doctest.h"
#include "engine/harness.h"

namespace octavo::engine {
namespace {

using namespace std::chrono_literals;

// Runs steps when they are waited for, or earlier by chance, in the order of their launches. It
// takes some of them, and fails as often as it is told to.
class LateDevice final : public StepDevice {
 public:
  LateDevice(const EngineConfig& config, const batch::Arena& arena, uint32_t seed)
      : model_(config, arena), draw_(seed) {}

  bool Takes(const StepPlan&) override { return Chance(taking); }
  Status Launch(const StepPlan& plan) override {
    if (Chance(refusing)) return Status::Unavailable("no launch");
    Enqueue(plan);
    return NoteEnd(plan);
  }
  // What the caller does with a step that this did not take.
  void Enqueue(const StepPlan& plan) {
    const std::lock_guard lock(mutex_);
    queue_.push_back(plan);
    ++launched_;
    OCTAVO_CHECK(plan.step_id > last_id_, "steps are launched in the order of their ids");
    last_id_ = plan.step_id;
  }
  Status NoteEnd(const StepPlan& plan) override {
    const std::lock_guard lock(mutex_);
    marks_[plan.slot] = launched_;
    while (!queue_.empty() && Chance(0.3)) RunFirst();
    return Status::Ok();
  }
  Result<std::span<const int32_t>> Wait(const StepPlan& plan) override {
    const std::lock_guard lock(mutex_);
    while (run_ < marks_[plan.slot]) RunFirst();
    if (Chance(failing)) return Status::Unavailable("the device is gone");
    return std::span<const int32_t>(tokens_[plan.slot]);
  }

  std::atomic<double> taking{1}, refusing{0}, failing{0};

 private:
  bool Chance(double chance) {
    const std::lock_guard lock(draw_mutex_);
    return std::uniform_real_distribution<>(0, 1)(draw_) < chance;
  }
  void RunFirst() {
    const StepPlan& plan = queue_.front();
    tokens_[plan.slot].resize(size_t(plan.num_samples));
    OCTAVO_CHECK(model_.Execute(plan, tokens_[plan.slot]).ok(), "the model never fails");
    queue_.pop_front();
    ++run_;
  }

  sim::HashModel model_;
  std::mutex mutex_, draw_mutex_;
  std::mt19937 draw_;
  std::deque<StepPlan> queue_;
  std::map<int32_t, std::vector<int32_t>> tokens_;
  std::map<int32_t, int> marks_;
  int launched_ = 0, run_ = 0;
  uint64_t last_id_ = 0;
};

EngineConfig ConfigOf(int depth) {
  EngineConfig c = SmallConfig();
  c.num_blocks = 61;
  c.max_steps_in_flight = depth;
  return c;
}

// An engine, its loop, and a caller that keeps what it hears.
struct World {
  World(int depth, uint32_t seed)
      : config(ConfigOf(depth)),
        engine(config, clock, SystemMemory()),
        device(config, engine.arena(), seed),
        loop(engine, device, depth) {}

  uint64_t Add(std::span<const int32_t> prompt, int32_t count) {
    const std::lock_guard lock(engine.gate());
    const auto id = engine.AddRequest(prompt, Greedy(count));
    REQUIRE(id.ok());
    done[Value(*id)];
    return Value(*id);
  }
  void Abort(uint64_t id) {
    const std::lock_guard lock(engine.gate());
    static_cast<void>(engine.Abort(RequestId{id}).ok());
    done.erase(id);
  }
  // Does what the loop asks for, once. False: there is nothing to run.
  bool Turn() {
    LoopNews news = loop.TryNext();
    while (news.turn == LoopTurn::kNotYet) news = loop.Next(1ms);
    if (news.turn == LoopTurn::kLaunch) {
      device.Enqueue(*news.plan);
      loop.Launched(Status::Ok());
    }
    if (news.turn == LoopTurn::kReport) Take(*news.report);
    return news.turn != LoopTurn::kNothing;
  }
  void Take(const StepReport& report) {
    CHECK(report.step_id > last_report);
    last_report = report.step_id;
    failures += report.failure.ok() ? 0 : 1;
    for (const StepOutput& o : report.outputs) {
      const auto found = done.find(o.request);
      if (found == done.end()) continue;
      CHECK(found->second.reason == FinishReason::kNone);
      if (o.token >= 0) found->second.tokens.push_back(o.token);
      found->second.reason = FinishReason{o.finish};
    }
  }
  void Drain() {
    while (Turn()) {
    }
    const std::lock_guard lock(engine.gate());
    CHECK_FALSE(engine.HasUnfinished());
    engine.CheckInvariants();
    CHECK(engine.Stats().free_blocks == engine.Stats().total_blocks);
  }

  ManualClock clock;
  EngineConfig config;
  CoreEngine engine;
  LateDevice device;
  std::map<uint64_t, Done> done;
  uint64_t last_report = 0;
  int failures = 0;
  StepLoop loop;
};

// What a request gets when it is alone and every step is finished before the next.
std::vector<int32_t> Alone(std::span<const int32_t> prompt, int32_t count) {
  const EngineConfig config = ConfigOf(1);
  ManualClock clock;
  CoreEngine engine(config, clock, SystemMemory());
  sim::HashModel model(config, engine.arena());
  REQUIRE(engine.AddRequest(prompt, Greedy(count)).ok());
  std::vector<int32_t> tokens;
  while (engine.HasUnfinished()) {
    const auto outputs = engine.Step(model);
    REQUIRE(outputs.ok());
    for (const StepOutput& o : *outputs) tokens.push_back(o.token);
  }
  return tokens;
}

TEST_CASE("a loop gives every request the tokens that it gets alone, whoever launches its steps") {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    std::mt19937 draw(seed);
    World w(1 + int(seed % 3), seed);
    w.device.taking = seed % 4 == 0 ? 1.0 : seed % 4 == 1 ? 0.0 : 0.6;
    std::map<uint64_t, std::vector<int32_t>> expected;
    for (int i = 0; i < 14; ++i) {
      const auto prompt = Prompt(1 + int32_t(draw() % 50), int32_t(draw() % 5));
      const auto count = 1 + int32_t(draw() % 30);
      const uint64_t id = w.Add(prompt, count);
      expected[id] = Alone(prompt, count);
      for (uint32_t turns = draw() % 6; turns > 0; --turns) w.Turn();
      if (draw() % 4 == 0) {
        w.Abort(id);
        expected.erase(id);
      }
    }
    w.Drain();
    for (const auto& [id, tokens] : expected) CHECK(w.done.at(id).tokens == tokens);
    CHECK(w.failures == 0);
  }
}

TEST_CASE("a step that fails ends what is open, and the loop goes on") {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    World w(1 + int(seed % 3), seed);
    w.device.taking = 0.7;
    (seed % 2 == 0 ? w.device.failing : w.device.refusing) = 0.1;
    std::map<uint64_t, std::vector<int32_t>> expected;
    for (int i = 0; i < 12; ++i) {
      const auto prompt = Prompt(3 + 4 * i, i % 3);
      expected[w.Add(prompt, 20)] = Alone(prompt, 20);
      w.Turn();
    }
    w.Drain();
    int ended = 0;
    for (const auto& [id, tokens] : expected) {
      const Done& done = w.done.at(id);
      ended += done.reason == FinishReason::kError;
      if (done.reason != FinishReason::kError) CHECK(done.tokens == tokens);
      // What came before the failure is right.
      CHECK(std::equal(done.tokens.begin(), done.tokens.end(), tokens.begin()));
    }
    CHECK((ended > 0) == (w.failures > 0));
    w.device.failing = w.device.refusing = 0;
    const uint64_t id = w.Add(Prompt(9, 7), 12);
    w.Drain();
    CHECK(w.done.at(id).tokens == Alone(Prompt(9, 7), 12));
  }
}

// Turns until the loop hands out a step.
void AwaitLaunch(World& w) {
  LoopNews news;
  while (news.turn != LoopTurn::kLaunch) {
    news = w.loop.Next(1ms);
    if (news.turn == LoopTurn::kReport) w.Take(*news.report);
    REQUIRE(news.turn != LoopTurn::kNothing);
  }
}

TEST_CASE("a step that was handed out and never launched fails when the caller asks again") {
  for (const int depth : {1, 2}) {
    for (const bool said : {false, true}) {
      World w(depth, 5);
      w.device.taking = 0.8;
      const uint64_t id = w.Add(Prompt(9), 150);
      AwaitLaunch(w);
      if (said) w.loop.Launched(Status::Internal("no memory"));
      while (w.failures == 0) w.Turn();
      CHECK(w.done.at(id).reason == FinishReason::kError);
      w.Drain();
    }
  }
}

TEST_CASE("nothing is begun before the caller asks, and then so much that he may be late") {
  World w(2, 7);
  w.Add(Prompt(5), 150);
  const auto steps = [&] {
    const std::lock_guard lock(w.engine.gate());
    return w.engine.Stats().steps;
  };
  std::this_thread::sleep_for(5ms);
  CHECK(steps() == 0);
  w.Turn();
  for (int i = 0; i < 2000 && steps() < int64_t(StepLoop::kMostAhead); ++i) {
    std::this_thread::sleep_for(1ms);
  }
  std::this_thread::sleep_for(20ms);
  CHECK(steps() == int64_t(StepLoop::kMostAhead));
  w.Drain();
}

TEST_CASE("a loop that is stopped under way leaves no step open") {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    World w(1 + int(seed % 3), seed);
    w.device.taking = seed % 2 == 0 ? 1.0 : 0.5;
    const uint64_t id = w.Add(Prompt(9), 150);
    for (uint32_t i = 0; i < seed; ++i) w.Turn();
    w.loop.Stop();
    w.loop.Stop();
    w.Abort(id);
    w.Drain();
  }
}

}  // namespace
}  // namespace octavo::engine
