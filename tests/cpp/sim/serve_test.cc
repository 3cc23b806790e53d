#include "sim/serve/serve.h"

#include <cmath>
#include <string>
#include <vector>

#include "doctest/doctest.h"

namespace octavo::sim {
namespace {

// A plan of rows that each compute `count` tokens up to `end`.
struct Rows {
  explicit Rows(std::vector<std::pair<int32_t, int32_t>> count_and_end) {
    starts.push_back(0);
    for (const auto& [count, end] : count_and_end) {
      starts.push_back(starts.back() + count);
      ends.push_back(end);
    }
    plan.num_rows = plan.num_samples = int32_t(ends.size());
    plan.num_tokens = starts.back();
    plan.query_start = starts.data();
    plan.seq_len = ends.data();
  }
  std::vector<int32_t> starts, ends;
  StepPlan plan;
};

EngineConfig Config() {
  EngineConfig c;
  c.num_blocks = 1001;
  c.block_size = 16;
  c.vocab_size = 32'000;
  c.max_model_len = 2048;
  c.max_num_seqs = 8;
  c.max_num_batched_tokens = 512;
  c.hash_seed = 1;
  return c;
}

// Every step takes a second.
class OneSecond final : public CostModel {
 public:
  StepCost Of(const StepPlan&) const override { return {1, 0.5, 0.25}; }
};

ServeResult Run(const std::vector<ServeRequest>& requests, const EngineConfig& config = Config(),
                ServeOptions options = {}) {
  auto result = Serve(config, OneSecond(), requests, options);
  REQUIRE(result.ok());
  return std::move(*result);
}

TEST_CASE("a roofline is the longer of bytes and arithmetic, and what launching costs") {
  Roofline r;
  r.weight_bytes = 1000;
  r.flops_of_a_token = 10;
  r.flops_of_a_sample = 5;
  r.attention = {{.window = 0, .key_bytes = 2, .flops_of_a_key = 1},
                 {.window = 4, .key_bytes = 3, .flops_of_a_key = 1}};
  r.bytes_per_second = 100;
  r.flops_per_second = 1e9;
  r.step_seconds = 0.5;
  r.row_seconds = 0.25;
  // One token after nine: ten keys read and one written, of the window four.
  const double bytes = 1000 + 2 * (10 + 1) + 3 * (4 + 1);
  CHECK(MakeRoofline(r)->Of(Rows({{1, 10}}).plan).seconds == doctest::Approx(bytes / 100 + 0.75));
  // A prompt of six: 1 + ... + 6 keys, of the window 1 + 2 + 3 + 4 + 4 + 4.
  r.bytes_per_second = 1e9;
  r.flops_per_second = 100;
  const double flops = 6 * 10 + 5 + 21 + 18;
  const StepCost cost = MakeRoofline(r)->Of(Rows({{6, 6}}).plan);
  CHECK(cost.seconds == doctest::Approx(flops / 100 + 0.75));
  CHECK(cost.compute_use == doctest::Approx(flops / 100 / cost.seconds));
}

TEST_CASE("a table gives its points back, and lines between and beyond them") {
  CostTable t{{1, 3}, {0, 100}, {0, 50}, {1, 2, 11, 12, 3, 4, 13, 14}};
  REQUIRE(Validate(t).ok());
  const auto model = MakeTable(t);
  const auto seconds = [&](std::vector<std::pair<int32_t, int32_t>> rows) {
    return model->Of(Rows(rows).plan).seconds;
  };
  CHECK(seconds({{1, 1}}) == doctest::Approx(1));
  CHECK(seconds({{1, 51}}) == doctest::Approx(2));
  CHECK(seconds({{101, 101}}) == doctest::Approx(11));
  CHECK(seconds({{101, 151}}) == doctest::Approx(12));
  CHECK(seconds({{1, 51}, {1, 51}, {101, 151}}) == doctest::Approx(14));
  CHECK(seconds({{1, 1}, {1, 1}}) == doctest::Approx(2));
  CHECK(seconds({{51, 51}}) == doctest::Approx(6));
  CHECK(seconds({{201, 201}}) == doctest::Approx(21));
}

TEST_CASE("a table that cannot be read is refused with its fault") {
  const auto message = [](const CostTable& t) { return Validate(t).message(); };
  CHECK(message({{1, 1}, {0}, {0}, {1, 1}}).find("rows of the cost table") == 0);
  CHECK(message({{1}, {0}, {}, {}}).find("context of the cost table") == 0);
  CHECK(message({{1}, {0}, {0}, {1, 2}}).find("seconds of the cost table has 2 entries") == 0);
  CHECK(message({{1}, {0}, {0}, {0}}).find("seconds of the cost table holds 0") == 0);
}

TEST_CASE("a request alone gets its first token after its prompt's steps, then one a step") {
  // 1,200 tokens in chunks of 512 are three steps.
  const ServeResult r = Run({{.arrival = 5, .input_len = 1200, .output_len = 4}});
  CHECK(r.records[0].arrival == 5);
  CHECK(r.records[0].first_token == 8);
  CHECK(r.records[0].end == 11);
  CHECK(r.records[0].output_tokens == 4);
  CHECK(r.seconds == 11);
  CHECK(r.busy_seconds == 6);
  CHECK(r.bandwidth_use == doctest::Approx(0.5));
  const double bucket = std::log(1 / GapHistogram::kFirst) / std::log(GapHistogram::kBase);
  CHECK(r.gaps.counts()[size_t(bucket)] == 3);
}

TEST_CASE("taking a request in holds up the steps of all") {
  const ServeResult r =
      Run({{.input_len = 10, .output_len = 1}, {.input_len = 10, .output_len = 1}}, Config(),
          {.submit_seconds = 0.25});
  CHECK(r.records[0].first_token == 1.5);
  CHECK(r.records[1].first_token == 1.5);
  CHECK(r.busy_seconds == 1);
  CHECK_FALSE(Serve(Config(), OneSecond(), {}, {.submit_seconds = -1}).ok());
}

TEST_CASE("a client of a closed loop sends its next request when it has its answer") {
  const ServeResult r = Run({{.input_len = 10, .output_len = 2},
                             {.arrival = 3, .after = 0, .input_len = 10, .output_len = 1}});
  CHECK(r.records[0].end == 2);
  CHECK(r.records[1].arrival == 5);
  CHECK(r.records[1].end == 6);
}

TEST_CASE("a conversation finds its past in the cache, and shared prefixes are shared") {
  const ServeResult r =
      Run({{.prefix = 1, .prefix_len = 64, .input_len = 100, .output_len = 20},
           {.after = 0, .grows = true, .input_len = 30, .output_len = 5},
           {.arrival = 100, .prefix = 1, .prefix_len = 64, .input_len = 9, .output_len = 1},
           {.arrival = 101, .prefix = 2, .prefix_len = 64, .input_len = 9, .output_len = 1}});
  CHECK(r.records[1].prompt_tokens == 64 + 100 + 20 + 30);
  CHECK(r.records[1].cached_tokens == 176);  // 183 tokens were computed, of which full blocks
  CHECK(r.records[2].cached_tokens == 64);
  CHECK(r.records[3].cached_tokens == 0);
}

TEST_CASE("what the engine refuses is counted, and ends the conversation that grew too long") {
  const ServeResult r = Run({{.input_len = 2047, .output_len = 5},
                             {.after = 0, .grows = true, .input_len = 10, .output_len = 5},
                             {.after = 1, .grows = true, .input_len = 10, .output_len = 5},
                             {.input_len = 10, .output_len = 1}});
  CHECK(r.records[0].refused == 0);
  CHECK(r.records[0].output_tokens == 1);  // the context is full
  CHECK(r.records[1].refused == 1);
  CHECK(r.records[2].refused == 1);
  CHECK(r.records[3].end > 0);
}

TEST_CASE("with steps queued ahead the device never waits, and tokens come as late as they run") {
  EngineConfig c = Config();
  c.max_steps_in_flight = 2;
  const ServeResult r = Run({{.input_len = 10, .output_len = 10}}, c, {.lag = 1});
  CHECK(r.records[0].end == 10);
  CHECK(r.busy_seconds == 10);
}

TEST_CASE("a full pool preempts, and everybody ends") {
  EngineConfig c = Config();
  c.num_blocks = 140;
  c.max_num_seqs = 8;
  std::vector<ServeRequest> requests(20, {.input_len = 200, .output_len = 200});
  c.full_prompt_gate = false;
  const ServeResult r = Run(requests, c);
  CHECK(r.stats.preemptions > 0);
  CHECK(r.mean_kv_use > 0.5);
  for (const ServeRecord& record : r.records) CHECK(record.output_tokens == 200);
}

TEST_CASE("requests that make no sense are refused with their number") {
  const auto message = [](const ServeRequest& request) {
    const std::vector<ServeRequest> requests{{.input_len = 1, .output_len = 1}, request};
    const auto result = Serve(Config(), OneSecond(), requests, {});
    return result.ok() ? std::string("served") : result.status().message();
  };
  CHECK(
      message({.prefix_len = 1, .like = 1, .input_len = 1, .output_len = 1}).find("is like one") !=
      std::string::npos);
  CHECK(message({.after = 1, .input_len = 1, .output_len = 1}) ==
        "request 1 follows one that is not before it");
  CHECK(message({.arrival = -1, .input_len = 1, .output_len = 1}) ==
        "request 1 arrives at no time");
  CHECK(message({.output_len = 1}) == "request 1 has an empty prompt");
  CHECK(message({.input_len = 1}).find("request 1 makes no token") == 0);
  CHECK_FALSE(Serve(Config(), OneSecond(), {}, {.lag = 9}).ok());
}

}  // namespace
}  // namespace octavo::sim
