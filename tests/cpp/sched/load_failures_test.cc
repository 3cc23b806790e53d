// Loads that fail, are late or never end, and connectors that die.
#include "doctest/doctest.h"
#include "engine/harness.h"
#include "sched/scripted_connector.h"

namespace octavo::sched {
namespace {

using engine::Greedy;
using engine::Harness;
using engine::Prompt;
using engine::Row;
using engine::SmallConfig;

EngineConfig Config(KvLoadFailurePolicy policy) {
  EngineConfig c = SmallConfig();
  c.kv_load_failure_policy = policy;
  c.kv_load_timeout_ms = 100;
  return c;
}

// A request of eleven tokens whose first eight are being loaded.
struct Loading {
  explicit Loading(const EngineConfig& config) : h(config, &connector) {
    connector.tokens = 8;
    id = h.Add(Prompt(11), Greedy(1));
    CHECK(h.Begin() == nullptr);
    REQUIRE(connector.loads.size() == 1);
    transfer = connector.loads[0].id;
  }
  ScriptedConnector connector;
  Harness h;
  RequestId id{};
  uint64_t transfer = 0;
};

TEST_CASE("a failed load ends its request, it alone, under the policy fail") {
  Loading l(Config(KvLoadFailurePolicy::kFail));
  l.connector.tokens = 0;
  const RequestId other = l.h.Add(Prompt(5, 1), Greedy(1));
  l.h.Step();
  CHECK(l.h.finished(other));
  l.connector.reports = {{l.transfer, false, 4}};
  CHECK(l.h.Begin() == nullptr);
  CHECK(l.h.done(l.id).reason == FinishReason::kError);
  CHECK(!l.h.engine.HasUnfinished());
  CHECK(l.h.stats().finished_error == 1);
  CHECK(l.h.stats().kv_loads_failed == 1);
  CHECK(l.h.stats().free_blocks == l.h.stats().total_blocks);
}

TEST_CASE("a request that ended outside a step is told with the next step's outputs") {
  Loading l(Config(KvLoadFailurePolicy::kFail));
  l.connector.tokens = 0;
  l.connector.reports = {{l.transfer, false}};
  l.h.Add(Prompt(5, 1), Greedy(1));
  REQUIRE(l.h.Begin());
  CHECK(!l.h.finished(l.id));
  l.h.Finish();
  CHECK(l.h.done(l.id).reason == FinishReason::kError);
}

TEST_CASE("a request that is aborted after it ended unheard gives no output") {
  Loading l(Config(KvLoadFailurePolicy::kFail));
  l.connector.tokens = 0;
  l.connector.reports = {{l.transfer, false}};
  l.h.Add(Prompt(5, 1), Greedy(1));
  REQUIRE(l.h.Begin());
  l.h.Abort(l.id);
  CHECK(l.h.Finish().size() == 1);
}

TEST_CASE("a failed load is a shorter prefix under the policy recompute") {
  Loading l(Config(KvLoadFailurePolicy::kRecompute));
  l.connector.reports = {{l.transfer, false, 7}};
  const int asked = l.connector.matches;
  const StepPlan* plan = l.h.Begin();
  REQUIRE(plan);
  // One whole block of the seven tokens; the connector promised the rest before, and is not asked.
  CHECK(l.h.Rows(plan) == std::vector<Row>{{l.id, 4, 7, true}});
  CHECK(l.connector.matches == asked);
  CHECK(l.connector.loads.size() == 1);
}

TEST_CASE("with several groups a failed load leaves what all of them hold") {
  EngineConfig config = Config(KvLoadFailurePolicy::kRecompute);
  config.groups = {{.block_size = 4},
                   {.kind = GroupKind::kSlidingWindow, .block_size = 4, .window = 4},
                   {.kind = GroupKind::kState, .block_size = 4}};
  Loading l(config);
  // All of the first group, the window's last block, and the state after token eight.
  CHECK(l.connector.loads[0].blocks.size() == 4);
  l.connector.reports = {{l.transfer, false, 7}};
  const StepPlan* plan = l.h.Begin();
  REQUIRE(plan);
  CHECK(plan->position[0] == 0);  // the state after token four was never loaded
}

TEST_CASE("an aborted load keeps its blocks until the connector lets go of them") {
  for (const bool lets_go : {false, true}) {
    Loading l(Config(KvLoadFailurePolicy::kFail));
    l.connector.lets_go = lets_go;
    l.h.Abort(l.id);
    CHECK(!l.h.engine.HasUnfinished());
    CHECK(l.connector.cancelled == std::vector<uint64_t>{l.transfer});
    CHECK(l.h.stats().kv_transfers == (lets_go ? 0 : 1));
    CHECK(l.h.stats().free_blocks == l.h.stats().total_blocks - (lets_go ? 0 : 2));
    l.connector.reports = {{l.transfer}};
    l.h.Begin();
    CHECK(l.h.stats().free_blocks == l.h.stats().total_blocks);
    CHECK(l.h.stats().cached_blocks == 0);
  }
}

TEST_CASE("an overdue load fails, and a connector that does not let go of its blocks is stopped") {
  Loading l(Config(KvLoadFailurePolicy::kRecompute));
  l.connector.lets_go = false;
  l.h.clock.now_us += 99'000;
  CHECK(l.h.Begin() == nullptr);
  l.h.clock.now_us += 1'000;
  const StepPlan* plan = l.h.Begin();
  REQUIRE(plan);
  CHECK(l.h.Rows(plan) == std::vector<Row>{{l.id, 0, 11, true}});
  CHECK(l.h.stats().kv_transfers == 1);
  l.h.Finish();
  CHECK(l.connector.stops == 0);
  l.h.clock.now_us += 100'000;
  l.h.Begin();
  CHECK(l.connector.stops == 1);
  CHECK(l.h.stats().kv_connector_deaths == 1);
  CHECK(l.h.stats().free_blocks == l.h.stats().total_blocks);
}

TEST_CASE("late, repeated and unknown reports change nothing") {
  Loading l(Config(KvLoadFailurePolicy::kRecompute));
  l.connector.reports = {{l.transfer + 7}, {l.transfer}, {l.transfer, false}, {l.transfer}};
  const StepPlan* plan = l.h.Begin();
  REQUIRE(plan);
  CHECK(plan->position[0] == 8);
  l.connector.reports = {{l.transfer, false}, {l.transfer}};
  l.h.Finish();
  l.h.Begin();
  CHECK(l.h.stats().kv_loads_failed == 0);
  CHECK(l.h.stats().free_blocks == l.h.stats().total_blocks);
}

TEST_CASE("a dead connector's loads fail, its holds are freed, and the engine goes on") {
  Loading l(Config(KvLoadFailurePolicy::kRecompute));
  l.connector.dead = true;
  const int asked = l.connector.matches;
  l.h.Drain();
  CHECK(l.h.done(l.id).reason == FinishReason::kLength);
  CHECK(l.h.stats().kv_connector_deaths == 1);
  l.connector.dead = false;
  l.h.Add(Prompt(11, 2), Greedy(1));
  l.h.Drain();
  CHECK(l.connector.matches == asked);
  CHECK(l.connector.saves.empty());
  CHECK(l.h.stats().free_blocks == l.h.stats().total_blocks);
}

TEST_CASE("ends that nobody asks for hold up the next ones, and each is told once") {
  EngineConfig c = Config(KvLoadFailurePolicy::kFail);
  c.max_num_seqs = 1;  // two transfers at once
  ScriptedConnector connector;
  connector.tokens = 8;
  Harness h(c, &connector);
  int32_t added = 0;
  size_t told = 0;
  for (int round = 0; round < 10; ++round) {
    for (int step = 0; step < 20; ++step) {
      if (added < 30 && h.stats().kv_transfers < 2) h.Add(Prompt(11, added++), Greedy(1));
      REQUIRE(h.engine.BeginStep() == nullptr);
      for (const auto& load : connector.loads) connector.reports.push_back({load.id, false});
      connector.loads.clear();
    }
    const auto ended = h.engine.TakeEnded();
    // As many as three open steps and a look in vain may end, and no more than there is room for.
    CHECK(ended.size() <= 8);
    told += ended.size();
  }
  CHECK(told == 30);
  CHECK(h.stats().finished_error == 30);
  CHECK_FALSE(h.engine.HasUnfinished());
}

}  // namespace
}  // namespace octavo::sched
