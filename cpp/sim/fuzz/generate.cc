#include "sim/fuzz/generate.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "kv/cache_group.h"
#include "sim/random.h"

namespace octavo::sim {
namespace {

constexpr int32_t kVocab = 50;
// Parts of a scenario draw from streams of their own, so that a change of one leaves the others.
constexpr uint64_t kConfigStream = 1;
constexpr uint64_t kCheckStream = 2;
constexpr uint64_t kOpStream = 3;
constexpr uint64_t kConnectorStream = 4;
constexpr uint64_t kEncoderStream = 12;
constexpr uint64_t kEventStream = 7;
constexpr uint64_t kAsideStream = 8;
constexpr uint64_t kItemStream = 9;
constexpr uint64_t kNanStream = 15;
constexpr uint64_t kTierStream = 10;
constexpr uint64_t kTimeStream = 14;
constexpr int32_t kContents = 9;  // different images, so that requests share some

GroupSpec RandomGroup(Random& random, GroupKind kind) {
  GroupSpec g;
  g.kind = kind;
  g.block_size = 1 << random.Below(5);
  if (kind == GroupKind::kSlidingWindow || kind == GroupKind::kChunkedLocal) {
    g.window = 1 + random.Below(30);
    g.sink = random.Below(3) ? 0 : random.Below(10);
  }
  return g;
}

std::vector<GroupSpec> RandomGroups(Random& random) {
  // One group of full attention in half of all scenarios: what most models have.
  if (random.OneIn(2)) return {};
  constexpr GroupKind kKinds[] = {GroupKind::kFull, GroupKind::kSlidingWindow,
                                  GroupKind::kChunkedLocal, GroupKind::kState, GroupKind::kLatent};
  std::vector<GroupSpec> groups;
  for (int32_t n = random.Between(1, 4); n > 0; --n) {
    groups.push_back(RandomGroup(random, kKinds[random.Below(5)]));
  }
  constexpr int32_t kSplits[] = {1, 2, 3, 4, 5, 11};
  if (random.Below(3)) {
    for (GroupSpec& g : groups) g.split = kSplits[random.Below(6)];
  }
  return groups;
}

void DrawPolicies(Random& random, EngineConfig* c) {
  c->policy = random.OneIn(2) ? SchedulingPolicy::kPriority : SchedulingPolicy::kFcfs;
  c->victim = random.OneIn(2) ? VictimPolicy::kLast : VictimPolicy::kCost;
  c->priority_aging_ms = random.OneIn(2) ? 10 : 0;
  c->watermark = random.Below(3) ? 0.0 : 0.2;
  c->full_prompt_gate = random.OneIn(2);
  c->max_overtakes = random.Below(4);
  c->enable_prefix_caching = random.Below(5) > 0;
  c->sub_block_hits = random.OneIn(2);
  c->enable_chunked_prefill = random.Below(5) > 0;
  if (!c->enable_chunked_prefill) {
    c->max_num_batched_tokens = c->max_model_len;
  } else if (random.OneIn(3)) {
    c->long_prefill_token_threshold = random.Between(1, 10);
  }
}

void DrawEncoder(uint64_t seed, EngineConfig* c) {
  Random random(Mix(seed, kEncoderStream));
  if (!random.OneIn(3)) return;
  c->sub_block_hits = false;
  c->encoder_cache_size = random.Between(4, 40);
  if (random.OneIn(2)) c->encoder_budget = random.Between(4, c->encoder_cache_size);
  if (MostCross(*c) == 0) return;
  // Room for an image beside the longest item.
  c->encoder_budget = 0;
  c->encoder_budget = MostCross(*c) + random.Between(4, c->encoder_cache_size);
}

// Images at random places of a prompt. Families share them as far as they share tokens.
void DrawItems(const EngineConfig& config, uint64_t seed, int32_t family, RequestSpec* spec) {
  Random random(Mix(seed, kItemStream));
  Random shared(uint64_t(family) + 1);
  const int32_t length = int32_t(spec->prompt.size());
  const bool alike = random.Below(3) > 0;
  int32_t left = std::numeric_limits<int32_t>::max();
  if (!config.enable_chunked_prefill) left = MostEmbeddings(config);  // of a whole prompt
  for (int32_t at = shared.Below(6); at < length; at += shared.Below(12)) {
    const int32_t content = shared.Below(kContents);
    const bool other = !alike && random.OneIn(2);
    const EncoderItem item = MakeItem(config, other ? random.Below(kContents) : content, at);
    if (item.start + item.length > length || item.embeddings > left) break;
    left -= item.embeddings;
    spec->items.push_back(item);
    // Equal tokens over different images: only the images tell such prompts apart.
    std::fill_n(spec->prompt.begin() + at, item.length, 0);
    at += item.length;
  }
}

void DrawLists(Random& random, SamplingParams* p) {
  if (random.OneIn(3)) p->eos_token_ids = {random.Below(kVocab)};
  if (random.OneIn(8)) p->eos_token_ids.push_back(random.Below(kVocab));
  if (random.OneIn(4)) p->stop_token_ids = {1, 2, 3};
  if (random.OneIn(8)) p->ignore_eos = true;
  if (random.OneIn(4)) p->min_tokens = random.Below(p->max_tokens + 1);
  if (random.OneIn(6)) p->frequency_penalty = 0.5f;
  if (random.OneIn(6)) p->bad_words = {{4, 5}, {6}, {7, 8, 9}};
  if (random.OneIn(6)) p->logit_bias = {{5, 1.0f}};
  if (random.OneIn(8)) p->allowed_token_ids = {1, 10, 20, 30, 40, 49};
  if (random.OneIn(6)) p->num_prompt_logprobs = 0;
}

class OpWriter {
 public:
  explicit OpWriter(uint64_t seed, const EngineConfig& config)
      : random_(Mix(seed, kOpStream)),
        most_open_(config.max_steps_in_flight),
        lag_(random_.OneIn(3) ? random_.Below(most_open_) : most_open_ - 1),
        late_(random_.OneIn(3)),
        drafts_(config.max_draft_tokens > 0),
        submit_one_in_(random_.Between(1, 6)),
        fault_one_in_(random_.Between(3, 20)),
        check_(CheckInterval(config.hash_seed)),
        aside_random_(Mix(seed, kAsideStream)) {
    for (size_t i = 0; i < kNumOps; ++i) {
      const OpKind kind{static_cast<uint8_t>(i)};
      if (IsDrawnApart(kind)) {
        const bool can = NeedsImages(kind) ? config.encoder_cache_size > 0 || MostCross(config) > 0
                         : NeedsEvents(kind) ? config.enable_kv_events
                                             : Random(Mix(seed, kNanStream)).OneIn(3);
        if (can && aside_random_.OneIn(2)) aside_.push_back(kind);
      } else if (IsDrawn(kind) && random_.OneIn(2)) {
        faults_.push_back(kind);
      }
    }
    // Moments to strike at are rare for these, so some lives look for them more often.
    if (most_open_ == 1 || !(config.encoder_cache_size > 0 || config.enable_kv_events)) return;
    for (OpKind kind : {OpKind::kFailTwoSteps, OpKind::kWrongOrder, OpKind::kBeginWhenFull}) {
      if (aside_random_.OneIn(2)) aside_.push_back(kind);
    }
  }

