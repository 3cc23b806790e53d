// The k-th allocation fails, for every k, once alone and once with all after it: of making an
// engine, of every call, and of whole lives. What fails has changed nothing, what can do without
// does, nothing leaks, and every request gets the tokens that it gets otherwise.
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "doctest/doctest.h"
#include "engine/counting_new.h"
#include "engine/harness.h"
#include "engine/spared.h"

namespace octavo::engine {
namespace {

// Refuses its k-th array and, when `sticky`, all after it; counts what is not given back.
class FailingMemory final : public HostMemory {
 public:
  FailingMemory(int64_t k, bool sticky) : until_(k), sticky_(sticky) {}
  void* Allocate(size_t bytes) override {
    if (until_ > 0 && --until_ == 0) {
      if (sticky_) until_ = 1;
      refused = true;
      return nullptr;
    }
    void* const p = SystemMemory().Allocate(bytes);
    held += p != nullptr;
    return p;
  }
  void Free(void* data, size_t bytes) override {
    --held;
    SystemMemory().Free(data, bytes);
  }
  bool refused = false;
  int64_t held = 0;

 private:
  int64_t until_;
  bool sticky_;
};

EngineConfig Everything() {
  EngineConfig c = SmallConfig();
  c.num_blocks = 40;
  c.max_model_len = 64;
  c.max_num_seqs = 4;
  c.enable_kv_events = true;
  c.max_draft_tokens = 3;
  c.prompt_lookup_min = 1;
  c.prompt_lookup_max = 3;
  return c;
}

// One group: hits inside blocks. Several: windows, and images.
EngineConfig Grouped() {
  EngineConfig c = Everything();
  c.groups = {{.block_size = 4, .split = 2},
              {.kind = GroupKind::kSlidingWindow, .block_size = 4, .window = 9}};
  c.num_blocks = 27;
  c.max_num_batched_tokens = 16;
  c.full_prompt_gate = false;
  c.encoder_cache_size = 16;
  return c;
}

bool Names(const std::string& message, std::initializer_list<const char*> parts) {
  return std::any_of(parts.begin(), parts.end(),
                     [&](const char* part) { return message.find(part) != std::string::npos; });
}

TEST_CASE("an engine without memory for an array is refused with its purpose, size and remedy") {
  ManualClock clock;
  const int64_t before = HeldAllocations();
  for (const bool sticky : {false, true}) {
    std::vector<std::string> wanted;
    for (int64_t k = 1;; ++k) {
      FailingMemory memory(k, sticky);
      const auto engine = CoreEngine::Create(Everything(), clock, memory);
      if (!memory.refused) {
        CHECK(engine.ok());
        break;
      }
      REQUIRE_FALSE(engine.ok());
      CHECK(engine.status().code() == StatusCode::kResourceExhausted);
      CHECK(memory.held == 0);
      wanted.push_back(engine.status().message());
    }
    // The map's entries, keys and tokens, the block tables, and a region for each of two open
    // steps.
    REQUIRE(wanted.size() == 6);
    CHECK(wanted[2] ==
          "no memory for the prefix map (640 bytes): lower num_blocks, or free some memory");
    CHECK(wanted[3] ==
          "no memory for the block tables (256 bytes): lower max_num_seqs or max_model_len, or "
          "free some memory");
    CHECK(wanted[5].find("no memory for the step batch (") == 0);
    CHECK(wanted[5].find("max_num_batched_tokens") != std::string::npos);
  }
  CHECK(HeldAllocations() == before);
}

TEST_CASE("an engine without memory for its books is refused, and made when there is some") {
  EngineConfig longer = SmallConfig();  // with requests that can share enough to be counted
  longer.max_model_len = 300;
  for (EngineConfig c : {Everything(), Grouped(), longer}) {
    c.sub_block_hits = c.groups.empty();
    ManualClock clock;
    const int64_t before = HeldAllocations();
    for (const bool sticky : {false, true}) {
      int64_t k = 1;
      for (bool made = false; !made; ++k) {
        FailingMemory memory(0, false);
        {
          FailAllocations failure(k, sticky);
          const auto engine = CoreEngine::Create(c, clock, memory);
          made = failure.refused() == 0;
          REQUIRE(engine.ok() == made);
          if (!made) {
            CHECK(engine.status().code() == StatusCode::kResourceExhausted);
            const char* const remedy = sticky ? "out of memory" : "lower ";
            CHECK(Names(engine.status().message(), {remedy}));
          }
        }
        REQUIRE(memory.held == 0);
        REQUIRE(HeldAllocations() == before);
      }
      CHECK(k > 20);
    }
  }
}

TEST_CASE("a connector is left as it was by an engine that could not be made") {
  ManualClock clock;
  for (int64_t k = 1;; ++k) {
    StoppedConnector connector;
    FailAllocations failure(k, false);
    const auto engine = CoreEngine::Create(Everything(), clock, SystemMemory(), &connector);
    CHECK(connector.stops == 0);
    if (failure.refused() == 0) break;
    REQUIRE_FALSE(engine.ok());
  }
}

// A request with everything that one can carry.
struct Rich {
  explicit Rich(int32_t seed) : prompt(Prompt(30, seed)), params(Greedy(20)) {
    params.temperature = 1;
    params.seed = uint64_t(seed);
    params.presence_penalty = 0.5f;
    params.bad_words = {{1, 2}, {3}};
    params.logit_bias = {{4, 1.0f}};
    params.allowed_token_ids = {5, 6, 7, 10, 11, 12, 13};
    params.stop_token_ids = {8, 9};
  }
  RequestInput input() const {
    return {prompt,         params, 0, "a salt that is too long to lie in a string itself",
            {kept, 50, 20}, items};
  }
  std::vector<int32_t> prompt;
  SamplingParams params;
  std::vector<RetentionRange> kept = {{0, 12, 80, 1000}};
  std::vector<EncoderItem> items;
};

TEST_CASE("a request that found no memory is as if it had never been submitted") {
  for (const bool sticky : {false, true}) {
    for (int64_t k = 1, refused = 1; refused > 0; ++k) {
      // The twin never meets a failure; the first 300 requests make tables grow on the way.
      Harness h(Grouped()), twin(Grouped());
      const int32_t ahead = k % 2 ? 255 : 2;
      for (int32_t i = 0; i < ahead; ++i) {
        h.Add(Prompt(5, i), Greedy(2));
        twin.Add(Prompt(5, i), Greedy(2));
      }
      Rich rich(3);
      rich.items = {{{7, 7}, 4, 6, 6, false}};
      const int64_t before = HeldAllocations();
      {
        FailAllocations failure(k, sticky);
        const auto id = h.engine.AddRequest(rich.input());
        refused = failure.refused();
        REQUIRE(id.ok() == (refused == 0));
        if (refused > 0) REQUIRE(id.status().code() == StatusCode::kResourceExhausted);
      }
      h.engine.CheckInvariants();
      if (refused == 0) break;
      REQUIRE(k < 100);
      CHECK(HeldAllocations() - before < 16);  // room that stays: nothing of the request's
      CHECK(h.stats().waiting == ahead);
      const RequestId id = h.Add(rich.input());
      CHECK(Value(id) == Value(twin.Add(rich.input())));
      h.Drain();
      twin.Drain();
      CHECK(h.done(id).tokens == twin.done(id).tokens);
      CHECK(h.done(id).tokens.size() == 20);
    }
  }
}

TEST_CASE("a host tier that finds no memory leaves the engine as it was") {
  std::vector<std::byte> pool(40 * 64);
  for (const bool sticky : {false, true}) {
    for (int64_t k = 1;; ++k) {
      FailingMemory memory(k % 8, sticky);  // its arrays, and beyond them its books
      ManualClock clock;
      CoreEngine engine(Everything(), clock, SystemMemory());
      const int64_t before = HeldAllocations();
      Status s;
      int64_t refused = 0;
      {
        FailAllocations failure(k, sticky);
        s = engine.AddHostTier(pool.data(), 64, 640, memory);
        refused = failure.refused() + memory.refused;
      }
      if (refused == 0) {
        CHECK(s.ok());
        break;
      }
      REQUIRE(s.code() == StatusCode::kResourceExhausted);
      REQUIRE(engine.host_tier() == nullptr);
      REQUIRE(memory.held == 0);
      REQUIRE(HeldAllocations() - before <= 2);  // the message; room for who may end by its loads
      REQUIRE(engine.AddHostTier(pool.data(), 64, 640).ok());
    }
  }
}

TEST_CASE("a call that has no memory for its error message is still refused") {
  Harness h(Everything());
  h.Add(Prompt(5), Greedy(4));
  const StepPlan* plan = h.Begin();
  FailAllocations failure(1, true);
  const auto refused = [](const Status& s) {
    return s.code() == StatusCode::kResourceExhausted && s.message() == "out of memory";
  };
  const int32_t tokens[] = {1, 2, 3};
  CHECK(refused(h.engine.Abort(RequestId{99})));
  CHECK(refused(h.engine.SetDrafts(RequestId{99}, tokens)));
  CHECK(refused(h.engine.FinishStep(plan->step_id, tokens).status()));
  CHECK(refused(h.engine.FailStep(plan->step_id + 7).status()));
}

// One seeded life: requests, aborts, drafts of the engine's own, events, a reset. Counts the
// allocations inside the engine's calls, fails the k-th of them, and compares with the life in
// which none failed.
class Life {
 public:
  Life(const EngineConfig& config, bool tier, int64_t k, bool sticky)
      : left_(k), sticky_(sticky), connector_(config), h_(config, Connector(config, tier)) {
    connector_.model = &h_.model;
    if (copier_) copier_->model = &h_.model;
  }

