// A request and the connector that loads its prefix.
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

TEST_CASE("a request waits for its load without a row, and runs from where the load ends") {
  ScriptedConnector connector;
  connector.tokens = 8;
  Harness h(SmallConfig(), &connector);
  const RequestId id = h.Add(Prompt(11), Greedy(1));
  CHECK(h.Begin() == nullptr);
  CHECK(h.engine.HasUnfinished());
  REQUIRE(connector.loads.size() == 1);
  CHECK(connector.loads[0].blocks.size() == 2);
  CHECK(h.stats().kv_transfers == 1);
  CHECK(h.stats().free_blocks == h.stats().total_blocks - 2);
  CHECK(h.stats().cached_blocks == 0);  // nothing of it can be found yet
  CHECK(h.Begin() == nullptr);
  CHECK(connector.loads.size() == 1);

  connector.reports = {{connector.loads[0].id}};
  const StepPlan* plan = h.Begin();
  REQUIRE(plan);
  CHECK(h.Rows(plan) == std::vector<Row>{{id, 8, 3, true}});
  h.FinishWith({5});
  CHECK(h.done(id).cached_tokens == 8);
  CHECK(h.stats().kv_loaded_tokens == 8);
  CHECK(connector.planned == std::vector<uint64_t>{1});
}

TEST_CASE("a load that is done at once costs its request no step") {
  ScriptedConnector connector;
  connector.tokens = 8;
  connector.start = KvStart::kDone;
  Harness h(SmallConfig(), &connector);
  const RequestId id = h.Add(Prompt(11), Greedy(1));
  const StepPlan* plan = h.Begin();
  REQUIRE(plan);
  CHECK(h.Rows(plan) == std::vector<Row>{{id, 8, 3, true}});
}

TEST_CASE("what was loaded is shared like what was computed here") {
  ScriptedConnector connector;
  connector.tokens = 300;
  connector.start = KvStart::kDone;
  EngineConfig c = SmallConfig();
  c.num_blocks = 200;
  c.max_model_len = 400;
  Harness h(c, &connector);
  for (int i = 0; i < 5; ++i) h.Add(Prompt(305), Greedy(1));
  const StepPlan* plan = h.Begin();
  REQUIRE(plan);
  CHECK(h.Rows(plan).size() == 5);
  CHECK(connector.loads.size() == 1);
  CHECK(plan->num_shared_tokens == 4 * 304 + 300);
}

TEST_CASE("a local hit comes before what a connector could load") {
  ScriptedConnector connector;
  connector.start = KvStart::kDone;
  Harness h(SmallConfig(), &connector);
  h.Add(Prompt(9), Greedy(1));
  h.Drain();
  connector.tokens = 12;
  h.Add(Prompt(20), Greedy(1));
  const StepPlan* plan = h.Begin();
  REQUIRE(connector.loads.size() == 1);
  CHECK(connector.loads[0].first == 8);
  CHECK(connector.loads[0].blocks.size() == 1);
  CHECK(plan->position[0] == 12);
}

TEST_CASE("whoever waits for a load holds nobody up") {
  ScriptedConnector connector;
  connector.tokens = 8;
  EngineConfig config = SmallConfig();
  config.max_num_seqs = 1;
  Harness h(config, &connector);
  const RequestId first = h.Add(Prompt(11), Greedy(1));
  CHECK(h.Begin() == nullptr);
  connector.tokens = 0;
  const RequestId second = h.Add(Prompt(5, 1), Greedy(1));
  REQUIRE(h.Step());
  CHECK(h.finished(second));
  connector.reports = {{connector.loads[0].id}};
  h.Drain();
  CHECK(h.finished(first));
}

TEST_CASE("a load leaves something to compute, and ends where known tokens end") {
  ScriptedConnector connector;
  connector.tokens = 1000;
  connector.start = KvStart::kDone;
  Harness h(SmallConfig(), &connector);
  h.Add(Prompt(12), Greedy(1));
  const StepPlan* plan = h.Begin();
  CHECK(plan->position[0] == 8);
  CHECK(plan->num_samples == 1);
}

TEST_CASE("a connector that does not know yet is asked again, but not for ever") {
  ScriptedConnector connector;
  connector.tokens = 8;
  connector.known = false;
  EngineConfig config = SmallConfig();
  config.kv_load_timeout_ms = 100;
  Harness h(config, &connector);
  h.Add(Prompt(11), Greedy(1));
  CHECK(h.Begin() == nullptr);
  h.clock.now_us += 99'000;
  CHECK(h.Begin() == nullptr);
  CHECK(connector.matches == 2);
  h.clock.now_us += 1'000;
  const StepPlan* plan = h.Begin();
  REQUIRE(plan);
  CHECK(plan->position[0] == 0);
}

