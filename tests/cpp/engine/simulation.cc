#include "engine/simulation.h"

#include <algorithm>
#include <map>
#include <string>

#include "doctest/doctest.h"
#include "engine/harness.h"
#include "engine/model_copier.h"
#include "engine/random_connector.h"
#include "kv/cache_group.h"

namespace octavo::engine {
namespace {

struct Submitted {
  std::vector<int32_t> prompt;
  SamplingParams params;
  std::string salt;
  Done alone;  // what it gives by itself, without drafts
  std::vector<RetentionRange> retention;
  int32_t decode_priority = kOrdinaryPriority;
};

EngineConfig RandomConfig(std::mt19937& random, const SimulationOptions& options) {
  EngineConfig c = SmallConfig();
  c.block_size = 1 << Below(random, 5);
  c.max_model_len = 24 + Below(random, 60);
  c.max_num_seqs = 1 + Below(random, 12);
  c.max_num_batched_tokens = 1 + Below(random, 50);
  c.enable_prefix_caching = Below(random, 5) > 0;
  c.enable_chunked_prefill = Below(random, 5) > 0;
  if (!c.enable_chunked_prefill) c.max_num_batched_tokens = c.max_model_len;
  if (c.enable_chunked_prefill && Below(random, 3) == 0) {
    c.long_prefill_token_threshold = 1 + Below(random, 10);
  }
  if (options.groups) {
    c.groups = options.groups(random);
    const int32_t intervals[] = {0, -1, 16};
    c.snapshot_interval = intervals[Below(random, 3)];
  }
  c.max_steps_in_flight = std::max(options.lag + 1, 1 + Below(random, 3));
  if (options.drafts) c.max_draft_tokens = 1 + Below(random, 8);
  // From just enough for the longest request to a few times that.
  const int32_t least =
      1 + int32_t(kv::ParentsFor(c.groups, c.block_size, c.max_model_len - 1, kv::AheadOf(c)));
  c.num_blocks = least + Below(random, options.groups ? least : 2 * least);
  c.policy = Below(random, 2) ? SchedulingPolicy::kPriority : SchedulingPolicy::kFcfs;
  c.victim = Below(random, 2) ? VictimPolicy::kLast : VictimPolicy::kCost;
  c.priority_aging_ms = Below(random, 2) ? 10 : 0;
  c.watermark = Below(random, 3) ? 0.0 : 0.2;
  c.full_prompt_gate = Below(random, 2) == 0;
  c.max_overtakes = Below(random, 4);
  c.enable_kv_events = true;
  if (options.connector || options.host_blocks > 0) {
    c.enable_prefix_caching = true;
    c.kv_load_timeout_ms = 50;
    if (Below(random, 2)) c.kv_load_failure_policy = KvLoadFailurePolicy::kRecompute;
  }
  // Drawn apart, so that the lives stay those of before.
  c.sub_block_hits = std::mt19937(options.seed)() % 2 == 0;
  REQUIRE(Validate(c).ok());
  return c;
}

// Some part of the prompt, at any priority, for ever or for a few steps.
void AskToKeep(Submitted& s) {
  std::mt19937 random(uint32_t(s.params.seed));
  if (Below(random, 3) > 0) return;
  const int32_t priorities[] = {0, 20, 35, 50, 100};
  const int32_t length = int32_t(s.prompt.size());
  const int32_t begin = Below(random, length);
  s.retention = {{begin, begin + 1 + Below(random, length - begin), priorities[Below(random, 5)],
                  Below(random, 2) * (1 + Below(random, 50))}};
  s.decode_priority = priorities[Below(random, 5)];
}

Submitted RandomRequest(std::mt19937& random, const EngineConfig& config) {
  Submitted s;
  const int32_t length = 1 + Below(random, config.max_model_len - 1);
  s.prompt = Prompt(length, Below(random, 3), config.vocab_size);  // three families of prefixes
  if (Below(random, 2)) {
    for (int32_t i = Below(random, length); i < length; ++i) {
      s.prompt[i] = Below(random, config.vocab_size);
    }
  }
  SamplingParams& p = s.params;
  p.max_tokens = 1 + Below(random, 30);
  p.temperature = Below(random, 2) ? 0.0f : 1.0f;
  p.seed = random();
  if (Below(random, 3) == 0) p.eos_token_ids = {Below(random, config.vocab_size)};
  if (Below(random, 4) == 0) p.stop_token_ids = {1, 2, 3};
  if (Below(random, 4) == 0) p.min_tokens = Below(random, p.max_tokens + 1);
  if (Below(random, 4) == 0) p.frequency_penalty = 0.5f;
  if (Below(random, 4) == 0) p.bad_words = {{4, 5}, {6}, {7, 8, 9}};
  if (Below(random, 4) == 0) p.logit_bias = {{5, 1.0f}};
  if (Below(random, 6) == 0) p.allowed_token_ids = {1, 10, 20, 30, 40, 49};
  if (Below(random, 5) == 0) p.num_prompt_logprobs = 0;
  if (Below(random, 5) == 0) s.salt = "salt";
  AskToKeep(s);
  return s;
}

Done RunAlone(const EngineConfig& config, const Submitted& s) {
  EngineConfig alone = config;
  alone.num_blocks = (2 + int32_t(config.groups.size())) * config.max_model_len + 2;
  alone.max_num_batched_tokens = config.max_model_len;
  alone.enable_prefix_caching = false;
  alone.max_draft_tokens = 0;
  alone.long_prefill_token_threshold = 0;
  Harness h(alone);
  const RequestId id = h.Add(s.prompt, s.params);
  h.Drain();
  return h.done(id);
}

class Simulation {
 public:
  explicit Simulation(const SimulationOptions& options)
      : options_(options),
        random_(options.seed),
        config_(RandomConfig(random_, options)),
        connector_(config_, options.trouble, options.seed + 2),
        tier_(options.host_blocks > 0 ? MakeTier(options) : nullptr),
        h_(config_, options.connector ? &connector_ : static_cast<KvConnector*>(tier_.get())) {
    h_.model.FailOneIn(options.fail_one_in, options.seed + 1);
    connector_.model = &h_.model;
    if (copier_) copier_->model = &h_.model;
  }