  // Tokens by request, in the order of their submission.
  std::vector<std::vector<int32_t>> Run() {
    for (int32_t turn = 0; turn < 24 || h_.engine.HasUnfinished() || open_.size() > 0; ++turn) {
      REQUIRE(turn < 2000);
      if (turn < 24) Submit(turn);
      if (turn == 9) REQUIRE(Call([&] { return h_.engine.Abort(ids_[8]); }).ok());
      Turn();
      h_.clock.now_us += 3000;
      if (turn % 5 == 0) ReadEvents();
    }
    // Late saves still hold blocks.
    while (h_.stats().kv_transfers > 0) Call([&] { return h_.engine.BeginStep(); });
    REQUIRE(Call([&] { return h_.engine.ResetPrefixCache(); }));
    ReadEvents();
    CHECK(stored_ == int64_t(h_.stats().cached_blocks));
    std::vector<std::vector<int32_t>> all;
    for (RequestId id : ids_) all.push_back(tokens_[Value(id)]);
    return all;
  }

  bool failed() const { return left_ <= 0; }
  EngineStats stats() const { return h_.stats(); }
  const transfer::HostTier* tier() const { return tier_.get(); }
  int refusals = 0;

 private:
  KvConnector* Connector(const EngineConfig& config, bool tier) {
    if (!tier) return &connector_;
    auto copier = std::make_unique<SparedCopier>();
    copier_ = copier.get();
    const int64_t bytes = 6 * 16 * int64_t{sizeof(sim::Cell)};  // of blocks of 16 in six groups
    tier_ = std::move(*transfer::HostTier::Create(config, 40 * bytes, bytes, std::move(copier)));
    return tier_.get();
  }

