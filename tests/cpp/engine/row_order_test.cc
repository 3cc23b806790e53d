// In which order the rows of a step stand where requests share prompts.
#include <algorithm>
#include <map>
#include <span>
#include <vector>

#include "base/check.h"
#include "doctest/doctest.h"
#include "engine/counting_new.h"
#include "engine/harness.h"

namespace octavo::engine {
namespace {

EngineConfig Config() {
  EngineConfig c = SmallConfig();
  c.block_size = 16;
  c.num_blocks = 1200;
  c.max_model_len = 600;
  c.max_num_seqs = 40;
  c.max_num_batched_tokens = 8192;
  c.sharing_min_tokens = 1;
  return c;
}

// The prompt of this number, and a token of the request's own.
std::vector<int32_t> Asked(int32_t prompt, int32_t own, int32_t length = 300) {
  std::vector<int32_t> tokens = Prompt(length, prompt);
  tokens.push_back(own);
  return tokens;
}

// All kinds of requests: those that sample, and those that have to see their own tokens first.
SamplingParams Varied(int32_t which) {
  SamplingParams params = Greedy(30 + which % 7);
  if (which % 4 == 1) params.temperature = 0.9f;
  params.seed = uint64_t(which) + 1;
  if (which % 6 == 2) params.presence_penalty = 0.5f;
  return params;
}

struct Asking : Harness {
  using Harness::Harness;

  void Ask(int32_t prompt, const std::vector<int32_t>& tokens, const SamplingParams& params) {
    const RequestId id = Add(tokens, params);
    prompt_of[id] = prompt;
    asked[id] = tokens;
    ids.push_back(id);
  }
  void Ask(int32_t prompt, int32_t max_tokens = 40) {
    Ask(prompt, Asked(prompt, int32_t(ids.size())), Greedy(max_tokens));
  }
  // Of one request after another, until no prompt is left to compute.
  void Settle() {
    do {
      REQUIRE(Step());
    } while (stats().waiting > 0);
    REQUIRE(Step());
  }
  // Requests of the next step's rows, by their place among those that were asked.
  std::vector<int32_t> NextRows() {
    const StepPlan* plan = Begin();
    REQUIRE(plan);
    std::vector<int32_t> rows;
    for (const Row& row : Rows(plan)) {
      rows.push_back(int32_t(std::ranges::find(ids, row.request) - ids.begin()));
    }
    Finish();
    return rows;
  }
  std::vector<int32_t> NextPrompts() {
    std::vector<int32_t> prompts = NextRows();
    for (int32_t& row : prompts) row = prompt_of.at(ids[static_cast<size_t>(row)]);
    return prompts;
  }