  void Run() {
    int left = options_.requests;
    while (left > 0 || h_.engine.HasUnfinished() || h_.open_steps() > 0) {
      for (int n = Below(random_, 4); n > 0 && left > 0; --n, --left) Submit();
      if (Below(random_, 15) == 0) AbortOne();
      Turn();
      h_.clock.now_us += Below(random_, 5000);
    }
    // Aborted loads and late saves still hold blocks.
    for (int turn = 0; h_.stats().kv_transfers > 0; ++turn) {
      REQUIRE(turn < 1000);
      h_.Begin();
      h_.clock.now_us += 5000;
    }
    CheckDrained();
    for (const auto& [id, s] : submitted_) Compare(RequestId{id}, s);
  }

  EngineStats stats() const { return h_.stats(); }
  const RandomConnector& connector() const { return connector_; }
  const transfer::HostTier* tier() const { return tier_.get(); }

 private:
  std::unique_ptr<transfer::HostTier> MakeTier(const SimulationOptions& options) {
    auto copier = std::make_unique<ModelCopier>(options.slow_copies);
    copier_ = copier.get();
    const int64_t bytes = ModelCopier::kParentBytes;
    auto tier =
        transfer::HostTier::Create(config_, bytes * options.host_blocks, bytes, std::move(copier));
    REQUIRE(tier.ok());
    return std::move(*tier);
  }

  void Submit() {
    Submitted s = RandomRequest(random_, config_);
    s.alone = RunAlone(config_, s);
    const RequestId id = h_.Add(
        {s.prompt, s.params, Below(random_, 5) - 2, s.salt, {s.retention, s.decode_priority, 0}});
    submitted_[Value(id)] = s;
  }

  void AbortOne() {
    std::vector<uint64_t> live;
    for (const auto& [id, s] : submitted_) {
      if (!h_.finished(RequestId{id})) live.push_back(id);
    }
    if (!live.empty()) h_.Abort(RequestId{live[random_() % live.size()]});
  }

  // Guesses for about half of what a step put out: the right tokens, each spoilt now and then.
  void Draft(const std::vector<StepOutput>& outputs) {
    for (const StepOutput& o : outputs) {
      const RequestId id{o.request};
      if (o.finish != 0 || h_.finished(id) || Below(random_, 2)) continue;
      const std::vector<int32_t>& right = submitted_[o.request].alone.tokens;
      const size_t known = h_.done(id).tokens.size();
      std::vector<int32_t> guess(1 + Below(random_, config_.max_draft_tokens));
      for (size_t i = 0; i < guess.size(); ++i) {
        const bool spoilt = known + i >= right.size() || Below(random_, 4) == 0;
        guess[i] = spoilt ? Below(random_, config_.vocab_size) : right[known + i];
      }
      // A row that has drafts in flight takes no new ones; that must change nothing.
      const Status s = h_.engine.SetDrafts(id, guess);
      REQUIRE((s.ok() || s.code() == StatusCode::kFailedPrecondition));
    }
  }

