// Images and audio in the scheduler: an executor that believes only what a plan tells it must find
// the right embeddings under every placeholder token.
#include <algorithm>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "engine/harness.h"

namespace octavo::sched {
namespace {

using engine::CoreEngine;
using engine::Greedy;
using engine::ManualClock;
using engine::Prompt;
using engine::SmallConfig;

EngineConfig Config(int32_t cache = 32, int32_t budget = 0) {
  EngineConfig c = SmallConfig();
  c.encoder_cache_size = cache;
  c.encoder_budget = budget;
  c.max_num_batched_tokens = 24;
  return c;
}

EncoderItem Item(uint64_t content, int32_t start, int32_t length, bool bidirectional = false) {
  return {{content, content}, start, length, length, bidirectional};
}

struct Submitted {
  std::vector<int32_t> prompt;
  std::vector<EncoderItem> items;
};

// Keeps what it was told to encode and checks every span of every step.
class EncoderWorld {
 public:
  explicit EncoderWorld(const EngineConfig& c) : config_(c), engine(c, clock, SystemMemory()) {}

  Result<RequestId> Add(const std::vector<int32_t>& prompt, const std::vector<EncoderItem>& items,
                        int32_t max_tokens = 2) {
    const SamplingParams params = Greedy(max_tokens);
    const auto id = engine.AddRequest(RequestInput{prompt, params, 0, {}, {}, items});
    if (id.ok()) requests[Value(*id)] = {prompt, items};
    return id;
  }

  // Plans a step and runs it at once; it stays open. False: nothing to do.
  bool Begin() {
    const StepPlan* plan = engine.BeginStep();
    engine.CheckInvariants();
    if (!plan) return false;
    for (int32_t entry : plan->encoder_evicted) store_.erase(entry);
    int32_t encoded = 0;
    for (const EncoderInput& input : plan->encoder_inputs) {
      const EncoderItem& item = requests.at(input.request).items.at(input.item);
      REQUIRE(store_.count(input.entry) == 0);
      store_[input.entry] = item.hash[0];
      encoded += item.embeddings;
    }
    encodings += int(plan->encoder_inputs.size());
    CHECK(encoded <=
          (config_.encoder_budget ? config_.encoder_budget : config_.encoder_cache_size));
    CheckSpans(*plan);
    open_.push_back({plan->step_id, plan->num_samples});
    return true;
  }

  void Finish(int32_t token = 7) {
    const auto [id, samples] = open_.front();
    open_.pop_front();
    Take(engine.FinishStep(id, std::vector<int32_t>(samples, token)));
  }
  void Fail() {
    Take(engine.FailStep(open_.front().first));
    open_.clear();
  }
  int open() const { return int(open_.size()); }
  void Drain() {
    while (Begin() || open() > 0) {
      while (open() > 0) Finish();
    }
  }
  EngineStats stats() const { return engine.Stats(); }

  EngineConfig config_;
  ManualClock clock;
  CoreEngine engine;
  std::map<uint64_t, Submitted> requests;
  int encodings = 0;
  int errors = 0;

 private:
  void CheckSpans(const StepPlan& plan) {
    size_t next = 0;
    for (int32_t row = 0; row < plan.num_rows; ++row) {
      const int32_t first = plan.query_start[row];
      const int32_t count = plan.query_start[row + 1] - first;
      const int32_t start = plan.position[first];
      const auto& items = requests.at(plan.request[row]).items;
      for (size_t i = 0; i < items.size(); ++i) {
        const int32_t from = std::max(items[i].start, start);
        const int32_t to = std::min(items[i].start + items[i].length, start + count);
        if (from >= to) continue;
        REQUIRE(next < plan.encoder_spans.size());
        const EncoderSpan& span = plan.encoder_spans[next++];
        CHECK(span.row == row);
        CHECK(span.item == int32_t(i));
        CHECK(span.token == first + from - start);
        CHECK(span.count == to - from);
        CHECK(span.offset == from - items[i].start);
        REQUIRE(store_.count(span.entry) == 1);
        CHECK(store_[span.entry] == items[i].hash[0]);
        if (items[i].bidirectional) CHECK(to == items[i].start + items[i].length);
      }
    }
    CHECK(next == plan.encoder_spans.size());
  }
  void Take(const Result<std::span<const StepOutput>>& outputs) {
    REQUIRE(outputs.ok());
    for (const StepOutput& o : *outputs) errors += FinishReason{o.finish} == FinishReason::kError;
    engine.CheckInvariants();
  }

