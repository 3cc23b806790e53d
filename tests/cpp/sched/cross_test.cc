// Encoder-decoder requests in the scheduler: when an item is encoded, who finds it, how long its
// blocks are held. A model whose tokens depend on what it reads of them runs behind every step.
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "engine/harness.h"
#include "sched/scripted_connector.h"
#include "sim/oracle.h"

namespace octavo::sched {
namespace {

using engine::CoreEngine;
using engine::Greedy;
using engine::ManualClock;
using engine::Prompt;
using engine::SmallConfig;

constexpr int32_t kLongest = 10;  // embeddings: three blocks of four
constexpr int kTokens = 0;        // groups
constexpr int kItems = 1;

EngineConfig Config() {
  EngineConfig c = SmallConfig();
  c.groups = {{.block_size = 4},
              {.kind = GroupKind::kCross, .block_size = 4, .encoder_len = kLongest}};
  c.max_num_batched_tokens = 24;
  return c;
}

EncoderItem Cross(uint64_t content, int32_t embeddings = kLongest) {
  return {{content, 9}, 0, 0, embeddings, false, /*cross=*/true};
}

class CrossWorld {
 public:
  explicit CrossWorld(const EngineConfig& c, KvConnector* connector = nullptr)
      : config_(c), engine(c, clock, SystemMemory(), connector), model(c, engine.arena()) {}

  RequestId Add(std::vector<int32_t> prompt, EncoderItem item, int32_t max_tokens = 2,
                std::string salt = {}) {
    sim::RequestSpec spec;
    spec.prompt = std::move(prompt);
    spec.params = Greedy(max_tokens);
    spec.salt = std::move(salt);
    spec.items = {item};
    const auto id = engine.AddRequest(spec.input());
    REQUIRE_MESSAGE(id.ok(), id.status().message());
    specs_[Value(*id)] = std::move(spec);
    return *id;
  }

  // Plans a step; it stays open. False: nothing to do.
  bool Begin() {
    const StepPlan* plan = engine.BeginStep();
    engine.CheckInvariants();
    if (!plan) return false;
    last = *plan;
    Open& step = open_.emplace_back(*plan, std::vector<int32_t>(plan->num_samples));
    std::vector<sim::Encoded> inputs;
    for (const EncoderInput& input : plan->encoder_inputs) {
      CHECK(input.entry == -1);
      const EncoderItem& item = specs_.at(input.request).items[0];
      inputs.push_back({item.hash[0], item.embeddings});
    }
    encodings += int(inputs.size());
    model.Encode(*plan, inputs);
    CHECK(model.Execute(*plan, step.tokens).ok());
    return true;
  }
  void Finish(int32_t spoiled_row = -1) {
    Open step = std::move(open_.front());
    open_.pop_front();
    for (size_t s = 0; s < step.tokens.size(); ++s) {
      if (step.plan.sample_row[s] == spoiled_row) step.tokens[s] = -1;
    }
    Take(engine.FinishStep(step.plan.step_id, step.tokens));
  }
  void Fail() {
    Take(engine.FailStep(open_.front().plan.step_id));
    open_.clear();
  }
  void Drain() {
    while (Begin() || !open_.empty()) {
      while (!open_.empty()) Finish();
    }
  }
  // Whether the request got the tokens that it gets alone.
  bool Right(RequestId id) {
    const sim::RequestSpec& spec = specs_.at(Value(id));
    sim::Oracle oracle(config_, config_.groups, spec);
    for (int32_t token : tokens_[Value(id)]) {
      if (oracle.Next().token != token) return false;
    }
    return int32_t(tokens_[Value(id)].size()) == spec.params.max_tokens;
  }
  EngineStats stats() const { return engine.Stats(); }
  std::vector<int32_t> Entries(int32_t row, int group) const {
    const auto blocks = engine.kv().blocks(RowSlot{last.row_slot[row]}, group);
    return {blocks.begin(), blocks.end()};
  }

  EngineConfig config_;
  ManualClock clock;
  CoreEngine engine;
  sim::HashModel model;
  StepPlan last;
  int encodings = 0;

