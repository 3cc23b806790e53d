// Every number that a caller controls is checked here, once, before anything uses it.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "base/strcat.h"
#include "kv/cache_group.h"
#include "octavo/config.h"
#include "octavo/retention.h"
#include "octavo/sampling_params.h"

namespace octavo {
namespace {

Status OutOfRange(const char* field, double value, const char* remedy) {
  return Status::InvalidArgument(StrCat(field, "=", value, " is out of range: ", remedy));
}

Status CheckIds(const char* field, const std::vector<int32_t>& ids, size_t limit,
                int32_t vocab_size) {
  if (ids.size() > limit) {
    return Status::InvalidArgument(
        StrCat(field, " has ", ids.size(), " entries: give at most ", limit));
  }
  for (int32_t id : ids) {
    if (id < 0 || id >= vocab_size) {
      return Status::InvalidArgument(StrCat(
          field, " contains ", id, ": token ids of this model lie in [0, ", vocab_size, ")"));
    }
  }
  return Status::Ok();
}

Status CheckNumbers(const SamplingParams& p, int32_t vocab_size) {
  const struct {
    const char* field;
    double value, low, high;
    const char* remedy;
  } ranges[] = {
      {"max_tokens", double(p.max_tokens), 1, std::numeric_limits<int32_t>::max(),
       "give at least 1"},
      {"min_tokens", double(p.min_tokens), 0, double(p.max_tokens),
       "give a value from 0 to max_tokens"},
      {"temperature", p.temperature, 0, 100, "give a value in [0, 100]; 0 is greedy"},
      {"top_k", double(p.top_k), -1, std::numeric_limits<int32_t>::max(),
       "give -1 or 0 (all tokens) or a positive count"},
      {"min_p", p.min_p, 0, 1, "give a value in [0, 1]"},
      {"presence_penalty", p.presence_penalty, -2, 2, "give a value in [-2, 2]"},
      {"frequency_penalty", p.frequency_penalty, -2, 2, "give a value in [-2, 2]"},
      {"num_logprobs", double(p.num_logprobs), -1, double(vocab_size),
       "give -1 (none) or a count up to the size of the vocabulary"},
      {"num_prompt_logprobs", double(p.num_prompt_logprobs), -1, double(vocab_size),
       "give -1 (none) or a count up to the size of the vocabulary"},
  };
  for (const auto& r : ranges) {
    // Written so that NaN fails.
    if (!(r.value >= r.low && r.value <= r.high)) return OutOfRange(r.field, r.value, r.remedy);
  }
  if (!(p.top_p > 0 && p.top_p <= 1)) {
    return OutOfRange("top_p", p.top_p, "give a value in (0, 1]");
  }
  if (!(p.repetition_penalty > 0 && p.repetition_penalty <= 100)) {
    return OutOfRange("repetition_penalty", p.repetition_penalty, "give a value in (0, 100]");
  }
  return Status::Ok();
}

Status CheckBadWords(const SamplingParams& p, int32_t vocab_size) {
  if (p.bad_words.size() > size_t(kMaxBadWords)) {
    return Status::InvalidArgument(
        StrCat("bad_words has ", p.bad_words.size(), " entries: give at most ", kMaxBadWords));
  }
  size_t total = 0;
  for (const auto& word : p.bad_words) {
    if (word.empty()) return Status::InvalidArgument("bad_words contains an empty word");
    total += word.size();
    if (Status s = CheckIds("bad_words", word, kMaxBadWordTokens, vocab_size); !s.ok()) return s;
  }
  if (total > size_t(kMaxBadWordTokens)) {
    return Status::InvalidArgument(
        StrCat("bad_words holds ", total, " tokens: give at most ", kMaxBadWordTokens));
  }
  return Status::Ok();
}

Status CheckBias(const SamplingParams& p, int32_t vocab_size) {
  if (p.logit_bias.size() > size_t(kMaxLogitBias)) {
    return Status::InvalidArgument(
        StrCat("logit_bias has ", p.logit_bias.size(), " entries: give at most ", kMaxLogitBias));
  }
  for (const auto& [token, value] : p.logit_bias) {
    if (token < 0 || token >= vocab_size) {
      return Status::InvalidArgument(StrCat("logit_bias names token ", token,
                                            ": token ids of this model lie in [0, ", vocab_size,
                                            ")"));
    }
    if (!(value >= -100 && value <= 100)) {
      return OutOfRange("logit_bias", value, "give values in [-100, 100]");
    }
  }
  return Status::Ok();
}

Status CheckWish(const std::string& name, int64_t priority, int64_t duration_ms) {
  if (priority < 0 || priority > kMaxPriority) {
    return OutOfRange((name + "priority").c_str(), double(priority),
                      "give 0 (evicted first) to 100 (pinned); 35 is ordinary");
  }
  if (duration_ms < 0 || duration_ms > kMaxRetentionMs) {
    return OutOfRange((name + "duration_ms").c_str(), double(duration_ms),
                      "give 0 (no end) or up to 1000000000 milliseconds");
  }
  return Status::Ok();
}

constexpr int32_t kMaxSink = 65536;
constexpr int32_t kMaxEncoderLen = 1 << 22;

Status CheckGroup(const GroupSpec& g, size_t index) {
  const std::string name = StrCat("groups[", index, "].");
  const bool windowed = g.kind == GroupKind::kSlidingWindow || g.kind == GroupKind::kChunkedLocal;
  if (g.block_size < 1 || g.block_size > kMaxBlockSize ||
      (g.block_size & (g.block_size - 1)) != 0) {
    return OutOfRange((name + "block_size").c_str(), g.block_size,
                      "give a power of two from 1 to 256");
  }
  if (windowed ? g.window < 1 : g.window != 0) {
    return OutOfRange((name + "window").c_str(), g.window,
                      "give tokens to windows and chunks, 0 to others");
  }
  if (g.sink < 0 || g.sink > kMaxSink || (g.sink > 0 && !windowed)) {
    return OutOfRange((name + "sink").c_str(), g.sink,
                      "give up to 65536 tokens to windows, 0 to others");
  }
  const bool cross = g.kind == GroupKind::kCross;
  if (cross ? g.encoder_len < 1 || g.encoder_len > kMaxEncoderLen : g.encoder_len != 0) {
    return OutOfRange((name + "encoder_len").c_str(), g.encoder_len,
                      "give cross groups 1 to 4194304 embeddings, 0 to others");
  }
  if (g.split < 1 || g.split > kMaxGroupSplit) {
    return OutOfRange((name + "split").c_str(), g.split, "give 1 to 64 blocks a parent");
  }
  return Status::Ok();
}

Status CheckGroups(const EngineConfig& c) {
  if (c.groups.size() > size_t(kMaxCacheGroups)) {
    return Status::InvalidArgument(
        StrCat("groups has ", c.groups.size(), " entries: give at most ", kMaxCacheGroups));
  }
  const bool only_cross =
      !c.groups.empty() && std::all_of(c.groups.begin(), c.groups.end(), [](const GroupSpec& g) {
        return g.kind == GroupKind::kCross;
      });
  if (only_cross) {
    return Status::InvalidArgument(
        "groups are all of kind cross: add one that holds the tokens themselves");
  }
  int64_t grid = 1;
  for (size_t i = 0; i < c.groups.size(); ++i) {
    if (Status s = CheckGroup(c.groups[i], i); !s.ok()) return s;
    grid = std::lcm(grid, int64_t{c.groups[i].split});
  }
  // Every place of the pool has an index of 32 bits.
  if (grid <= kMaxSplitGrid && grid * c.num_blocks > std::numeric_limits<int32_t>::max() / 2) {
    return Status::InvalidArgument(StrCat("num_blocks=", c.num_blocks, " times ", grid,
                                          " places a parent is out of range: give fewer blocks, or "
                                          "splits with a smaller least common multiple"));
  }
  if (grid > kMaxSplitGrid) {
    return Status::InvalidArgument(StrCat("the splits of groups have a least common multiple of ",
                                          grid, ": choose them to stay within ", kMaxSplitGrid));
  }
  return Status::Ok();
}

// A rejected draft is undone by overwriting its KV; a recurrent state has taken it in for good.
Status CheckDrafts(const EngineConfig& c) {
  if (c.max_draft_tokens == 0) return Status::Ok();
  for (size_t i = 0; i < c.groups.size(); ++i) {
    if (c.groups[i].kind != GroupKind::kState) continue;
    return Status::InvalidArgument(
        StrCat("max_draft_tokens=", c.max_draft_tokens, " does not go with groups[", i,
               "], a recurrent state, which cannot take back a rejected draft: give 0"));
  }
  return Status::Ok();
}

// Whether one request of full length fits when it is alone; the last token needs no KV.
Status CheckPool(const EngineConfig& c) {
  const auto parents_for = [&c](int32_t model_len) {
    return kv::ParentsFor(c.groups, c.block_size, model_len - 1, kv::AheadOf(c));
  };
  const int64_t needed = parents_for(c.max_model_len);
  if (needed <= c.num_blocks - 1) return Status::Ok();
  int32_t fits = 1;  // the greatest length that does, found by halves
  for (int32_t beyond = c.max_model_len; beyond - fits > 1;) {
    const int32_t middle = fits + (beyond - fits) / 2;
    (parents_for(middle) <= c.num_blocks - 1 ? fits : beyond) = middle;
  }
  const std::string remedy =
      fits >= 2 ? StrCat("give at most ", fits, ", or ") : std::string("give ");
  return Status::InvalidArgument(
      StrCat("max_model_len=", c.max_model_len, " does not fit a pool of ", c.num_blocks - 1,
             " usable blocks: ", remedy, "num_blocks of at least ", needed + 1));
}

}  // namespace

Status Validate(const Retention& r, int32_t prompt_len) {
  if (r.prompt.size() > size_t(kMaxRetentionRanges)) {
    return Status::InvalidArgument(
        StrCat("retention has ", r.prompt.size(), " ranges: give at most ", kMaxRetentionRanges));
  }
  int32_t before = 0;
  for (size_t i = 0; i < r.prompt.size(); ++i) {
    const RetentionRange& range = r.prompt[i];
    const std::string name = StrCat("retention[", i, "].");
    if (range.begin < before) {
      return OutOfRange((name + "begin").c_str(), range.begin,
                        "give rising ranges that do not overlap");
    }
    if (range.end <= range.begin || range.end > prompt_len) {
      return OutOfRange((name + "end").c_str(), range.end,
                        "give more than begin and at most the prompt's length");
    }
    if (Status s = CheckWish(name, range.priority, range.duration_ms); !s.ok()) return s;
    before = range.end;
  }
  return CheckWish("retention.decode_", r.decode_priority, r.decode_duration_ms);
}

Status Validate(const SamplingParams& p, int32_t vocab_size) {
  if (Status s = CheckNumbers(p, vocab_size); !s.ok()) return s;
  if (Status s = CheckIds("eos_token_ids", p.eos_token_ids, kMaxEosTokens, vocab_size); !s.ok()) {
    return s;
  }
  if (Status s = CheckIds("stop_token_ids", p.stop_token_ids, kMaxStopTokens, vocab_size);
      !s.ok()) {
    return s;
  }
  if (Status s = CheckIds("begin_suppress_tokens", p.begin_suppress_tokens, kMaxBeginSuppressTokens,
                          vocab_size);
      !s.ok()) {
    return s;
  }
  if (Status s = CheckIds("allowed_token_ids", p.allowed_token_ids, size_t(vocab_size), vocab_size);
      !s.ok()) {
    return s;
  }
  if (Status s = CheckBias(p, vocab_size); !s.ok()) return s;
  return CheckBadWords(p, vocab_size);
}

Status Validate(const EngineConfig& c) {
  const int32_t most = std::numeric_limits<int32_t>::max() / 2;
  const struct {
    const char* field;
    int64_t value, low, high;
    const char* remedy;
  } ranges[] = {
      {"block_size", c.block_size, 1, kMaxBlockSize, "give a power of two from 1 to 256"},
      {"num_blocks", c.num_blocks, 2, most, "give at least 2 (the null block and one to use)"},
      {"vocab_size", c.vocab_size, 1, most, "give the size of the model's vocabulary"},
      {"max_model_len", c.max_model_len, 2, most, "give at least 2 tokens"},
      {"max_num_seqs", c.max_num_seqs, 1, 65536, "give 1 to 65536 rows"},
      {"max_num_batched_tokens", c.max_num_batched_tokens, 1, most, "give at least 1 token"},
      {"max_steps_in_flight", c.max_steps_in_flight, 1, kMaxStepsInFlight, "give 1 to 3 steps"},
      {"max_draft_tokens", c.max_draft_tokens, 0, kMaxDraftTokens,
       "give 0 (no drafts) to 63 tokens"},
      {"prompt_lookup_max", c.prompt_lookup_max, 0, c.max_draft_tokens > 0 ? kMaxPromptLookup : 0,
       "give 0 (no drafts of the engine's own), or with max_draft_tokens up to 64"},
      {"prompt_lookup_min", c.prompt_lookup_min, c.prompt_lookup_max > 0, c.prompt_lookup_max,
       "give 1 to prompt_lookup_max, or 0 for both"},
      {"max_kv_events", c.max_kv_events, 1, most, "give at least 1"},
      {"max_queued_requests", c.max_queued_requests, 1, most, "give at least 1"},
      {"long_prefill_token_threshold", c.long_prefill_token_threshold, 0, most,
       "give 0 (no limit) or a number of tokens"},
      {"priority_aging_ms", c.priority_aging_ms, 0, 1'000'000'000,
       "give 0 (never) or milliseconds"},
      {"max_overtakes", c.max_overtakes, 0, most, "give 0 or more"},
      {"sharing_min_tokens", c.sharing_min_tokens, 0, std::numeric_limits<int64_t>::max(),
       "give 0 (no step shares) or a number of tokens"},
      {"sharing_min_rows", c.sharing_min_rows, 1, most, "give at least 1 row"},
      {"kv_load_timeout_ms", c.kv_load_timeout_ms, 0, 1'000'000'000,
       "give 0 (never) or milliseconds"},
      {"encoder_cache_size", c.encoder_cache_size, 0, 1 << 22,
       "give 0 (no images or audio in prompts) to 4194304 embeddings"},
      {"encoder_budget", c.encoder_budget, 0, 1 << 22,
       "give 0 (encoder_cache_size, or the longest encoder_len) to 4194304 embeddings"},
  };
  for (const auto& r : ranges) {
    if (r.value < r.low || r.value > r.high) {
      return OutOfRange(r.field, double(r.value), r.remedy);
    }
  }
  if ((c.block_size & (c.block_size - 1)) != 0) {
    return OutOfRange("block_size", c.block_size, "give a power of two from 1 to 256");
  }
  if (!(c.watermark >= 0 && c.watermark < 1)) {
    return OutOfRange("watermark", c.watermark, "give a share in [0, 1)");
  }
  if (Status s = CheckGroups(c); !s.ok()) return s;
  if (Status s = CheckDrafts(c); !s.ok()) return s;
  if (Status s = CheckPool(c); !s.ok()) return s;
  if (c.sub_block_hits && c.encoder_cache_size > 0) {
    return Status::InvalidArgument(
        StrCat("sub_block_hits does not go with encoder_cache_size=", c.encoder_cache_size,
               ": equal placeholder tokens may stand for different images, switch it off"));
  }
  if (!c.enable_chunked_prefill && c.max_num_batched_tokens < c.max_model_len) {
    return Status::InvalidArgument(
        StrCat("max_num_batched_tokens=", c.max_num_batched_tokens, " is below max_model_len=",
               c.max_model_len, ": without chunked prefill a whole prompt must fit one step"));
  }
  if (!c.enable_chunked_prefill && c.long_prefill_token_threshold > 0) {
    return Status::InvalidArgument(
        StrCat("long_prefill_token_threshold=", c.long_prefill_token_threshold,
               " cuts prompts into chunks: give 0 or set enable_chunked_prefill"));
  }
  return Status::Ok();
}

}  // namespace octavo
