#include "fuzz/engine_input.h"

#include <numeric>

#include "base/check.h"

namespace octavo::fuzz {
namespace {

// Limits of what is built, not of what is validated.
constexpr int32_t kMostBlocks = 2048;
constexpr int32_t kMostTokens = 256;
constexpr int32_t kMostSeqs = 16;
constexpr int32_t kMostVocab = 128;
constexpr int32_t kMostSplits = 64;

GroupSpec ReadGroup(Bytes* bytes) {
  GroupSpec g;
  g.kind = GroupKind(bytes->Below(4));
  g.block_size = bytes->OneIn(16) ? bytes->Int() : 1 << bytes->Below(6);
  const bool windowed = g.kind == GroupKind::kSlidingWindow || g.kind == GroupKind::kChunkedLocal;
  if (windowed || bytes->OneIn(32)) {
    g.window = bytes->IntNear(1, 30);
    if (bytes->OneIn(3)) g.sink = bytes->IntNear(0, 9);
  }
  if (bytes->OneIn(3)) g.split = bytes->IntNear(1, 6);
  return g;
}

void ReadPolicies(Bytes* bytes, EngineConfig* c) {
  const uint64_t flags = bytes->Word(2);
  const auto flag = [flags](int bit) { return (flags >> bit & 1) != 0; };
  c->policy = flag(0) ? SchedulingPolicy::kPriority : SchedulingPolicy::kFcfs;
  c->victim = flag(1) ? VictimPolicy::kLast : VictimPolicy::kCost;
  c->enable_prefix_caching = !flag(2);
  c->sub_block_hits = flag(3);
  c->enable_kv_events = flag(4);
  c->enable_chunked_prefill = !flag(5);
  c->full_prompt_gate = flag(6);
  c->kv_load_failure_policy =
      flag(7) ? KvLoadFailurePolicy::kRecompute : KvLoadFailurePolicy::kFail;
  if (flag(8)) c->snapshot_interval = bytes->IntNear(-1, 20);
  if (flag(9)) c->long_prefill_token_threshold = bytes->IntNear(0, 10);
  if (flag(10)) c->priority_aging_ms = bytes->Number();
  if (flag(11)) c->watermark = bytes->Float();
  if (flag(12)) c->max_overtakes = bytes->IntNear(0, 4);
  if (flag(13)) c->max_queued_requests = bytes->IntNear(1, 6);
  if (flag(14)) c->encoder_cache_size = bytes->IntNear(0, 40);
  if (flag(15)) c->encoder_budget = bytes->IntNear(0, 40);
}

}  // namespace

EngineConfig ReadConfig(Bytes* bytes) {
  EngineConfig c;
  c.hash_seed = 1 + bytes->Below(4);
  c.block_size = bytes->OneIn(32) ? bytes->Int() : 1 << bytes->Below(5);
  c.num_blocks = bytes->IntNear(2, 120);
  c.vocab_size = bytes->IntNear(1, 60);
  c.max_model_len = bytes->IntNear(2, 90);
  c.max_num_seqs = bytes->IntNear(1, 8);
  c.max_num_batched_tokens = bytes->IntNear(1, 99);
  c.max_steps_in_flight = bytes->IntNear(1, kMaxStepsInFlight);
  if (bytes->OneIn(2)) {
    c.max_draft_tokens = bytes->IntNear(0, 6);
    if (bytes->OneIn(2)) {
      c.prompt_lookup_max = bytes->IntNear(0, 4);
      c.prompt_lookup_min = bytes->IntNear(0, 3);
    }
  }
  for (int32_t n = bytes->Below(kMaxCacheGroups + 2); n > 0; --n) {
    c.groups.push_back(ReadGroup(bytes));
  }
  ReadPolicies(bytes, &c);
  if (bytes->OneIn(8)) c.kv_load_timeout_ms = bytes->Number();
  return c;
}

bool IsSmall(const EngineConfig& c) {
  int64_t grid = 1;
  for (const GroupSpec& g : c.groups) grid = std::lcm(grid, int64_t{g.split});
  return c.num_blocks <= kMostBlocks && c.max_model_len <= kMostTokens &&
         c.max_num_batched_tokens <= kMostTokens && c.max_num_seqs <= kMostSeqs &&
         c.vocab_size <= kMostVocab && grid <= kMostSplits;
}

RequestParts::RequestParts(Bytes* bytes, const EngineConfig& config) {
  const int32_t vocab = config.vocab_size;
  // Prompts of one family begin alike.
  prompt_.resize(size_t(bytes->Below(std::min(config.max_model_len + 2, 250))));
  const int32_t family = bytes->Below(4);
  const int32_t own = bytes->Byte();
  for (size_t i = 0; i < prompt_.size(); ++i) {
    prompt_[i] = int32_t((i * size_t(family + 1) + i / 7) % size_t(vocab));
    if (i >= size_t(own)) prompt_[i] = bytes->IntNear(0, vocab - 1);
  }
  priority_ = bytes->OneIn(2) ? bytes->Int() : 0;
  if (bytes->OneIn(4)) salt_ = bytes->Text(3);
  ReadParams(bytes, vocab);
  if (bytes->OneIn(4)) ReadRetention(bytes);
  if (config.encoder_cache_size > 0 || bytes->OneIn(16)) ReadItems(bytes);
}

void RequestParts::ReadParams(Bytes* bytes, int32_t vocab) {
  SamplingParams& p = params_;
  p.max_tokens = bytes->IntNear(0, 40);
  p.seed = bytes->Byte();
  const uint64_t flags = bytes->Word(2);
  const auto flag = [flags](int bit) { return (flags >> bit & 1) != 0; };
  if (flag(0)) p.min_tokens = bytes->IntNear(0, 5);
  if (flag(1)) p.temperature = bytes->Float();
  if (flag(2)) p.top_k = bytes->IntNear(-1, 5);
  if (flag(3)) p.top_p = bytes->Float();
  if (flag(4)) p.min_p = bytes->Float();
  if (flag(5)) p.presence_penalty = bytes->Float();
  if (flag(6)) p.frequency_penalty = bytes->Float();
  if (flag(7)) p.repetition_penalty = bytes->Float();
  if (flag(8)) p.num_logprobs = bytes->IntNear(-1, 4);
  if (flag(9)) p.num_prompt_logprobs = bytes->IntNear(-1, 4);
  p.ignore_eos = flag(10);
  if (flag(11)) ReadLists(bytes, vocab);
}

void RequestParts::ReadLists(Bytes* bytes, int32_t vocab) {
  const auto ids = [&](int32_t most) {
    std::vector<int32_t> list(size_t(bytes->Below(most + 1)));
    for (int32_t& id : list) id = bytes->IntNear(0, vocab - 1);
    return list;
  };
  params_.eos_token_ids = ids(3);
  params_.stop_token_ids = ids(4);
  params_.allowed_token_ids = ids(6);
  if (bytes->OneIn(32)) params_.stop_token_ids.resize(kMaxStopTokens + 1);
  for (int32_t n = bytes->Below(4); n > 0; --n) params_.bad_words.push_back(ids(3));
  for (int32_t n = bytes->Below(4); n > 0; --n) {
    params_.logit_bias.emplace_back(bytes->IntNear(0, vocab - 1), bytes->Float());
  }
}

void RequestParts::ReadRetention(Bytes* bytes) {
  int32_t from = 0;
  for (int32_t n = bytes->Below(4); n > 0; --n) {
    RetentionRange range;
    range.begin = from + bytes->IntNear(0, 5) % 1000;
    range.end = range.begin + bytes->IntNear(1, 20) % 1000;
    range.priority = bytes->IntNear(0, kMaxPriority);
    range.duration_ms = bytes->Number();
    from = range.end;
    kept_.push_back(range);
  }
  decode_priority_ = bytes->IntNear(0, kMaxPriority);
  decode_ms_ = bytes->Number();
}

void RequestParts::ReadItems(Bytes* bytes) {
  int32_t from = 0;
  for (int32_t n = bytes->Below(5); n > 0; --n) {
    EncoderItem item;
    item.hash[0] = item.hash[1] = bytes->Below(5);
    item.start = bytes->OneIn(16) ? bytes->Int() : from + bytes->Below(6);
    item.length = bytes->IntNear(1, 9);
    item.embeddings = bytes->IntNear(1, 9);
    item.bidirectional = bytes->OneIn(3);
    from = item.start % 1000 + item.length % 1000;
    items_.push_back(item);
  }
}

namespace {

void CheckTables(const StepPlan& plan, const EngineConfig& config, int32_t row,
                 std::span<const BlockTableView> tables) {
  for (size_t g = 0; g < tables.size(); ++g) {
    const BlockTableView& table = tables[g];
    const int64_t split = config.groups.empty() ? 1 : config.groups[g].split;
    const int32_t* line = table.data + plan.row_slot[row] * table.row_stride;
    const int32_t last = (plan.seq_len[row] - 1) / table.block_size;
    OCTAVO_CHECK(last < table.row_stride, "a row is longer than its line");
    for (int32_t i = 0; i <= last; ++i) {
      OCTAVO_CHECK(line[i] >= 0 && line[i] < config.num_blocks * split, "no such block");
    }
    OCTAVO_CHECK(line[last] != 0, "a row's newest token has no block");
  }
}

void CheckSamples(const StepPlan& plan, const EngineConfig& config) {
  for (int32_t s = 0; s < plan.num_samples; ++s) {
    OCTAVO_CHECK(plan.sample_token[s] >= 0 && plan.sample_token[s] < plan.num_tokens,
                 "a sample of no token");
    OCTAVO_CHECK(plan.sample_row[s] >= 0 && plan.sample_row[s] < plan.num_rows,
                 "a sample of no row");
    if (plan.all_greedy) continue;
    OCTAVO_CHECK(plan.prompt_len[s] <= plan.history_len[s], "a prompt longer than its request");
    const auto* history = reinterpret_cast<const int32_t*>(plan.history[s]);
    for (int32_t i = 0; i < plan.history_len[s]; ++i) {
      OCTAVO_CHECK(history[i] >= -1 && history[i] < config.vocab_size, "a history of no tokens");
    }
  }
  for (int32_t p = 0; p < plan.num_scores; ++p) {
    OCTAVO_CHECK(plan.score_token[p] >= 0 && plan.score_token[p] < plan.num_tokens,
                 "a score of no token");
    OCTAVO_CHECK(plan.score_target[p] >= 0 && plan.score_target[p] < config.vocab_size,
                 "a score for no token");
  }
}

}  // namespace

void CheckPlan(const StepPlan& plan, const EngineConfig& config,
               std::span<const BlockTableView> tables) {
  OCTAVO_CHECK(plan.num_rows > 0 && plan.num_rows <= config.max_num_seqs, "rows out of range");
  OCTAVO_CHECK(plan.num_tokens <= config.max_num_batched_tokens, "a step exceeds its budget");
  OCTAVO_CHECK(plan.query_start[0] == 0 && plan.query_start[plan.num_rows] == plan.num_tokens,
               "rows do not cover the tokens");
  for (int32_t t = 0; t < plan.num_tokens; ++t) {
    OCTAVO_CHECK(plan.token_id[t] >= -1 && plan.token_id[t] < config.vocab_size, "no such token");
    OCTAVO_CHECK(plan.position[t] >= 0 && plan.position[t] < config.max_model_len,
                 "no such position");
  }
  for (int32_t r = 0; r < plan.num_rows; ++r) {
    OCTAVO_CHECK(plan.query_start[r] < plan.query_start[r + 1], "a row is empty");
    OCTAVO_CHECK(plan.row_slot[r] >= 0 && plan.row_slot[r] < config.max_num_seqs, "no such slot");
    OCTAVO_CHECK(plan.seq_len[r] > 0 && plan.seq_len[r] <= config.max_model_len,
                 "a row longer than the model");
    CheckTables(plan, config, r, tables);
  }
  CheckSamples(plan, config);
}

void EncoderEntries::Follow(const StepPlan& plan) {
  for (int32_t entry : plan.encoder_evicted) kept_.erase(entry);
  for (const EncoderInput& input : plan.encoder_inputs) kept_.insert(input.entry);
  int32_t end = 0;
  for (const EncoderSpan& span : plan.encoder_spans) {
    OCTAVO_CHECK(span.token >= end && span.count > 0 && span.offset >= 0, "spans do not rise");
    end = span.token + span.count;
    OCTAVO_CHECK(end <= plan.num_tokens, "a span beyond the step");
    OCTAVO_CHECK(kept_.count(span.entry) == 1, "a span of an entry that holds nothing");
  }
}

}  // namespace octavo::fuzz