  // Calls the engine while the failure may strike; a refused call is made again, without one.
  template <typename F>
  std::invoke_result_t<F> Call(F&& f) {
    auto result = [&] {
      const CountAllocations counted;
      FailAllocations failure(left_ > 0 ? left_ : 0, sticky_);
      auto r = f();
      if (left_ > 0) left_ -= counted.count();
      return r;
    }();
    h_.engine.CheckInvariants();
    if (IsRefused(result)) {
      ++refusals;
      return f();
    }
    return result;
  }
  static bool IsRefused(const Status& s) { return s.code() == StatusCode::kResourceExhausted; }
  template <typename T>
  static bool IsRefused(const Result<T>& r) {
    return IsRefused(r.status());
  }
  template <typename T>
  static bool IsRefused(const T&) {
    return false;
  }

  void Submit(int32_t turn) {
    Rich rich(turn % 4);
    if (turn % 3 == 1) rich.params = Greedy(16);  // those that look up drafts
    if (turn % 3 == 1) rich.prompt.resize(17);
    if (h_.engine.config().encoder_cache_size > 0 && turn % 2 == 0) {
      rich.items = {{{uint64_t(turn % 4), 1}, 2, 5, 5, false}, {{9, 9}, 10, 4, 4, true}};
    }
    const auto id = Call([&] { return h_.engine.AddRequest(rich.input()); });
    REQUIRE(id.ok());
    ids_.push_back(*id);
    items_[Value(*id)] = rich.items;
  }

