#include "engine/graph_steps.h"

#include <array>
#include <cstring>
#include <vector>

#include "doctest/doctest.h"
#include "engine/counting_new.h"
#include "engine/harness.h"

namespace octavo::engine {
namespace {

constexpr int32_t kRoom = 64;  // entries of a packed column

struct Call {
  char what = 0;  // 'c'opy, 'l'aunch, 'm'ark, 'w'ait
  const void* first = nullptr;
  size_t count = 0;
};

// Writes down what it is asked for, copies at once, and fails where it is told to.
struct Recorder {
  std::array<Call, 16> calls{};
  size_t num_calls = 0;
  char failing = 0;

  int Note(char what, const void* first, size_t count) {
    calls[num_calls++] = {what, first, count};
    return what == failing ? 7 : 0;
  }
  static Recorder& Of(void* context) { return *static_cast<Recorder*>(context); }
  static int Copy(void* context, void* target, const void* source, size_t bytes) {
    std::memcpy(target, source, bytes);
    return Of(context).Note('c', target, bytes);
  }
  static int Launch(void* context, void* graph) { return Of(context).Note('l', graph, 0); }
  static int Mark(void* context, int slot) { return Of(context).Note('m', nullptr, size_t(slot)); }
  static int Wait(void* context, int slot) { return Of(context).Note('w', nullptr, size_t(slot)); }
  static const char* Explain(void*, int error) { return error == 7 ? "seven" : "?"; }

  DeviceQueue queue() { return {this, &Copy, &Launch, &Mark, &Wait, &Explain}; }
};

// Memory on both sides, for two steps.
struct Memory {
  std::array<std::vector<std::byte>, 2> host{std::vector<std::byte>(16384),
                                             std::vector<std::byte>(16384)};
  std::vector<std::byte> device = std::vector<std::byte>(16384);
  std::array<std::array<int32_t, 4096>, 2> host_token;
  std::array<std::array<float, 4096>, 2> host_value;
  std::array<int32_t, 4096> token;
  std::array<float, 4096> value;
  std::array<std::array<int32_t, 64>, 2> landing;

  StagingMemory staging() {
    return {{host[0].data(), host[1].data()},
            {host_token[0].data(), host_token[1].data()},
            {host_value[0].data(), host_value[1].data()},
            {landing[0].data(), landing[1].data()},
            device.data(),
            token.data(),
            value.data()};
  }
};

batch::StepSizes Sizes() { return {{1, 2, 4, 8}, {8}, {8, 64}, 64, 64, 8, 1}; }

batch::PackedLayout LayoutOf(const batch::StepShape& shape) {
  batch::PackedLayout layout;
  layout.shape = shape;
  int64_t at = 16;  // the landing comes first
  for (const batch::ColumnSpec& spec : batch::kColumns) {
    if (!batch::IsPacked(spec.column)) continue;
    layout.at(spec.column) = at;
    at += 8 * (kRoom + 2);
  }
  layout.bytes = at;
  return layout;
}

struct World {
  World() : engine(SmallConfig(), clock, SystemMemory()) {}

  const StepPlan& Begin(const SamplingParams& params, int32_t length) {
    REQUIRE(engine.AddRequest(Prompt(length), params).ok());
    const StepPlan* plan = engine.BeginStep();
    REQUIRE(plan != nullptr);
    return *plan;
  }

  ManualClock clock;
  CoreEngine engine;
  Recorder recorder;
  Memory memory;
  GraphSteps steps{engine.arena(), recorder.queue(), Sizes(), memory.staging(), 8};
};

TEST_CASE(
    "a captured step is its edits, its columns, its graph and a mark, and allocates nothing") {
  World w;
  SamplingParams params = Greedy(5);
  params.temperature = 1;
  params.logit_bias = {{4, 1.5f}, {9, -2.0f}};
  const StepPlan& plan = w.Begin(params, 7);
  CHECK_FALSE(w.steps.Takes(plan));
  int graph = 0;
  w.steps.Add(LayoutOf(Sizes().Of(batch::CountsOf(plan))), &graph);

  const CountAllocations allocations;
  const bool takes = w.steps.Takes(plan);
  const bool launched = w.steps.Launch(plan).ok();
  w.memory.landing[size_t(plan.slot)][0] = 42;
  const auto tokens = w.steps.Wait(plan);
  const int64_t count = allocations.count();
  CHECK(count == 0);
  REQUIRE(takes);
  REQUIRE(launched);
  REQUIRE(tokens.ok());
  CHECK(tokens.value().size() == 1);
  CHECK(tokens.value()[0] == 42);

  const auto& calls = w.recorder.calls;
  REQUIRE(w.recorder.num_calls == 6);
  CHECK((calls[0].what == 'c' && calls[0].first == w.memory.token.data() && calls[0].count == 8));
  CHECK((calls[1].what == 'c' && calls[1].first == w.memory.value.data() && calls[1].count == 8));
  CHECK((calls[2].what == 'c' && calls[2].first == w.memory.device.data()));
  CHECK((calls[3].what == 'l' && calls[3].first == &graph));
  CHECK((calls[4].what == 'm' && calls[4].count == size_t(plan.slot)));
  CHECK((calls[5].what == 'w' && calls[5].count == size_t(plan.slot)));
  CHECK((w.memory.token[0] == 4 && w.memory.value[1] == -2.0f));
  int64_t landing = 0;
  std::memcpy(&landing, w.memory.device.data(), sizeof(landing));
  CHECK(landing == reinterpret_cast<int64_t>(w.memory.landing[size_t(plan.slot)].data()));
}

TEST_CASE("a step of which more is wanted than its tokens is not taken") {
  std::vector<SamplingParams> kinds(4, Greedy(5));
  kinds[0].num_logprobs = 0;
  kinds[1].num_prompt_logprobs = 1;
  kinds[2].presence_penalty = 0.5f;
  kinds[3].allowed_token_ids = {5, 6};
  for (const SamplingParams& params : kinds) {
    World w;
    const StepPlan& plan = w.Begin(params, 7);
    int graph = 0;
    w.steps.Add(LayoutOf(Sizes().Of(batch::CountsOf(plan))), &graph);
    CHECK_FALSE(w.steps.Takes(plan));
  }
}

TEST_CASE("what a queue reports is told in its words") {
  for (const char failing : {'c', 'l', 'm', 'w'}) {
    World w;
    const StepPlan& plan = w.Begin(Greedy(5), 7);
    int graph = 0;
    w.steps.Add(LayoutOf(Sizes().Of(batch::CountsOf(plan))), &graph);
    w.recorder.failing = failing;
    const Status launched = w.steps.Launch(plan);
    CHECK(launched.ok() == (failing == 'w'));
    const Status s = failing == 'w' ? w.steps.Wait(plan).status() : launched;
    CHECK(s.code() == StatusCode::kUnavailable);
    CHECK(s.message().find("seven") != std::string::npos);
  }
}

}  // namespace
}  // namespace octavo::engine