TEST_CASE("a refused load is a miss") {
  ScriptedConnector connector;
  connector.tokens = 8;
  connector.start = KvStart::kRefused;
  Harness h(SmallConfig(), &connector);
  h.Add(Prompt(11), Greedy(1));
  const StepPlan* plan = h.Begin();
  REQUIRE(plan);
  CHECK(plan->position[0] == 0);
  CHECK(h.stats().kv_transfers == 0);
  CHECK(h.stats().kv_loads == 0);
}

TEST_CASE("a load begins when no open step can read its blocks") {
  ScriptedConnector connector;
  connector.start = KvStart::kDone;
  Harness h(SmallConfig(), &connector);
  const RequestId first = h.Add(Prompt(5, 1), Greedy(10));
  h.Begin();
  connector.tokens = 8;
  const RequestId second = h.Add(Prompt(11), Greedy(1));
  h.Begin();
  CHECK(connector.loads.empty());
  h.Finish();
  h.Finish();
  const StepPlan* plan = h.Begin();
  CHECK(connector.loads.size() == 1);
  CHECK(h.Rows(plan) == std::vector<Row>{{first, 6, 1, true}, {second, 8, 3, true}});
}

TEST_CASE("the same prefix is loaded once") {
  ScriptedConnector connector;
  connector.tokens = 8;
  Harness h(SmallConfig(), &connector);
  h.Add(Prompt(11), Greedy(1));
  h.Add(Prompt(11), Greedy(1));
  CHECK(h.Begin() == nullptr);
  REQUIRE(connector.loads.size() == 1);
  connector.reports = {{connector.loads[0].id}};
  const StepPlan* plan = h.Begin();
  REQUIRE(plan);
  CHECK(plan->num_rows == 2);
  CHECK(plan->num_tokens == 6);
  CHECK(connector.loads.size() == 1);
}

TEST_CASE("a pinned prefix gives way to those who run") {
  ScriptedConnector connector;
  EngineConfig config = SmallConfig();
  config.num_blocks = 11;  // ten to use
  config.max_model_len = 40;
  config.max_num_seqs = 1;
  Harness h(config, &connector);
  const RequestId first = h.Add(Prompt(8, 1), Greedy(30));
  h.Step();
  connector.tokens = 16;
  h.Add(Prompt(17), Greedy(1));
  // The row is taken, so it is not even looked at; a load needs a free row to begin with.
  h.Step();
  CHECK(connector.loads.empty());
  config.max_num_seqs = 2;
  Harness two(config, &connector);
  connector.tokens = 0;
  const RequestId runs = two.Add(Prompt(8, 1), Greedy(30));
  two.Step();
  connector.tokens = 16;
  const RequestId waits = two.Add(Prompt(17), Greedy(1));
  two.Step();
  REQUIRE(connector.loads.size() == 1);
  // Meanwhile the first grows until what is left cannot hold the second's last block.
  while (two.stats().free_blocks > 0) two.Step();
  connector.reports = {{connector.loads[0].id}};
  connector.tokens = 0;
  two.Drain();
  CHECK(two.stats().preemptions == 0);
  CHECK(two.done(runs).tokens.size() == 30);
  CHECK(two.finished(waits));
  CHECK(!h.finished(first));
}

TEST_CASE("resetting the prefix cache resets the connector, and waits for what holds blocks") {
  ScriptedConnector connector;
  connector.tokens = 8;
  Harness h(SmallConfig(), &connector);
  h.Add(Prompt(11), Greedy(1));
  h.Begin();
  CHECK(!h.engine.ResetPrefixCache());
  CHECK(connector.resets == 0);
  connector.reports = {{connector.loads[0].id}};
  h.Drain();
  CHECK(h.engine.ResetPrefixCache());
  CHECK(connector.resets == 1);
}

TEST_CASE("a connector needs the prefix cache") {
  ScriptedConnector connector;
  EngineConfig config = SmallConfig();
  config.enable_prefix_caching = false;
  const auto engine = Engine::Create(config, {nullptr, &connector});
  REQUIRE(!engine.ok());
  CHECK(engine.status().message().find("enable_prefix_caching=false") != std::string::npos);
}

}  // namespace
}  // namespace octavo::sched