 private:
  struct Open {
    Open(const StepPlan& p, std::vector<int32_t> t) : plan(p), tokens(std::move(t)) {}
    StepPlan plan;
    std::vector<int32_t> tokens;
  };
  void Take(const Result<std::span<const StepOutput>>& outputs) {
    REQUIRE(outputs.ok());
    for (const StepOutput& o : *outputs) {
      if (o.token >= 0) tokens_[o.request].push_back(o.token);
    }
    engine.CheckInvariants();
  }

  std::map<uint64_t, sim::RequestSpec> specs_;
  std::map<uint64_t, std::vector<int32_t>> tokens_;
  std::deque<Open> open_;
};

TEST_CASE(
    "a cross item is encoded once for all requests that bring it, in its first chunk's step") {
  EngineConfig c = Config();
  c.max_num_batched_tokens = 40;
  CrossWorld w(c);
  const RequestId first = w.Add(Prompt(9, 0), Cross(1));
  const RequestId second = w.Add(Prompt(9, 1), Cross(1));
  REQUIRE(w.Begin());
  REQUIRE(w.last.encoder_inputs.size() == 1);
  CHECK(w.last.encoder_inputs[0].request == Value(first));
  CHECK(w.last.encoder_inputs[0].row == 0);
  CHECK(w.last.num_rows == 2);  // the other finds it in the same step
  CHECK(w.Entries(0, kItems) == w.Entries(1, kItems));
  CHECK(w.last.cross_len[0] == kLongest);
  CHECK(w.last.cross_len[1] == kLongest);
  w.Drain();
  const RequestId third = w.Add(Prompt(9, 2), Cross(1));
  w.Drain();
  CHECK(w.encodings == 1);
  CHECK(w.stats().encoder_queries == 3);
  CHECK(w.stats().encoder_hits == 2);
  CHECK(w.Right(first));
  CHECK(w.Right(second));
  CHECK(w.Right(third));
}

TEST_CASE("the item stands before the prompt: behind another one nothing of it is found") {
  CrossWorld w(Config());
  w.Add(Prompt(20), Cross(1));
  w.Drain();
  w.Add(Prompt(20), Cross(2));
  w.Add(Prompt(20), Cross(1, 7));  // as many embeddings belong to the content
  w.Add(Prompt(20), Cross(1), 2, "salt");
  w.Drain();
  CHECK(w.stats().prefix_hits == 0);
  CHECK(w.encodings == 4);
  const RequestId again = w.Add(Prompt(20), Cross(1));
  w.Drain();
  CHECK(w.stats().prefix_hits == 16);
  CHECK(w.encodings == 4);
  CHECK(w.Right(again));
}

TEST_CASE("prompt and item are hit apart") {
  EngineConfig c = Config();
  c.num_blocks = 8;  // usable: the item's three and four of a request
  c.max_model_len = 17;
  CrossWorld w(c);
  w.Add(Prompt(12, 0), Cross(1), 1);
  w.Drain();
  // Another prompt behind the item: only the prompt is computed.
  const RequestId other = w.Add(Prompt(12, 1), Cross(1), 1);
  w.Drain();
  CHECK(w.encodings == 1);
  CHECK(w.stats().prefix_hits == 0);
  CHECK(w.Right(other));
  // Another item evicts what is least recently used; the first item's blocks were proven by the
  // hit.
  w.Add(Prompt(4, 2), Cross(2), 1);
  w.Drain();
  CHECK(w.encodings == 2);
  const RequestId third = w.Add(Prompt(12, 1), Cross(1), 1);
  w.Drain();
  CHECK(w.Right(third));
}

TEST_CASE("a step encodes no more than its budget, and whoever waits for it is next") {
  EngineConfig c = Config();
  c.encoder_budget = 12;
  c.max_num_batched_tokens = 60;
  CrossWorld w(c);
  std::vector<RequestId> ids;
  for (int32_t i = 0; i < 4; ++i) ids.push_back(w.Add(Prompt(5, i), Cross(uint64_t(i), 6), 4));
  const RequestId large = w.Add(Prompt(5, 4), Cross(4, kLongest), 4);
  for (int32_t i = 5; i < 7; ++i) ids.push_back(w.Add(Prompt(5, i), Cross(uint64_t(i), 2), 4));
  const size_t planned[] = {2, 2, 2, 1};  // 6 + 6, 6 + 6, 10 + 2, 2
  for (const size_t count : planned) {
    REQUIRE(w.Begin());
    CHECK(w.last.encoder_inputs.size() == count);
    w.Finish();
  }
  w.Drain();
  CHECK(w.encodings == 7);
  CHECK(w.Right(large));
  for (const RequestId id : ids) CHECK(w.Right(id));
}

TEST_CASE("its blocks are taken whole at admission, and stay as they are until the request ends") {
  CrossWorld w(Config());
  const RequestId id = w.Add(Prompt(30), Cross(1, 9), 20);
  REQUIRE(w.Begin());
  const std::vector<int32_t> blocks = w.Entries(0, kItems);
  CHECK(blocks.size() == 3);
  w.Finish();
  size_t grown = 0;
  while (w.Begin()) {
    CHECK(w.Entries(0, kItems) == blocks);
    CHECK(w.last.cross_len[0] == 9);
    grown = w.Entries(0, kTokens).size();
    w.Finish();
  }
  CHECK(grown == 13);
  CHECK(w.Right(id));
  CHECK(w.stats().free_blocks == w.stats().total_blocks);
}

TEST_CASE("a request whose item finds no room waits, and encodes when it is admitted") {
  EngineConfig c = Config();
  c.num_blocks = 11;  // ten: one request's five of tokens and three of the item, no second item
  c.max_model_len = 20;
  CrossWorld w(c);
  const RequestId first = w.Add(Prompt(12, 0), Cross(1), 8);
  const RequestId second = w.Add(Prompt(4, 1), Cross(2), 8);
  REQUIRE(w.Begin());
  CHECK(w.last.encoder_inputs.size() == 1);
  CHECK(w.stats().running == 1);
  w.Finish();
  w.Drain();
  CHECK(w.encodings == 2);
  CHECK(w.Right(first));
  CHECK(w.Right(second));
}

TEST_CASE("whoever comes back from preemption encodes again only what is gone") {
  int repeated = 0;
  int found = 0;
  for (int32_t blocks = 17; blocks < 30; ++blocks) {
    EngineConfig c = Config();
    c.num_blocks = blocks;
    c.max_model_len = 48;
    c.full_prompt_gate = false;
    CrossWorld w(c);
    std::vector<RequestId> ids;
    for (int32_t i = 0; i < 4; ++i) ids.push_back(w.Add(Prompt(10, i), Cross(uint64_t(i)), 30));
    w.Drain();
    for (const RequestId id : ids) CHECK(w.Right(id));
    if (w.stats().preemptions == 0) continue;
    repeated += w.encodings - 4;
    found += int(w.stats().encoder_hits);
    CHECK(uint64_t(w.encodings) + w.stats().encoder_hits == 4 + w.stats().preemptions);
  }
  CHECK(repeated > 0);
  CHECK(found > 0);
}

TEST_CASE("an item that a failed step or row was to encode, or has read, is encoded again") {
  CrossWorld w(Config());
  w.Add(Prompt(9, 0), Cross(1));
  REQUIRE(w.Begin());
  w.Fail();
  CHECK(w.stats().cached_blocks == 0);
  w.Add(Prompt(9, 0), Cross(1));
  REQUIRE(w.Begin());
  w.Finish(/*spoiled_row=*/0);
  CHECK(w.stats().cached_blocks == 0);
  CHECK(w.encodings == 2);
  // A first chunk has no sample that would tell what its encoder did.
  w.Add(Prompt(30, 0), Cross(1));
  REQUIRE(w.Begin());
  w.Finish();
  CHECK(w.stats().cached_blocks > 0);
  REQUIRE(w.Begin());
  w.Finish(/*spoiled_row=*/0);
  CHECK(w.encodings == 3);
  const RequestId id = w.Add(Prompt(9, 1), Cross(1));
  w.Drain();
  CHECK(w.encodings == 4);
  CHECK(w.Right(id));
}

TEST_CASE("without a prefix cache every request encodes its own item") {
  EngineConfig c = Config();
  c.enable_prefix_caching = false;
  CrossWorld w(c);
  const RequestId first = w.Add(Prompt(9), Cross(1));
  const RequestId second = w.Add(Prompt(9), Cross(1));
  w.Drain();
  CHECK(w.encodings == 2);
  CHECK(w.stats().encoder_hits == 0);
  CHECK(w.Right(first));
  CHECK(w.Right(second));
}

TEST_CASE("an item has the priority of its prompt's first token") {
  EngineConfig c = Config();
  c.num_blocks = 14;
  c.max_model_len = 40;
  CrossWorld w(c);
  const RetentionRange pinned{0, 1, kMaxPriority, 0};
  const SamplingParams params = Greedy(1);
  const EncoderItem item = Cross(1);
  const std::vector<int32_t> prompt = Prompt(3);
  RequestInput input{prompt, params};
  input.retention.prompt = {&pinned, 1};
  input.encoder_items = {&item, 1};
  REQUIRE(w.engine.AddRequest(input).ok());
  REQUIRE(w.engine.BeginStep() != nullptr);
  REQUIRE(w.engine.FinishStep(1, std::vector<int32_t>{1}).ok());
  for (int32_t i = 1; i < 5; ++i) w.Add(Prompt(20, i), Cross(uint64_t(i) + 1), 1);
  w.Drain();
  CHECK(w.encodings == 4);
  CHECK(w.stats().evictions > 0);
  w.Add(Prompt(5, 9), Cross(1), 1);
  w.Drain();
  CHECK(w.encodings == 4);
}

TEST_CASE("no transfer moves an item, and what is loaded stands behind it") {
  ScriptedConnector connector;
  connector.start = KvStart::kDone;
  connector.tokens = 8;
  EngineConfig c = Config();
  c.num_blocks = 20;
  c.max_model_len = 60;
  CrossWorld w(c, &connector);
  w.Add(Prompt(12, 0), Cross(1), 1);
  w.Drain();
  REQUIRE(connector.loads.size() == 1);
  for (const KvBlock& b : connector.loads[0].blocks) CHECK(b.group == kTokens);
  CHECK(connector.loads[0].blocks.size() == 2);
  CHECK(w.encodings == 1);
  CHECK(w.stats().prefix_hits == 8);
  connector.tokens = 0;
  for (int32_t i = 1; i < 6; ++i) w.Add(Prompt(40, i), Cross(uint64_t(i) + 1), 1);
  w.Drain();
  REQUIRE(connector.saves.size() == 6);
  for (const auto& save : connector.saves) {
    for (const KvBlock& b : save.blocks) CHECK(b.group == kTokens);
  }
  // Evicted were blocks of both groups; only those of tokens were offered.
  CHECK(w.stats().evictions > connector.evicted.size());
}

TEST_CASE("events name an item's blocks, and tell all of them again to whoever starts afresh") {
  EngineConfig c = Config();
  c.enable_kv_events = true;
  c.num_blocks = 10;
  c.max_model_len = 16;
  CrossWorld w(c);
  using Content = std::pair<std::pair<int32_t, uint64_t>, std::vector<int32_t>>;
  std::map<std::pair<int32_t, uint64_t>, std::vector<int32_t>> held;
  for (int32_t i = 0; i < 12; ++i) {
    w.Add(Prompt(5 + i % 3 * 4, i % 2), Cross(uint64_t(i % 5), 5 + i % 5), 2);
    w.Drain();
    std::vector<KvEvent> events;
    w.engine.TakeEvents(&events);
    for (const KvEvent& e : events) {
      const std::pair<int32_t, uint64_t> key{e.group, e.hash[0]};
      if (e.kind == KvEventKind::kRemoved) CHECK(held.erase(key) == 1);
      if (e.kind != KvEventKind::kStored) continue;
      CHECK(held.insert(Content{key, e.tokens}).second);
      if (e.group != kItems) continue;
      REQUIRE(e.tokens.size() == 6);
      CHECK(e.tokens[0] == i % 5);
      CHECK(e.tokens[4] == 5 + i % 5);
      CHECK(e.tokens[5] * 4 == e.start);
    }
    REQUIRE(w.engine.CachedContent(&events).ok());
    CHECK(events.size() == held.size());
    for (const KvEvent& e : events) CHECK(held[{e.group, e.hash[0]}] == e.tokens);
  }
  CHECK(w.stats().evictions > 20);
}

TEST_CASE("cross items that can never be encoded are refused with the numbers") {
  CrossWorld w(Config());
  const SamplingParams params = Greedy(2);
  const std::vector<int32_t> prompt = Prompt(12);
  const auto said = [&](CoreEngine& engine, std::vector<EncoderItem> items) {
    const auto id = engine.AddRequest(RequestInput{prompt, params, 0, {}, {}, items});
    CHECK(engine.Stats().waiting == 0);
    return id.ok() ? std::string() : id.status().message();
  };
  const auto has = [](const std::string& text, const char* part) {
    CHECK_MESSAGE(text.find(part) != std::string::npos, text);
  };
  has(said(w.engine, {}), "encoder_items has 0 cross items");
  has(said(w.engine, {Cross(1), Cross(2)}), "encoder_items has 2 cross items");
  has(said(w.engine, {Cross(1, 11)}), "encoder_items[0] has embeddings=11");
  has(said(w.engine, {Cross(1, 0)}), "encoder_items[0] has embeddings=0");
  has(said(w.engine, {{{1, 1}, 3, 0, 4, false, true}}), "start=3, length=0");
  has(said(w.engine, {Cross(1), {{1, 1}, 0, 4, 4, false}}),
      "encoder_items[1] cannot be kept: encoder_cache_size is 0");
  EngineConfig c = Config();
  c.encoder_budget = 8;
  CrossWorld small(c);
  has(said(small.engine, {Cross(1, 9)}), "embeddings=9: one step encodes at most 8");
  CrossWorld none(SmallConfig());
  has(said(none.engine, {Cross(1)}), "has no cross group");
}

TEST_CASE("a request may bring images besides its cross item; one budget counts both") {
  EngineConfig c = Config();
  c.encoder_cache_size = 14;
  CrossWorld w(c);
  const SamplingParams params = Greedy(2);
  const std::vector<int32_t> prompt = Prompt(20);
  const EncoderItem items[] = {{{5, 5}, 2, 6, 6, false}, Cross(1, 8), {{6, 6}, 10, 4, 4, false}};
  REQUIRE(w.engine.AddRequest(RequestInput{prompt, params, 0, {}, {}, items}).ok());
  const StepPlan* plan = w.engine.BeginStep();
  REQUIRE(plan != nullptr);
  int32_t work = 0;
  for (int step = 0; plan != nullptr && step < 5; ++step) {
    int32_t now = 0;
    for (const EncoderInput& input : plan->encoder_inputs) {
      CHECK((input.entry < 0) == (input.item == 1));
      now += items[input.item].embeddings;
    }
    for (const EncoderSpan& span : plan->encoder_spans) CHECK(span.item != 1);
    CHECK(now == (step == 0 ? 14 : step == 1 ? 4 : 0));  // the chunk stops before the second image
    work += now;
    REQUIRE(w.engine.FinishStep(plan->step_id, std::vector<int32_t>(plan->num_samples, 3)).ok());
    w.engine.CheckInvariants();
    plan = w.engine.BeginStep();
  }
  CHECK(work == 18);
  CHECK_FALSE(w.engine.HasUnfinished());
  // Or an image at the very start of a prompt would wait for ever.
  const EncoderItem large[] = {{{5, 5}, 0, 7, 7, false}, Cross(1, 8)};
  const auto refused = w.engine.AddRequest(RequestInput{prompt, params, 0, {}, {}, large});
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.status().message().find("at most 6 beside the cross item") != std::string::npos);
}

}  // namespace
}  // namespace octavo::sched
