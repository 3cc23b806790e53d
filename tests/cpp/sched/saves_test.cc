// What requests leave behind: saves that hold blocks, evictions, victims.
#include "doctest/doctest.h"
#include "engine/harness.h"
#include "sched/scripted_connector.h"

namespace octavo::sched {
namespace {

using engine::Greedy;
using engine::Harness;
using engine::Prompt;
using engine::SmallConfig;

TEST_CASE("a finished request's blocks stay until its save is reported") {
  ScriptedConnector connector;
  connector.release = KvStart::kPending;
  Harness h(SmallConfig(), &connector);
  h.Add(Prompt(11), Greedy(1));
  h.Drain();
  REQUIRE(connector.saves.size() == 1);
  CHECK(connector.saves[0].last == 11);
  CHECK(connector.saves[0].blocks.size() == 2);  // whole blocks
  CHECK(h.stats().free_blocks == h.stats().total_blocks - 2);
  CHECK(h.stats().kv_saves == 1);
  connector.reports = {{connector.saves[0].id}};
  h.Begin();
  CHECK(h.stats().free_blocks == h.stats().total_blocks);
}

TEST_CASE("a failed row is forgotten by the connector too") {
  ScriptedConnector connector;
  Harness h(SmallConfig(), &connector);
  h.Add(Prompt(11), Greedy(5));
  h.Begin();
  h.FinishWith({-1});
  CHECK(connector.forgotten == std::vector<int32_t>{0});
  h.Add(Prompt(11), Greedy(5));
  h.Step();
  h.Begin();
  h.FinishWith({-1});  // its first token proved the prompt
  CHECK(connector.forgotten == std::vector<int32_t>{0, 11});
}

TEST_CASE("an overdue save is cancelled") {
  ScriptedConnector connector;
  connector.release = KvStart::kPending;
  EngineConfig config = SmallConfig();
  config.kv_load_timeout_ms = 100;
  Harness h(config, &connector);
  h.Add(Prompt(11), Greedy(1));
  h.Drain();
  h.clock.now_us += 100'000;
  h.Begin();
  CHECK(connector.cancelled == std::vector<uint64_t>{connector.saves[0].id});
  CHECK(h.stats().free_blocks == h.stats().total_blocks);
}

// Two requests that grow until one of them must go.
EngineConfig Tight() {
  EngineConfig c = SmallConfig();
  c.num_blocks = 11;  // ten to use
  c.max_model_len = 40;
  return c;
}

TEST_CASE("who needs the blocks of a victim that is being saved waits for them") {
  ScriptedConnector connector;
  connector.release = KvStart::kPending;
  Harness h(Tight(), &connector);
  h.Add(Prompt(12), Greedy(25));
  h.Add(Prompt(12, 1), Greedy(25));
  h.Add(Prompt(5, 2), Greedy(25));
  while (connector.preempted == 0) h.Step();
  const uint64_t preemptions = h.stats().preemptions;
  for (int i = 0; i < 5; ++i) h.Step();
  CHECK(h.stats().preemptions == preemptions);
  for (int turn = 0; h.engine.HasUnfinished(); ++turn) {
    REQUIRE(turn < 1000);
    for (const auto& save : connector.saves) connector.reports.push_back({save.id});
    connector.saves.clear();
    h.Step();
  }
}

TEST_CASE("an eviction is offered once the step that wrote the block is over, not before") {
  for (const bool open : {false, true}) {
    CAPTURE(open);
    ScriptedConnector connector;
    Harness h(Tight(), &connector);
    // Nine blocks are filed when their step is planned, and let go of while it may be open.
    const RequestId gone = h.Add(Prompt(37), Greedy(2));
    h.Begin();
    if (!open) h.Finish();
    h.Abort(gone);
    h.Add(Prompt(37, 1), Greedy(1));
    REQUIRE(h.Begin());
    CHECK(h.stats().evictions == 9);
    CHECK(connector.evicted.size() == (open ? 0u : 9u));
  }
}

}  // namespace
}  // namespace octavo::sched