  std::vector<RequestId> ids;
  std::map<RequestId, int32_t> prompt_of;
  std::map<RequestId, std::vector<int32_t>> asked;
};

TEST_CASE("requests of three prompts that come in turns stand together while they decode") {
  Asking h(Config());
  for (int32_t i = 0; i < 18; ++i) h.Ask(i % 3);
  h.Ask(7);  // shares with nobody
  h.Ask(0);
  // The step that admits them has them as they came.
  CHECK(std::ranges::is_sorted(h.NextRows()));
  // Who computed a prompt hit none of it, and stands behind those that did.
  const std::vector<int32_t> together = {3,  6,  9, 12, 15, 19, 0,  4,  7, 10,
                                         13, 16, 1, 5,  8,  11, 14, 17, 2, 18};
  for (int32_t step = 0; step < 3; ++step) CHECK(h.NextRows() == together);
}

TEST_CASE("who shares nothing stands behind those that share, as they came") {
  Asking h(Config());
  for (int32_t i = 0; i < 12; ++i) h.Ask(i % 2 == 0 ? 10 + i : 0);
  h.Settle();
  CHECK(h.NextRows() == std::vector<int32_t>{3, 5, 7, 9, 11, 1, 0, 2, 4, 6, 8, 10});
}

TEST_CASE("requests of one prompt stand in the order of their arrival") {
  Asking h(Config());
  for (int32_t i = 0; i < 12; ++i) h.Ask(0);
  h.Settle();
  const std::vector<int32_t> rows = h.NextRows();
  CHECK(rows.size() == 12);
  CHECK(std::ranges::is_sorted(rows));
}

TEST_CASE("three requests of a prompt, and prompts of less than 256 tokens, change no order") {
  for (const int32_t length : {255, 300}) {
    Asking h(Config());
    // Who came first computed the prompt: it hit nothing.
    const int32_t each = length < 256 ? 6 : 4;
    for (int32_t i = 0; i < 2 * each; ++i) h.Ask(i % 2, Asked(i % 2, i, length), Greedy(9));
    h.Settle();
    CHECK(std::ranges::is_sorted(h.NextRows()));
  }
}

TEST_CASE("within a prompt those that go on alike stand together") {
  Asking h(Config());
  // A system prompt, and behind it one of two documents.
  const std::vector<int32_t> system = Prompt(300);
  for (int32_t i = 0; i < 12; ++i) {
    std::vector<int32_t> tokens = system;
    const std::vector<int32_t> document = Prompt(100, 5 + i % 2);
    tokens.insert(tokens.end(), document.begin(), document.end());
    tokens.push_back(i);
    h.Ask(i % 2, tokens, Greedy(40));
  }
  h.Settle();
  // 0 and 1 computed the documents: they share the system prompt, and 1 has hit all of it.
  CHECK(h.NextRows() == std::vector<int32_t>{2, 4, 6, 8, 10, 3, 5, 7, 9, 11, 1, 0});
}

TEST_CASE("whoever is admitted, or whose prompt is not wholly in, stands behind those in order") {
  const std::vector<int32_t> together{2, 4, 6, 8, 10, 0, 3, 5, 7, 9, 11, 1};
  std::vector<int32_t> with_one_more = together;
  with_one_more.push_back(12);
  Asking h(Config());
  for (int32_t i = 0; i < 12; ++i) h.Ask(i % 2);
  h.Settle();
  CHECK(h.NextRows() == together);
  h.Ask(0);
  CHECK(h.NextRows() == with_one_more);
  CHECK(h.NextRows() == std::vector<int32_t>{2, 4, 6, 8, 10, 12, 0, 3, 5, 7, 9, 11, 1});

  EngineConfig c = Config();
  c.max_num_batched_tokens = 100;  // a prompt takes steps
  Asking chunks(c);
  for (int32_t i = 0; i < 12; ++i) chunks.Ask(i % 2);
  chunks.Settle();
  CHECK(chunks.NextRows() == together);
  chunks.Ask(9);
  for (int32_t step = 0; step < 4; ++step) CHECK(chunks.NextRows() == with_one_more);
}

TEST_CASE("rows keep their order behind a prompt that is not wholly in") {
  EngineConfig c = Config();
  c.max_num_batched_tokens = 100;
  c.long_prefill_token_threshold = 20;
  c.policy = SchedulingPolicy::kPriority;
  Asking h(c);
  for (int32_t i = 0; i < 12; ++i) h.Ask(i % 2, /*max_tokens=*/80);
  h.Settle();
  const std::vector<int32_t> together = h.NextRows();
  CHECK_FALSE(std::ranges::is_sorted(together));
  h.ids.push_back(h.Add(Asked(9, 12), Greedy(5), /*priority=*/-1));
  CHECK(h.NextRows().back() == 12);  // was just admitted
  const std::vector<int32_t> behind{12, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  for (int32_t step = 0; step < 10; ++step) CHECK(h.NextRows() == behind);
}

TEST_CASE("whoever ends leaves the others in order, and a prefix that few are left of is none") {
  Asking h(Config());
  for (int32_t i = 0; i < 12; ++i) h.Ask(i % 2, i == 6 ? 4 : 40);
  h.Settle();
  CHECK(h.NextRows() == std::vector<int32_t>{2, 4, 6, 8, 10, 0, 3, 5, 7, 9, 11, 1});
  CHECK(h.NextRows() == std::vector<int32_t>{2, 4, 6, 8, 10, 0, 3, 5, 7, 9, 11, 1});
  CHECK(h.NextRows() == std::vector<int32_t>{2, 4, 8, 10, 0, 3, 5, 7, 9, 11, 1});
  h.Abort(h.ids[1]);
  CHECK(h.NextRows() == std::vector<int32_t>{2, 4, 8, 10, 0, 3, 5, 7, 9, 11});
  h.Abort(h.ids[8]);  // three of its prompt are left that hit it
  CHECK(h.NextRows() == std::vector<int32_t>{3, 5, 7, 9, 11, 0, 2, 4, 10});
  h.Abort(h.ids[9]);
  h.Abort(h.ids[11]);  // and of the other
  CHECK(h.NextRows() == std::vector<int32_t>{0, 2, 3, 4, 5, 7, 10});
}

TEST_CASE("a step shares from so many tokens and rows on, and keeps its order before") {
  const auto shares = [](int64_t tokens, int32_t rows) {
    EngineConfig c = Config();
    c.sharing_min_tokens = tokens;
    c.sharing_min_rows = rows;
    Asking h(c);
    for (int32_t i = 0; i < 12; ++i) h.Ask(i % 2);
    h.Settle();
    const StepPlan* plan = h.Begin();
    const bool ordered = !std::is_sorted(plan->request, plan->request + plan->num_rows);
    CHECK(plan->num_shared_tokens == 10 * 288);  // whatever is made of it
    CHECK(plan->shares == ordered);
    return ordered;
  };
  CHECK(shares(10 * 288, 12));
  CHECK_FALSE(shares(10 * 288 + 1, 12));
  CHECK_FALSE(shares(10 * 288, 13));
  CHECK_FALSE(shares(0, 1));
}

TEST_CASE("a step that shares says so, also where nothing has to move; no other does") {
  Asking h(Config());
  for (int32_t i = 0; i < 8; ++i) h.Ask(0);
  const auto next = [&h] {
    const bool shares = h.Begin()->shares;
    h.Finish();
    return shares;
  };
  CHECK_FALSE(next());  // admits them: nobody decodes
  for (int32_t step = 0; step < 3; ++step) CHECK(next());
  h.Ask(0);
  CHECK(next());
}

TEST_CASE("putting rows in order allocates nothing, also where somebody ends in every step") {
  Asking h(Config());
  for (int32_t i = 0; i < 30; ++i) h.Ask(i % 3, 3 + i);
  h.Settle();
  const std::vector<int32_t> tokens(30, 5);
  int32_t apart = 0;
  const CountAllocations allocations;
  while (const StepPlan* plan = h.engine.BeginStep()) {
    apart += !std::is_sorted(plan->request, plan->request + plan->num_rows);
    const std::span<const int32_t> sampled(tokens.data(), size_t(plan->num_samples));
    OCTAVO_CHECK(h.engine.FinishStep(plan->step_id, sampled).ok(), "a step did not finish");
  }
  CHECK(allocations.count() == 0);
  CHECK(apart > 10);
}

TEST_CASE("rows that stand together get their own tokens, with steps in flight and preemption") {
  for (const bool crowded : {false, true}) {
    EngineConfig c = Config();
    if (crowded) c.num_blocks = 75;
    Asking h(c);
    for (int32_t i = 0; i < 24; ++i) h.Ask(i % 3, Asked(i % 3, i), Varied(i));
    int32_t apart = 0;
    while (h.engine.HasUnfinished() || h.open_steps() > 0) {
      const StepPlan* plan = h.Begin();
      if (plan) {
        const std::vector<Row> rows = h.Rows(plan);
        const auto place = [&](const Row& row) { return std::ranges::find(h.ids, row.request); };
        apart += !std::ranges::is_sorted(rows, {}, place);
      }
      while (h.open_steps() > (plan ? 1 : 0)) {
        const auto outputs = h.Finish();
        const auto sample = [](const StepOutput& o) { return o.sample; };
        CHECK(std::ranges::is_sorted(outputs, {}, sample));
      }
    }
    CHECK(apart > 10);
    CHECK((h.stats().preemptions > 0) == crowded);
    for (size_t i = 0; i < h.ids.size(); ++i) {
      Harness alone(Config());
      const RequestId id = alone.Add(h.asked.at(h.ids[i]), Varied(int32_t(i)));
      alone.Drain();
      CHECK(h.done(h.ids[i]).tokens == alone.done(id).tokens);
    }
  }
}

}  // namespace
}  // namespace octavo::engine