  void Turn() {
    // Asking again after nothing could be planned must be harmless.
    const bool planned = h_.Begin() || h_.Begin();
    if (planned && !options_.late) h_.Execute();
    // Also fewer open steps than the lag allows, now and then.
    const int keep = Below(random_, 8) == 0 ? 0 : options_.lag;
    while (h_.open_steps() > (planned ? keep : 0)) {
      if (Below(random_, 20) == 0) AbortOne();
      if (options_.fail_steps && Below(random_, 25) == 0) {
        while (h_.open_steps() > 0 && Below(random_, 2)) h_.Execute();
        h_.Fail();
        return;
      }
      const std::vector<StepOutput> outputs = h_.Finish();
      if (options_.drafts) Draft(outputs);
    }
    if (!planned && options_.fail_one_in == 0) {
      REQUIRE_MESSAGE((h_.open_steps() > 0 || idle_++ < 1000), "the engine stands still");
    } else {
      idle_ = 0;
    }
  }

  void CheckDrained() {
    const EngineStats s = h_.stats();
    REQUIRE(s.running == 0);
    REQUIRE(s.waiting == 0);
    REQUIRE(s.free_blocks == s.total_blocks);
    REQUIRE(s.kv_slots_allocated == 0);
    const uint64_t ended =
        s.finished_stop + s.finished_length + s.finished_abort + s.finished_error;
    REQUIRE(ended == submitted_.size());
  }

  void Compare(RequestId id, const Submitted& s) {
    CAPTURE(Value(id));
    const Done& got = h_.done(id);
    const Done& alone = s.alone;
    if (got.reason == FinishReason::kAbort || got.reason == FinishReason::kError) {
      REQUIRE(got.tokens.size() <= alone.tokens.size());
      REQUIRE(std::equal(got.tokens.begin(), got.tokens.end(), alone.tokens.begin()));
    } else {
      REQUIRE(got.tokens == alone.tokens);
      REQUIRE(got.reason == alone.reason);
      REQUIRE(got.stop_token == alone.stop_token);
    }
  }

  SimulationOptions options_;
  std::mt19937 random_;
  EngineConfig config_;
  RandomConnector connector_;
  ModelCopier* copier_ = nullptr;  // the tier's
  std::unique_ptr<transfer::HostTier> tier_;
  Harness h_;
  std::map<uint64_t, Submitted> submitted_;
  int idle_ = 0;
};

}  // namespace

void RunMany(SimulationOptions options, uint32_t first_seed, uint32_t count) {
  uint64_t steps = 0;
  uint64_t preemptions = 0;
  uint64_t hits = 0;
  uint64_t accepted = 0;
  uint64_t rejected = 0;
  uint64_t loads = 0;
  uint64_t failures = 0;
  uint64_t saves = 0;
  uint64_t deaths = 0;
  transfer::HostTierStats tier;
  for (uint32_t seed = first_seed; seed < first_seed + count; ++seed) {
    CAPTURE(seed);
    CAPTURE(options.lag);
    options.seed = seed;
    Simulation simulation(options);
    simulation.Run();
    steps += simulation.stats().steps;
    preemptions += simulation.stats().preemptions;
    hits += simulation.stats().prefix_hits;
    accepted += simulation.stats().accepted_tokens;
    rejected += simulation.stats().draft_tokens - simulation.stats().accepted_tokens;
    loads += simulation.connector().loads;
    failures += simulation.connector().failures;
    saves += simulation.connector().held_saves;
    deaths += simulation.stats().kv_connector_deaths;
    if (simulation.tier()) {
      tier.stored_blocks += simulation.tier()->stats().stored_blocks;
      tier.loaded_blocks += simulation.tier()->stats().loaded_blocks;
      tier.evicted_blocks += simulation.tier()->stats().evicted_blocks;
    }
  }
  // A simulation that never reaches the hard parts proves nothing.
  CHECK(steps > 50 * count);
  CHECK(preemptions > count);
  CHECK(hits > count);
  if (options.drafts) CHECK(accepted > 20 * count);
  if (options.drafts) CHECK(rejected > 20 * count);
  if (options.host_blocks > 0) {
    CHECK(tier.stored_blocks > 10 * count);
    CHECK(tier.loaded_blocks > count);
    CHECK(tier.evicted_blocks > count);
  }
  if (!options.connector) return;
  CHECK(loads > (options.trouble.death ? 0 : count));
  CHECK(saves > (options.trouble.death ? 0 : count));
  if (options.trouble.failures && !options.trouble.death) CHECK(failures > 0);
  if (options.trouble.death) CHECK(deaths > 0);
}

}  // namespace octavo::engine