  std::vector<Op> Write(int32_t length) {
    while (int32_t(ops_.size()) < length) {
      if (random_.OneIn(submit_one_in_)) {
        for (int32_t n = random_.Between(1, 3); n > 0; --n) Add(OpKind::kSubmit);
      }
      MaybeFault();
      if (drafts_ && random_.OneIn(2)) Add(OpKind::kDraft);
      Turn();
      if (random_.OneIn(check_)) Add(OpKind::kCheck);
    }
    return std::move(ops_);
  }

 private:
  void Add(OpKind kind) { ops_.push_back({kind, random_.Next() >> 32}); }
  void MaybeFault() {
    if (!aside_.empty() && aside_random_.OneIn(fault_one_in_)) {
      const OpKind kind = aside_[size_t(aside_random_.Below(int32_t(aside_.size())))];
      ops_.push_back({kind, aside_random_.Next() >> 32});
    }
    if (faults_.empty() || !random_.OneIn(fault_one_in_)) return;
    const OpKind kind = faults_[size_t(random_.Below(int32_t(faults_.size())))];
    Add(kind);
    // A pause that lasts would leave nothing to see.
    if (kind == OpKind::kPauseNew || kind == OpKind::kPauseAll) pause_ = random_.Between(1, 6);
    // Only an idle engine forgets its cache, and few moments are idle.
    if (kind == OpKind::kAbortStorm && random_.OneIn(2)) Add(OpKind::kResetCache);
  }