  void Turn() {
    const StepPlan* plan = Call([&] { return h_.engine.BeginStep(); });
    if (plan) {
      open_.push_back(*plan);
      std::vector<int32_t> tokens(plan->num_samples);
      std::vector<sim::Encoded> inputs;
      for (const EncoderInput& input : plan->encoder_inputs) {
        const EncoderItem& item = items_.at(input.request).at(size_t(input.item));
        inputs.push_back({item.hash[0], item.embeddings, item.bidirectional});
      }
      h_.model.Encode(*plan, inputs);
      REQUIRE(h_.model.Execute(*plan, tokens).ok());
      sampled_.push_back(tokens);
    } else {
      Take(Call([&] { return h_.engine.TakeEnded(); }));
    }
    if (open_.empty()) return;
    const uint64_t step = open_.front().step_id;
    const std::vector<int32_t> tokens = sampled_.front();
    open_.erase(open_.begin());
    sampled_.erase(sampled_.begin());
    const auto outputs = Call([&] { return h_.engine.FinishStep(step, tokens); });
    REQUIRE(outputs.ok());
    Take(*outputs);
  }

  void Take(std::span<const StepOutput> outputs) {
    for (const StepOutput& o : outputs) {
      CHECK(FinishReason{o.finish} != FinishReason::kError);
      tokens_[o.request].push_back(o.token);
    }
  }

  // What a reader of events has to know: the difference, or, after a loss, all of it.
  void ReadEvents() {
    std::vector<KvEvent> events;
    Call([&] {
      h_.engine.TakeEvents(&events);
      return 0;
    });
    const uint64_t lost = h_.stats().dropped_events;
    if (lost > lost_) {
      const Status s = Call([&] { return h_.engine.CachedContent(&events); });
      REQUIRE(s.ok());
      stored_ = 0;
    }
    lost_ = lost;
    for (const KvEvent& e : events) {
      stored_ += e.kind == KvEventKind::kStored ? 1 : -1;
      if (e.kind == KvEventKind::kCleared) stored_ = 0;
    }
  }

  int64_t left_;
  bool sticky_;
  SparedCopier* copier_ = nullptr;
  SparedConnector connector_;
  std::unique_ptr<transfer::HostTier> tier_;
  Harness h_;
  std::vector<StepPlan> open_;
  std::vector<std::vector<int32_t>> sampled_;
  std::vector<RequestId> ids_;
  std::map<uint64_t, std::vector<int32_t>> tokens_;
  std::map<uint64_t, std::vector<EncoderItem>> items_;
  int64_t stored_ = 0;
  uint64_t lost_ = 0;
};

// Every `stride`-th k, as a life has thousands of allocations, most of them for events.
void FailEach(const EngineConfig& config, bool tier, int64_t stride) {
  std::vector<std::vector<int32_t>> expected;
  {
    Life whole(config, tier, 0, false);
    expected = whole.Run();
    CHECK(whole.stats().preemptions > 0);
    CHECK(whole.stats().kv_loads > 0);
    CHECK(whole.stats().accepted_tokens > 0);
    CHECK((whole.stats().copied_tokens > 0) == config.sub_block_hits);
    CHECK((whole.stats().encoder_hits > 0) == (config.encoder_cache_size > 0));
  }
  for (const bool sticky : {false, true}) {
    int refusals = 0;
    uint64_t dropped = 0;
    for (int64_t k = 1, failed = 1; failed > 0; k += k < 400 ? 1 : stride) {
      CAPTURE(k);
      CAPTURE(sticky);
      const int64_t before = HeldAllocations();
      {
        Life life(config, tier, k, sticky);
        const auto tokens = life.Run();
        failed = life.failed();
        REQUIRE(tokens == expected);
        refusals += life.refusals;
        dropped += life.stats().dropped_events;
      }
      REQUIRE(HeldAllocations() == before);
    }
    CHECK(refusals > 100);
    CHECK(dropped > 20);
  }
}

TEST_CASE("whichever allocation of a life fails, every request gets its tokens: a host tier") {
  EngineConfig c = Everything();
  c.sub_block_hits = true;
  FailEach(c, true, 7);
}

TEST_CASE("whichever allocation of a life fails, every request gets its tokens: a connector") {
  FailEach(Grouped(), false, 7);
}

}  // namespace
}  // namespace octavo::engine
