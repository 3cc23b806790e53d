// What a planned step says about its samples and scores.
#include <cmath>
#include <map>
#include <vector>

#include "doctest/doctest.h"
#include "engine/harness.h"

namespace octavo::sched {
namespace {

using batch::Column;
using engine::Greedy;
using engine::Harness;
using engine::Prompt;
using engine::SmallConfig;

template <typename T>
T At(Harness& h, const StepPlan* plan, Column column, int32_t index) {
  return h.engine.arena().At<T>(plan->slot, column)[index];
}

// The logit edits of sample `s`, bans as the value -1000.
std::map<int32_t, float> Edits(Harness& h, const StepPlan* plan, int32_t s) {
  std::map<int32_t, float> edits;
  const int32_t end = At<int32_t>(h, plan, Column::kBiasStart, s + 1);
  for (int32_t e = At<int32_t>(h, plan, Column::kBiasStart, s); e < end; ++e) {
    const float value = At<float>(h, plan, Column::kBiasValue, e);
    edits[At<int32_t>(h, plan, Column::kBiasToken, e)] = std::isinf(value) ? -1000 : value;
  }
  return edits;
}

using Map = std::map<int32_t, float>;

TEST_CASE("plain greedy requests leave the sampling columns unwritten") {
  Harness h(SmallConfig());
  h.Add(Prompt(5), Greedy(4));
  CHECK(h.Begin()->all_greedy);
}

TEST_CASE("one request that samples makes the step describe every sample") {
  Harness h(SmallConfig());
  h.Add(Prompt(5), Greedy(4));
  SamplingParams hot = Greedy(4);
  hot.temperature = 0.5f;
  hot.seed = 77;
  h.Add(Prompt(6, 1), hot);
  const StepPlan* plan = h.Begin();
  REQUIRE(plan->num_samples == 2);
  CHECK_FALSE(plan->all_greedy);
  CHECK(plan->temperature[0] == 0);
  CHECK(plan->temperature[1] == 0.5f);
  CHECK(plan->seed[1] == 77);
  CHECK(plan->history_len[0] == 5);
  CHECK(plan->prompt_len[1] == 6);
}

TEST_CASE("anything that changes logits makes a request more than plain greedy") {
  const auto changes = std::vector<void (*)(SamplingParams&)>{
      [](SamplingParams& p) { p.temperature = 1; },
      [](SamplingParams& p) { p.presence_penalty = 1; },
      [](SamplingParams& p) { p.frequency_penalty = 1; },
      [](SamplingParams& p) { p.repetition_penalty = 2; },
      [](SamplingParams& p) { p.logit_bias = {{1, 1.0f}}; },
      [](SamplingParams& p) { p.bad_words = {{1}}; },
      [](SamplingParams& p) { p.allowed_token_ids = {1}; },
      [](SamplingParams& p) { p.min_tokens = 1; },
      [](SamplingParams& p) { p.begin_suppress_tokens = {1}; },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    CAPTURE(i);
    Harness h(SmallConfig());
    SamplingParams p = Greedy(4);
    changes[i](p);
    h.Add(Prompt(5), p);
    CHECK_FALSE(h.Begin()->all_greedy);
  }
}

TEST_CASE("the history holds prompt and output, also of the step before") {
  Harness h(SmallConfig());
  SamplingParams p = Greedy(4);
  p.presence_penalty = 1;
  const std::vector<int32_t> prompt = Prompt(5);
  h.Add(prompt, p);
  h.Begin();
  h.FinishWith({33});
  h.Begin();
  h.FinishWith({44});
  const StepPlan* plan = h.Begin();
  REQUIRE(plan->history_len[0] == 7);
  const auto* history = reinterpret_cast<const int32_t*>(plan->history[0]);
  std::vector<int32_t> expected = prompt;
  expected.insert(expected.end(), {33, 44});
  CHECK(std::vector<int32_t>(history, history + 7) == expected);
}

TEST_CASE("the sample index counts a request's samples, also with one in flight") {
  Harness h(SmallConfig());
  SamplingParams p = Greedy(9);
  p.temperature = 1;
  h.Add(Prompt(5), p);
  CHECK(h.Begin()->sample_index[0] == 0);
  CHECK(h.Begin()->sample_index[0] == 1);
  h.Finish();
  CHECK(h.Begin()->sample_index[0] == 2);
  h.Finish();
  h.Finish();
  CHECK(h.Begin()->sample_index[0] == 3);
}

TEST_CASE("each sample of a row with drafts sees the drafts before it as if they were its own") {
  EngineConfig c = SmallConfig();
  c.max_draft_tokens = 4;
  Harness h(c);
  SamplingParams p = Greedy(9);
  p.temperature = 1;
  p.frequency_penalty = 1;
  p.min_tokens = 3;
  p.eos_token_ids = {2};
  p.bad_words = {{7, 8}};
  const std::vector<int32_t> prompt = Prompt(5);
  const RequestId id = h.Add(prompt, p);
  h.Begin();
  h.FinishWith({33});
  h.SetDrafts(id, {7, 9, 7});
  const StepPlan* plan = h.Begin();
  REQUIRE(plan->num_samples == 4);
  std::vector<int32_t> expected = prompt;
  expected.insert(expected.end(), {33, 7, 9, 7});
  for (int32_t s = 0; s < 4; ++s) {
    CAPTURE(s);
    CHECK(plan->sample_token[s] == s);
    CHECK(plan->sample_row[s] == 0);
    CHECK(plan->sample_index[s] == 1 + s);
    REQUIRE(plan->history_len[s] == 6 + s);
    const auto* history = reinterpret_cast<const int32_t*>(plan->history[s]);
    CHECK(std::equal(history, history + 6 + s, expected.begin()));
  }
  CHECK(Edits(h, plan, 0) == Map{{2, -1000}});
  CHECK(Edits(h, plan, 1) == Map{{2, -1000}, {8, -1000}});
  CHECK(Edits(h, plan, 2) == Map{});
  CHECK(Edits(h, plan, 3) == Map{{8, -1000}});
  CHECK(h.TokenIds(plan) == std::vector<int32_t>{33, 7, 9, 7});
  CHECK(plan->seq_len[0] == 9);
}

TEST_CASE("bias is added in every step") {
  Harness h(SmallConfig());
  SamplingParams p = Greedy(3);
  p.logit_bias = {{7, 1.5f}, {9, -2.0f}};
  h.Add(Prompt(5), p);
  for (int i = 0; i < 3; ++i) {
    const StepPlan* plan = h.Begin();
    CHECK(Edits(h, plan, 0) == Map{{7, 1.5f}, {9, -2.0f}});
    h.FinishWith({7});
  }
}

TEST_CASE("whatever would end the request is banned until min_tokens are out") {
  Harness h(SmallConfig());
  SamplingParams p = Greedy(4);
  p.min_tokens = 2;
  p.eos_token_ids = {3, 4};
  p.stop_token_ids = {5};
  h.Add(Prompt(5), p);
  for (int i = 0; i < 3; ++i) {
    const StepPlan* plan = h.Begin();
    CHECK(Edits(h, plan, 0) == (i < 2 ? Map{{3, -1000}, {4, -1000}, {5, -1000}} : Map{}));
    h.FinishWith({9});
  }
}

TEST_CASE("what must not come first is banned at the first sample alone, also with it in flight") {
  Harness h(SmallConfig());
  SamplingParams p = Greedy(4);
  p.begin_suppress_tokens = {3, 5};
  h.Add(Prompt(5), p);
  CHECK(Edits(h, h.Begin(), 0) == Map{{3, -1000}, {5, -1000}});
  CHECK(Edits(h, h.Begin(), 0) == Map{});
  h.FinishWith({9});
  h.FinishWith({3});
  CHECK(Edits(h, h.Begin(), 0) == Map{});
}

TEST_CASE("an ignored end-of-sequence token is not banned under min_tokens") {
  Harness h(SmallConfig());
  SamplingParams p = Greedy(4);
  p.min_tokens = 2;
  p.eos_token_ids = {3};
  p.ignore_eos = true;
  h.Add(Prompt(5), p);
  CHECK(Edits(h, h.Begin(), 0).empty());
}

TEST_CASE("a bad word is banned at its last token, when the output ends in the others") {
  Harness h(SmallConfig());
  SamplingParams p = Greedy(9);
  p.bad_words = {{6}, {7, 8}, {7, 9, 10}};
  std::vector<int32_t> prompt = Prompt(5);
  prompt.back() = 7;  // the prompt does not count
  h.Add(prompt, p);
  const std::vector<std::pair<int32_t, Map>> steps = {{7, {{6, -1000}}},
                                                      {9, {{6, -1000}, {8, -1000}}},
                                                      {1, {{6, -1000}, {10, -1000}}},
                                                      {2, {{6, -1000}}}};
  for (const auto& [token, expected] : steps) {
    const StepPlan* plan = h.Begin();
    CHECK(Edits(h, plan, 0) == expected);
    h.FinishWith({token});
  }
}

TEST_CASE("allowed tokens are a bit mask over the vocabulary") {
  Harness h(SmallConfig());
  SamplingParams p = Greedy(2);
  p.allowed_token_ids = {0, 31, 32, 49};
  h.Add(Prompt(5), p);
  h.Add(Prompt(5, 1), Greedy(2));
  const StepPlan* plan = h.Begin();
  const auto* mask = reinterpret_cast<const uint32_t*>(At<uint64_t>(h, plan, Column::kMask, 0));
  REQUIRE(mask);
  CHECK(mask[0] == 0x80000001u);
  CHECK(mask[1] == (1u | 1u << 17));
  CHECK(At<uint64_t>(h, plan, Column::kMask, 1) == 0);
}

TEST_CASE("logprobs are asked for per sample and the step knows the most") {
  Harness h(SmallConfig());
  SamplingParams p = Greedy(2);
  p.num_logprobs = 5;
  h.Add(Prompt(5), Greedy(2));
  h.Add(Prompt(5, 1), p);
  const StepPlan* plan = h.Begin();
  CHECK(plan->max_logprobs == 5);
  CHECK(At<int32_t>(h, plan, Column::kNumLogprobs, 0) == -1);
  CHECK(At<int32_t>(h, plan, Column::kNumLogprobs, 1) == 5);
  CHECK(plan->all_greedy);  // logprobs change no logits
}

// How often each position's prompt logprob was asked for; wrong targets count as position -1.
void CountScores(const StepPlan* plan, RequestId id, const std::vector<int32_t>& prompt,
                 std::map<int32_t, int>* seen) {
  for (int32_t r = 0; r < plan->num_rows; ++r) {
    if (plan->request[r] != Value(id)) continue;
    for (int32_t i = 0; i < plan->num_scores; ++i) {
      const int32_t t = plan->score_token[i];
      if (t < plan->query_start[r] || t >= plan->query_start[r + 1]) continue;
      const int32_t p = plan->position[t];
      ++(*seen)[plan->score_target[i] == prompt[p + 1] ? p : -1];
    }
  }
}

std::map<int32_t, int> EachOnce(int32_t count) {
  std::map<int32_t, int> all;
  for (int32_t p = 0; p < count; ++p) all[p] = 1;
  return all;
}

TEST_CASE("prompt logprobs are asked for once a position, across chunks, none for the last") {
  EngineConfig c = SmallConfig();
  c.max_num_batched_tokens = 5;
  Harness h(c);
  SamplingParams p = Greedy(2);
  p.num_prompt_logprobs = 3;
  const std::vector<int32_t> prompt = Prompt(18);
  const RequestId id = h.Add(prompt, p);
  std::map<int32_t, int> seen;
  while (const StepPlan* plan = h.Begin()) {
    CountScores(plan, id, prompt, &seen);
    h.Finish();
  }
  CHECK(seen == EachOnce(17));
}

TEST_CASE("prompt logprobs are complete although the prompt is cached") {
  Harness h(SmallConfig());
  const std::vector<int32_t> prompt = Prompt(18);
  h.Add(prompt, Greedy(2));
  h.Drain();
  SamplingParams p = Greedy(2);
  p.num_prompt_logprobs = 0;
  const RequestId id = h.Add(prompt, p);
  std::map<int32_t, int> seen;
  CountScores(h.Begin(), id, prompt, &seen);
  CHECK(seen == EachOnce(17));
}

TEST_CASE("prompt logprobs are not asked for again after preemption, and the cache is used then") {
  EngineConfig c = SmallConfig();
  c.num_blocks = 8;
  c.max_model_len = 24;
  Harness h(c);
  const RequestId first = h.Add(Prompt(12, 1), Greedy(12));
  SamplingParams p = Greedy(8);
  p.num_prompt_logprobs = 0;
  const std::vector<int32_t> prompt = Prompt(12, 2);
  const RequestId id = h.Add(prompt, p);
  std::map<int32_t, int> seen;
  int32_t resumed_at = -1;
  while (const StepPlan* plan = h.Begin()) {
    CountScores(plan, id, prompt, &seen);
    if (h.stats().preemptions > 0 && resumed_at < 0) {
      for (const auto& row : h.Rows(plan)) {
        if (row.request == id) resumed_at = row.first;
      }
    }
    h.Finish();
  }
  REQUIRE(h.stats().preemptions > 0);
  CHECK(h.finished(first));
  CHECK(seen == EachOnce(11));
  CHECK(resumed_at > 0);
}

TEST_CASE("a token in flight has no id yet, and its row is one ahead of what is known") {
  Harness h(SmallConfig());
  const std::vector<int32_t> prompt = Prompt(3);
  h.Add(prompt, Greedy(5));
  CHECK(h.TokenIds(h.Begin()) == prompt);
  const StepPlan* ahead = h.Begin();
  CHECK(h.TokenIds(ahead) == std::vector<int32_t>{-1});
  CHECK(ahead->position[0] == 3);
  CHECK(ahead->seq_len[0] == 4);
  h.FinishWith({21});
  CHECK(h.TokenIds(h.Begin()) == std::vector<int32_t>{-1});
  h.FinishWith({22});
  h.FinishWith({23});
  CHECK(h.TokenIds(h.Begin()) == std::vector<int32_t>{23});
}

}  // namespace
}  // namespace octavo::sched
