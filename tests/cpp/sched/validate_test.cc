// Every number a caller controls is refused out of range, by name, with its value.
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "octavo/config.h"
#include "octavo/retention.h"
#include "octavo/sampling_params.h"

namespace octavo {
namespace {

constexpr int32_t kVocab = 100;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

EngineConfig Good() {
  EngineConfig c;
  c.num_blocks = 101;
  c.vocab_size = kVocab;
  c.max_model_len = 1000;
  return c;
}

// The message for a configuration with one thing changed; empty: it is accepted.
std::string Said(const std::function<void(EngineConfig&)>& change) {
  EngineConfig c = Good();
  change(c);
  return Validate(c).message();
}

std::string Said(const std::function<void(SamplingParams&)>& change) {
  SamplingParams p;
  change(p);
  return Validate(p, kVocab).message();
}

using C = EngineConfig;
using P = SamplingParams;

bool Has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_CASE("a good configuration and the default parameters are accepted") {
  CHECK(Said([](C&) {}).empty());
  CHECK(Said([](P&) {}).empty());
}

TEST_CASE("every field of the configuration is checked by name and value") {
  CHECK(Has(Said([](C& c) { c.block_size = 0; }), "block_size=0"));
  CHECK(Has(Said([](C& c) { c.block_size = 512; }), "block_size=512"));
  CHECK(Has(Said([](C& c) { c.block_size = 12; }), "block_size=12"));
  CHECK(Has(Said([](C& c) { c.num_blocks = 1; }), "num_blocks=1"));
  CHECK(Has(Said([](C& c) { c.vocab_size = 0; }), "vocab_size=0"));
  CHECK(Has(Said([](C& c) { c.max_model_len = 1; }), "max_model_len=1"));
  CHECK(Has(Said([](C& c) { c.max_num_seqs = 0; }), "max_num_seqs=0"));
  CHECK(Has(Said([](C& c) { c.max_num_seqs = 70000; }), "max_num_seqs=70000"));
  CHECK(Has(Said([](C& c) { c.max_num_batched_tokens = -5; }), "max_num_batched_tokens=-5"));
  CHECK(Has(Said([](C& c) { c.max_steps_in_flight = 0; }), "max_steps_in_flight=0"));
  CHECK(Has(Said([](C& c) { c.max_steps_in_flight = 4; }), "max_steps_in_flight=4"));
  CHECK(Has(Said([](C& c) { c.max_draft_tokens = -1; }), "max_draft_tokens=-1"));
  CHECK(Has(Said([](C& c) { c.max_draft_tokens = 64; }), "max_draft_tokens=64"));
  CHECK(Has(Said([](C& c) { c.max_queued_requests = 0; }), "max_queued_requests=0"));
  CHECK(Has(Said([](C& c) { c.max_kv_events = 0; }), "max_kv_events=0"));
  CHECK(Has(Said([](C& c) {
              c.sub_block_hits = true;
              c.encoder_cache_size = 8;
            }),
            "sub_block_hits does not go with encoder_cache_size=8"));
  CHECK(Has(Said([](C& c) { c.long_prefill_token_threshold = -1; }),
            "long_prefill_token_threshold=-1"));
  CHECK(Has(Said([](C& c) { c.priority_aging_ms = -1; }), "priority_aging_ms=-1"));
  CHECK(Has(Said([](C& c) { c.max_overtakes = -1; }), "max_overtakes=-1"));
  CHECK(Has(Said([](C& c) { c.watermark = 1.0; }), "watermark=1"));
  CHECK(Has(Said([](C& c) { c.watermark = std::nan(""); }), "watermark=nan"));
}

TEST_CASE("a pool that cannot hold one request of full length is refused with both remedies") {
  const std::string text = Said([](C& c) {
    c.num_blocks = 10;
    c.max_model_len = 146;
  });
  CHECK(Has(text, "max_model_len=146"));
  CHECK(Has(text, "at most 145"));
  CHECK(Has(text, "num_blocks of at least 11"));
  // The last token of a request needs no KV.
  CHECK(Said([](C& c) {
          c.num_blocks = 10;
          c.max_model_len = 145;
        }).empty());
}

TEST_CASE("what a step has to share is a number of tokens, of a row at least") {
  CHECK(Said([](C& c) { c.sharing_min_tokens = int64_t{1} << 40; }).empty());
  CHECK(Has(Said([](C& c) { c.sharing_min_tokens = -1; }), "sharing_min_tokens=-1"));
  CHECK(Has(Said([](C& c) { c.sharing_min_rows = 0; }), "sharing_min_rows=0"));
}

TEST_CASE("prompt lookup needs drafts, and its bounds in order") {
  CHECK(Has(Said([](C& c) { c.prompt_lookup_max = 3; }), "prompt_lookup_max=3"));
  const auto with = [](int32_t least, int32_t most) {
    EngineConfig c = Good();
    c.max_draft_tokens = 4;
    c.prompt_lookup_min = least;
    c.prompt_lookup_max = most;
    return Validate(c).message();
  };
  CHECK(with(0, 0).empty());
  CHECK(with(2, 2).empty());
  CHECK(Has(with(0, 3), "prompt_lookup_min=0"));
  CHECK(Has(with(4, 3), "prompt_lookup_min=4"));
  CHECK(Has(with(1, 65), "prompt_lookup_max=65"));
}

TEST_CASE("drafts beside a recurrent state are refused, because it cannot take them back") {
  const std::string text = Said([](C& c) {
    c.max_draft_tokens = 2;
    c.groups = {GroupSpec{}, GroupSpec{.kind = GroupKind::kState}};
  });
  CHECK(Has(text, "max_draft_tokens=2"));
  CHECK(Has(text, "groups[1]"));
}

TEST_CASE("a cross group says how long its items are, and stands beside one that holds tokens") {
  const auto with = [](std::vector<GroupSpec> groups) {
    return Said([&](C& c) { c.groups = groups; });
  };
  const GroupSpec cross{.kind = GroupKind::kCross, .encoder_len = 200};
  CHECK(with({GroupSpec{}, cross}).empty());
  CHECK(Has(with({GroupSpec{}, {.kind = GroupKind::kCross}}), "groups[1].encoder_len=0"));
  CHECK(Has(with({GroupSpec{.encoder_len = 5}}), "groups[0].encoder_len=5"));
  CHECK(Has(with({GroupSpec{}, {.kind = GroupKind::kCross, .window = 4, .encoder_len = 5}}),
            "groups[1].window=4"));
  CHECK(Has(with({cross}), "all of kind cross"));
  // 63 blocks of tokens and 38 of the longest item, in 100.
  const std::string large = with({GroupSpec{}, {.kind = GroupKind::kCross, .encoder_len = 600}});
  CHECK(Has(large, "max_model_len=1000 does not fit a pool of 100 usable blocks"));
  CHECK(Has(large, "num_blocks of at least 102"));
}

TEST_CASE("without chunked prefill a step must hold a whole prompt, and nothing cuts it") {
  const std::string small = Said([](C& c) {
    c.enable_chunked_prefill = false;
    c.max_num_batched_tokens = 999;
  });
  CHECK(Has(small, "max_num_batched_tokens=999"));
  const std::string cut = Said([](C& c) {
    c.enable_chunked_prefill = false;
    c.long_prefill_token_threshold = 64;
  });
  CHECK(Has(cut, "long_prefill_token_threshold=64"));
}

TEST_CASE("every number of the sampling parameters is checked by name and value") {
  CHECK(Has(Said([](P& p) { p.max_tokens = 0; }), "max_tokens=0"));
  CHECK(Has(Said([](P& p) { p.min_tokens = -1; }), "min_tokens=-1"));
  CHECK(Has(Said([](P& p) { p.min_tokens = 17; }), "min_tokens=17"));
  CHECK(Has(Said([](P& p) { p.temperature = -0.1f; }), "temperature=-0.1"));
  CHECK(Has(Said([](P& p) { p.temperature = kNan; }), "temperature=nan"));
  CHECK(Has(Said([](P& p) { p.temperature = kInf; }), "temperature=inf"));
  CHECK(Has(Said([](P& p) { p.top_k = -2; }), "top_k=-2"));
  CHECK(Has(Said([](P& p) { p.top_p = 0; }), "top_p=0"));
  CHECK(Has(Said([](P& p) { p.top_p = 1.5f; }), "top_p=1.5"));
  CHECK(Has(Said([](P& p) { p.top_p = kNan; }), "top_p=nan"));
  CHECK(Has(Said([](P& p) { p.min_p = 2; }), "min_p=2"));
  CHECK(Has(Said([](P& p) { p.presence_penalty = 3; }), "presence_penalty=3"));
  CHECK(Has(Said([](P& p) { p.frequency_penalty = -3; }), "frequency_penalty=-3"));
  CHECK(Has(Said([](P& p) { p.repetition_penalty = 0; }), "repetition_penalty=0"));
  CHECK(Has(Said([](P& p) { p.num_logprobs = -2; }), "num_logprobs=-2"));
  CHECK(Has(Said([](P& p) { p.num_logprobs = kVocab + 1; }), "num_logprobs=101"));
  CHECK(Has(Said([](P& p) { p.num_prompt_logprobs = 1 << 30; }), "num_prompt_logprobs=1"));
}

TEST_CASE("token ids outside the vocabulary are refused wherever they stand") {
  CHECK(Has(Said([](P& p) { p.eos_token_ids = {kVocab}; }), "eos_token_ids contains 100"));
  CHECK(Has(Said([](P& p) { p.stop_token_ids = {-1}; }), "stop_token_ids contains -1"));
  CHECK(Has(Said([](P& p) { p.allowed_token_ids = {100}; }), "allowed_token_ids contains 100"));
  CHECK(Has(Said([](P& p) { p.logit_bias = {{100, 1.0f}}; }), "logit_bias names token 100"));
  CHECK(Has(Said([](P& p) { p.bad_words = {{1, 100}}; }), "bad_words contains 100"));
  CHECK(Has(Said([](P& p) { p.begin_suppress_tokens = {100}; }),
            "begin_suppress_tokens contains 100"));
}

TEST_CASE("lists have limits, because a step has room for so many edits") {
  CHECK(Has(Said([](P& p) { p.stop_token_ids.assign(kMaxStopTokens + 1, 1); }),
            "stop_token_ids has 129 entries"));
  CHECK(Has(Said([](P& p) { p.eos_token_ids.assign(kMaxEosTokens + 1, 1); }),
            "eos_token_ids has 17 entries"));
  CHECK(Has(Said([](P& p) { p.logit_bias.assign(kMaxLogitBias + 1, {1, 0.0f}); }),
            "logit_bias has 301 entries"));
  CHECK(Has(Said([](P& p) { p.begin_suppress_tokens.assign(kMaxBeginSuppressTokens + 1, 1); }),
            "begin_suppress_tokens has 65 entries"));
  CHECK(Has(Said([](P& p) { p.bad_words.assign(kMaxBadWords + 1, {1}); }),
            "bad_words has 129 entries"));
  CHECK(Has(Said([](P& p) { p.bad_words.assign(2, std::vector<int32_t>(600, 1)); }),
            "bad_words holds 1200 tokens"));
  CHECK(Has(Said([](P& p) { p.bad_words = {{}}; }), "empty word"));
}

std::string Said(RetentionRange range, int32_t decode = 35) {
  return Validate(Retention{{&range, 1}, decode, 0}, 10).message();
}

TEST_CASE("what a request asks to keep lies in its prompt, and its numbers in their ranges") {
  CHECK(Said(RetentionRange{0, 10, 100, kMaxRetentionMs}).empty());
  CHECK(Has(Said(RetentionRange{-1, 5}), "retention[0].begin=-1"));
  CHECK(Has(Said(RetentionRange{5, 5}), "retention[0].end=5"));
  CHECK(Has(Said(RetentionRange{5, 11}), "retention[0].end=11"));
  CHECK(Has(Said(RetentionRange{0, 5, 101}), "retention[0].priority=101"));
  CHECK(Has(Said(RetentionRange{0, 5, 35, -1}), "retention[0].duration_ms=-1"));
  CHECK(Has(Said(RetentionRange{0, 5}, -1), "retention.decode_priority=-1"));
  const RetentionRange overlapping[] = {{0, 5}, {4, 6}};
  CHECK(Has(Validate(Retention{overlapping}, 10).message(), "retention[1].begin=4"));
  const std::vector<RetentionRange> many(65);
  CHECK(Has(Validate(Retention{many}, 10).message(), "retention has 65 ranges"));
}

TEST_CASE("a bias must be a number of ordinary size") {
  CHECK(Has(Said([](P& p) { p.logit_bias = {{1, kNan}}; }), "logit_bias=nan"));
  CHECK(Has(Said([](P& p) { p.logit_bias = {{1, 101.0f}}; }), "logit_bias=101"));
}

}  // namespace
}  // namespace octavo