  std::map<int32_t, uint64_t> store_;  // entry -> content
  std::deque<std::pair<uint64_t, int32_t>> open_;
};

TEST_CASE("an image is encoded once for all requests that bring it") {
  EncoderWorld w(Config());
  for (int i = 0; i < 3; ++i) REQUIRE(w.Add(Prompt(10, i), {Item(5, 2, 6)}).ok());
  w.Drain();
  CHECK(w.encodings == 1);
  CHECK(w.stats().encoder_queries == 3);
  CHECK(w.stats().encoder_hits == 2);
  CHECK(w.stats().encoder_embeddings == 6);
}

TEST_CASE("an image twice in one prompt is encoded once") {
  EncoderWorld w(Config());
  REQUIRE(w.Add(Prompt(20), {Item(5, 2, 6), Item(5, 10, 6)}).ok());
  w.Drain();
  CHECK(w.encodings == 1);
}

TEST_CASE("a chunk stops before an image that the step cannot encode") {
  EncoderWorld w(Config(32, 8));
  REQUIRE(w.Add(Prompt(20), {Item(1, 2, 6), Item(2, 10, 6)}).ok());
  REQUIRE(w.Begin());
  CHECK(w.stats().scheduled_tokens == 10);
  w.Finish();
  REQUIRE(w.Begin());
  CHECK(w.stats().scheduled_tokens == 20);
  w.Finish();
  w.Drain();
}

TEST_CASE("no chunk ends inside a span whose tokens see each other") {
  EngineConfig c = Config();
  c.long_prefill_token_threshold = 6;
  EncoderWorld w(c);
  REQUIRE(w.Add(Prompt(40), {Item(1, 4, 12, true), Item(2, 30, 8, true)}).ok());
  REQUIRE(w.Add(Prompt(5, 1), {}).ok());
  w.Drain();  // CheckSpans looks at every chunk
  CHECK(w.encodings == 2);
}

TEST_CASE("a hit that ends inside a span continues to its end") {
  EncoderWorld w(Config());
  // The same first 12 tokens; block 3 differs, so the hit ends at 12, inside the image at [6, 18).
  std::vector<int32_t> prompt = Prompt(22);
  REQUIRE(w.Add(prompt, {Item(1, 6, 12, true)}, 1).ok());
  w.Drain();
  prompt[13] = 3;
  REQUIRE(w.Add(prompt, {Item(1, 6, 12, true)}, 1).ok());
  w.Drain();
  CHECK(w.stats().prefix_hits == 12);
}

TEST_CASE("another image under the same placeholder tokens is another prefix") {
  EncoderWorld w(Config());
  const std::vector<int32_t> prompt = Prompt(20);
  REQUIRE(w.Add(prompt, {Item(1, 4, 8)}, 1).ok());
  w.Drain();
  REQUIRE(w.Add(prompt, {Item(2, 4, 8)}, 1).ok());
  w.Drain();
  CHECK(w.stats().prefix_hits == 4);  // the block before the image
  REQUIRE(w.Add(prompt, {Item(1, 4, 8)}, 1).ok());
  w.Drain();
  CHECK(w.stats().prefix_hits == 20);
  CHECK(w.encodings == 2);
}

TEST_CASE("what lies behind a cached prefix is not encoded") {
  EncoderWorld w(Config());
  const std::vector<int32_t> prompt = Prompt(20);
  REQUIRE(w.Add(prompt, {Item(1, 4, 8)}, 1).ok());
  w.Drain();
  w.engine.ResetEncoderCache();
  CHECK(w.stats().encoder_entries == 0);
  REQUIRE(w.Add(prompt, {Item(1, 4, 8)}, 1).ok());
  w.Drain();
  CHECK(w.encodings == 1);
}

TEST_CASE("what a failed step was to encode is encoded again") {
  EncoderWorld w(Config());
  REQUIRE(w.Add(Prompt(20), {Item(1, 4, 8)}).ok());
  REQUIRE(w.Begin());
  w.Fail();
  CHECK(w.stats().encoder_entries == 0);
  REQUIRE(w.Add(Prompt(20), {Item(1, 4, 8)}).ok());
  w.Drain();
  CHECK(w.encodings == 2);
}

TEST_CASE("what a failed step was to drop is dropped by the next") {
  EncoderWorld w(Config(12));
  REQUIRE(w.Add(Prompt(20), {Item(1, 0, 6), Item(2, 8, 6)}, 1).ok());
  w.Drain();
  REQUIRE(w.Add(Prompt(20, 1), {Item(3, 0, 12)}).ok());
  const StepPlan* plan = w.engine.BeginStep();
  REQUIRE(plan);
  CHECK(plan->encoder_evicted.size() == 2);
  REQUIRE(w.engine.FailStep(plan->step_id).ok());  // before an executor has seen it
  REQUIRE(w.Add(Prompt(20, 2), {Item(4, 0, 6)}).ok());
  plan = w.engine.BeginStep();
  REQUIRE(plan);
  CHECK(plan->encoder_evicted.size() == 2);
  REQUIRE(w.engine.FailStep(plan->step_id).ok());
}

TEST_CASE("what a prompt's first sample did not prove is encoded again") {
  EngineConfig c = Config();
  c.max_num_batched_tokens = 16;
  EncoderWorld w(c);
  REQUIRE(w.Add(Prompt(36), {Item(1, 0, 8), Item(2, 20, 8)}).ok());
  for (int token : {7, 7, -1}) {
    REQUIRE(w.Begin());
    w.Finish(token);
  }
  CHECK(w.errors == 1);
  CHECK(w.stats().encoder_entries == 0);
  CHECK(w.stats().cached_blocks == 0);
  REQUIRE(w.Add(Prompt(36), {Item(1, 0, 8), Item(2, 20, 8)}).ok());
  w.Drain();
  CHECK(w.encodings == 4);
}

TEST_CASE("a request whose embeddings find no room waits for those that use it") {
  EngineConfig c = Config(8, 8);
  c.max_num_batched_tokens = 10;
  EncoderWorld w(c);
  REQUIRE(w.Add(Prompt(14), {Item(1, 0, 8)}).ok());
  REQUIRE(w.Add(Prompt(14, 1), {Item(2, 0, 8)}).ok());
  REQUIRE(w.Begin());
  CHECK(w.stats().running == 1);
  w.Finish();
  w.Drain();
  CHECK(w.encodings == 2);
  CHECK(w.stats().finished_length == 2);
}

TEST_CASE("items that can never be encoded are refused with the numbers") {
  EncoderWorld w(Config(16, 8));
  const auto refused = [&](std::vector<EncoderItem> items, const char* text) {
    const auto id = w.Add(Prompt(30), items);
    REQUIRE_FALSE(id.ok());
    CHECK_MESSAGE(id.status().message().find(text) != std::string::npos, id.status().message());
    CHECK(w.stats().waiting == 0);
  };
  refused({Item(1, 0, 9)}, "encoder_items[0] has embeddings=9");
  refused({Item(1, 28, 4)}, "start=28 and length=4");
  refused({Item(1, -1, 4)}, "start=-1");
  refused({Item(1, 4, 0)}, "length=0");
  refused({Item(1, 4, 8), Item(2, 8, 4)}, "encoder_items[1] has start=8");
  refused({{{1, 1}, 0, 25, 4, true}}, "max_num_batched_tokens=24");
  refused({{{1, 1}, 0, 4, 4, false}, {{1, 1}, 4, 4, 3, false}}, "item 0 with the same hash has 4");
  refused(std::vector<EncoderItem>(1025, Item(1, 0, 1)), "1025 entries");
  REQUIRE(w.Add(Prompt(30), {Item(1, 0, 8)}).ok());
  w.Drain();
  refused({{{1, 1}, 0, 8, 7, false}}, "was submitted with 8");
  EncoderWorld none(SmallConfig());
  const auto id = none.Add(Prompt(30), {Item(1, 0, 8)});
  CHECK(id.status().message().find("encoder_cache_size is 0") != std::string::npos);
}

}  // namespace
}  // namespace octavo::sched