  // Plans a step and finishes as many as the lag leaves, now and then all of them.
  void Turn() {
    if (pause_ > 0 && --pause_ == 0) Add(OpKind::kResume);
    Add(OpKind::kBegin);
    open_ = std::min(open_ + 1, most_open_);
    if (!late_) Add(OpKind::kRun);
    const int32_t keep = random_.OneIn(8) ? 0 : lag_;
    for (; open_ > keep; --open_) {
      MaybeFault();
      Add(OpKind::kFinish);
    }
    ops_.push_back({OpKind::kTick, uint64_t(random_.Below(5000))});
  }

  Random random_;
  int32_t most_open_;
  int32_t lag_;
  bool late_;
  bool drafts_;
  int32_t submit_one_in_;
  int32_t fault_one_in_;
  int32_t check_;
  std::vector<OpKind> faults_;
  std::vector<Op> ops_;
  int32_t open_ = 0;
  int32_t pause_ = 0;  // turns until it ends
  Random aside_random_;
  std::vector<OpKind> aside_;  // faults that not every engine knows
};

}  // namespace

EngineConfig MakeConfig(uint64_t seed) {
  Random random(Mix(seed, kConfigStream));
  EngineConfig c;
  c.vocab_size = kVocab;
  c.hash_seed = seed | 1;
  c.block_size = 1 << random.Below(5);
  c.max_model_len = random.Between(24, 83);
  c.max_num_seqs = random.Between(1, 12);
  c.max_num_batched_tokens = random.Between(1, 50);
  c.max_steps_in_flight = random.Between(1, kMaxStepsInFlight);
  DrawPolicies(random, &c);
  c.groups = RandomGroups(random);
  DrawCross(seed, &c);
  constexpr int32_t kIntervals[] = {0, -1, 16};
  if (!c.groups.empty()) c.snapshot_interval = kIntervals[random.Below(3)];
  // From just enough for the longest request to a few times that.
  const int32_t least =
      1 + int32_t(kv::ParentsFor(c.groups, c.block_size, c.max_model_len - 1, kv::AheadOf(c)));
  c.num_blocks = least + random.Below(c.groups.empty() ? 2 * least : least);
  const auto is_state = [](const GroupSpec& g) { return g.kind == GroupKind::kState; };
  if (random.OneIn(2) && std::none_of(c.groups.begin(), c.groups.end(), is_state)) {
    c.max_draft_tokens = random.Between(1, 8);
    if (random.OneIn(2)) c.prompt_lookup_min = c.prompt_lookup_max = random.Between(1, 3);
  }
  c.kv_load_timeout_ms = 50;
  if (random.OneIn(2)) c.kv_load_failure_policy = KvLoadFailurePolicy::kRecompute;
  if (random.OneIn(4)) c.max_queued_requests = random.Between(2, 12);
  c.enable_kv_events = random.OneIn(3);
  Random events(Mix(seed, kEventStream));
  if (c.enable_kv_events && events.OneIn(2)) c.max_kv_events = 1 << events.Below(8);
  DrawEncoder(seed, &c);
  const Status valid = Validate(c);
  OCTAVO_CHECK(valid.ok(), valid.message().c_str());
  return c;
}

bool UsesConnector(uint64_t config_seed, const EngineConfig& config) {
  return config.enable_prefix_caching && Random(Mix(config_seed, kConnectorStream)).OneIn(2);
}

TierChoice ChooseTier(uint64_t config_seed, const EngineConfig& config) {
  Random random(Mix(config_seed, kTierStream));
  TierChoice tier;
  if (!config.enable_prefix_caching || UsesConnector(config_seed, config) || !random.OneIn(3)) {
    return tier;
  }
  int32_t parts = 1;  // of a parent, so that each group's block has room for its cells
  for (const GroupSpec& g : GroupsOf(config)) parts = std::lcm(parts, g.split);
  int32_t largest = 1;
  for (const GroupSpec& g : GroupsOf(config)) largest = std::max(largest, g.block_size);
  tier.parent_bytes = int64_t{parts} * largest * int64_t{sizeof(Cell)};
  tier.bytes = tier.parent_bytes * random.Between(4, 30);
  tier.slow = random.OneIn(2);
  if (random.OneIn(4)) tier.failures = 1 + random.Below(1 << 30);
  return tier;
}

int32_t CheckInterval(uint64_t config_seed) {
  return 1 << Random(Mix(config_seed, kCheckStream)).Between(0, 6);
}

bool EndsRetention(const EngineConfig& config) {
  return Random(Mix(config.hash_seed, kTimeStream)).OneIn(4);
}

int32_t MostEmbeddings(const EngineConfig& config) {
  const int32_t cache = config.encoder_cache_size;
  if (config.encoder_budget == 0) return cache;
  return std::min(cache, config.encoder_budget - MostCross(config));
}

EncoderItem MakeItem(const EngineConfig& config, int32_t content, int32_t start) {
  EncoderItem item;
  item.hash[0] = uint64_t(content) + 1;
  item.hash[1] = 3;
  item.start = start;
  item.length = 1 + content * 5 % 12;
  item.embeddings = 1 + content * 7 % MostEmbeddings(config);  // not one a token
  item.bidirectional = content % 2 == 0 && item.length <= config.max_num_batched_tokens;
  return item;
}

RequestSpec MakeRequest(const EngineConfig& config, uint64_t seed) {
  Random random(seed);
  RequestSpec spec;
  const int32_t length = random.Between(1, config.max_model_len - 1);
  const int32_t family = random.Below(3);
  const int32_t own = random.OneIn(2) ? random.Below(length) : length;  // where families part
  spec.prompt.resize(size_t(length));
  for (int32_t i = 0; i < length; ++i) {
    spec.prompt[size_t(i)] =
        i < own ? (family * 7 + i * (family + 3) + i / 5) % kVocab : random.Below(kVocab);
  }
  spec.params.max_tokens = random.Between(1, 30);
  spec.params.temperature = random.OneIn(2) ? 0.0f : 1.0f;
  spec.params.seed = random.Next();
  if (random.OneIn(2)) DrawLists(random, &spec.params);
  if (random.OneIn(5)) spec.salt = "salt";
  spec.priority = random.Between(-2, 2);
  if (random.OneIn(4)) {
    // Its first tokens are worth more, or less, than others'; for a while, or as long as they last.
    spec.kept.push_back({0, random.Between(1, length), random.Below(kMaxPriority + 1),
                         random.OneIn(2) ? 0 : random.Between(1, 50)});
    spec.decode_priority = random.Below(kMaxPriority + 1);
  }
  if (EndsRetention(config)) {
    for (RetentionRange& range : spec.kept) range.duration_ms = 1 + range.duration_ms;
    spec.decode_duration_ms = 5;
  }
  if (config.encoder_cache_size > 0) DrawItems(config, seed, family, &spec);
  if (MostCross(config) > 0) spec.items.push_back(MakeCrossItem(config, seed));
  return spec;
}

Scenario MakeScenario(uint64_t seed, int32_t length) {
  return {seed, OpWriter(seed, MakeConfig(seed)).Write(length)};
}

}  // namespace octavo::sim
