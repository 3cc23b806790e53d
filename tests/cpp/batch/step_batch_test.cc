#include "batch/step_batch.h"

#include <vector>

#include "doctest/doctest.h"

namespace octavo::batch {
namespace {

EngineConfig Config() {
  EngineConfig c;
  c.max_num_seqs = 4;
  c.max_num_batched_tokens = 16;
  return c;
}

template <typename T>
std::vector<T> Take(const T* data, int32_t count) {
  return {data, data + count};
}

template <typename T>
std::vector<T> ColumnOf(const StepBatch& batch, const StepPlan& plan, Column column,
                        int32_t count) {
  return Take(batch.arena().At<T>(plan.slot, column), count);
}

TEST_CASE("rows are contiguous runs of tokens") {
  StepBatch batch(Config());
  batch.Open(6, {});
  const std::vector<int32_t> a{10, 11, 12, 13, 14};
  batch.AddRow(RequestId{100}, RowSlot{2}, a.data(), 5, 1, 3);
  batch.AddToken(RequestId{200}, RowSlot{0}, 42, 7);
  const StepPlan& plan = *batch.Close();
  CHECK(plan.step_id == 6);
  CHECK(plan.slot == 0);
  CHECK(plan.num_tokens == 4);
  CHECK(plan.num_rows == 2);
  CHECK(plan.max_query_len == 3);
  CHECK(plan.max_seq_len == 8);
  CHECK(Take(plan.token_id, 4) == std::vector<int32_t>{11, 12, 13, 42});
  CHECK(Take(plan.position, 4) == std::vector<int32_t>{1, 2, 3, 7});
  CHECK(Take(plan.query_start, 3) == std::vector<int32_t>{0, 3, 4});
  CHECK(Take(plan.row_slot, 2) == std::vector<int32_t>{2, 0});
  CHECK(Take(plan.seq_len, 2) == std::vector<int32_t>{4, 8});
  CHECK(Take(plan.request, 2) == std::vector<uint64_t>{100, 200});
}

TEST_CASE("tokens that are not known yet are -1") {
  StepBatch batch(Config());
  batch.Open(1, {});
  const std::vector<int32_t> tokens{10, 11};
  batch.AddRow(RequestId{1}, RowSlot{0}, tokens.data(), 2, 1, 2);
  batch.AddToken(RequestId{2}, RowSlot{1}, -1, 5);
  CHECK(Take(batch.Close()->token_id, 3) == std::vector<int32_t>{11, -1, -1});
}

TEST_CASE("a plan counts the rows whose requests it admitted") {
  StepBatch batch(Config());
  for (const uint64_t step : {1, 1 + kMaxStepsInFlight}) {
    batch.Open(step, {});
    batch.AddToken(RequestId{1}, RowSlot{0}, 3, 5);
    batch.AddToken(RequestId{2}, RowSlot{1}, 4, 0);
    batch.NoteAdmitted();
    CHECK(batch.Close()->num_admitted == 1);
  }
}

TEST_CASE("a plan says what its own step shares") {
  StepBatch batch(Config());
  batch.Open(1, {});
  batch.SetShared(int64_t{1} << 40, true);
  CHECK(batch.Close()->num_shared_tokens == int64_t{1} << 40);
  CHECK(batch.Close()->shares);
  batch.Open(1 + kMaxStepsInFlight, {});
  CHECK(batch.Close()->num_shared_tokens == 0);
  CHECK_FALSE(batch.Close()->shares);
}

TEST_CASE("a sample stands at the last token of its row") {
  StepBatch batch(Config());
  batch.Open(1, {});
  const std::vector<int32_t> tokens{1, 2, 3};
  batch.AddRow(RequestId{1}, RowSlot{0}, tokens.data(), 3, 0, 3);
  batch.AddRow(RequestId{2}, RowSlot{1}, tokens.data(), 3, 0, 2);
  CHECK(batch.AddSample(true, 3) == 0);
  batch.AddToken(RequestId{3}, RowSlot{2}, 9, 4);
  CHECK(batch.AddSample(true, -1) == 1);
  const StepPlan& plan = *batch.Close();
  CHECK(plan.num_samples == 2);
  CHECK(plan.all_greedy);
  CHECK(plan.max_logprobs == 3);
  CHECK(Take(plan.sample_token, 2) == std::vector<int32_t>{4, 5});
  CHECK(Take(plan.sample_row, 2) == std::vector<int32_t>{1, 2});
  CHECK(ColumnOf<int32_t>(batch, plan, Column::kNumLogprobs, 2) == std::vector<int32_t>{3, -1});
}

TEST_CASE("rows that are reordered take their tokens and samples with them") {
  StepBatch batch(Config());
  batch.Open(1, {});
  for (int32_t i = 0; i < 4; ++i) {
    batch.AddToken(RequestId{uint64_t(i) << 40}, RowSlot{3 - i}, i == 2 ? -1 : 40 + i, 7 * i);
    batch.SetCrossLen(20 + i);
    batch.AddSample(true, i - 1);
  }
  REQUIRE(batch.CountDecoding() == 4);
  batch.Reorder(std::vector<int32_t>{2, 0, 3, 1});
  CHECK(Take(batch.row_slots().data(), 4) == std::vector<int32_t>{1, 3, 0, 2});
  const StepPlan& plan = *batch.Close();
  CHECK(Take(plan.token_id, 4) == std::vector<int32_t>{-1, 40, 43, 41});
  CHECK(Take(plan.position, 4) == std::vector<int32_t>{14, 0, 21, 7});
  CHECK(Take(plan.seq_len, 4) == std::vector<int32_t>{15, 1, 22, 8});
  CHECK(Take(plan.query_start, 5) == std::vector<int32_t>{0, 1, 2, 3, 4});
  CHECK(Take(plan.request, 4) == std::vector<uint64_t>{2ull << 40, 0, 3ull << 40, 1ull << 40});
  CHECK(Take(plan.cross_len, 4) == std::vector<int32_t>{22, 20, 23, 21});
  CHECK(Take(plan.sample_token, 4) == std::vector<int32_t>{0, 1, 2, 3});
  CHECK(Take(plan.sample_row, 4) == std::vector<int32_t>{0, 1, 2, 3});
  CHECK(ColumnOf<int32_t>(batch, plan, Column::kNumLogprobs, 4) ==
        std::vector<int32_t>{1, -1, 2, 0});
}

TEST_CASE("rows stand where they are from the first on that does more than decode") {
  StepBatch batch(Config());
  const std::vector<int32_t> tokens{1, 2, 3};
  const auto decoding = [&](auto add) {
    batch.Open(1, {});
    for (uint64_t i = 0; i < 2; ++i) {
      batch.AddToken(RequestId{i}, RowSlot{int32_t(i)}, 9, 4);
      batch.AddSample(true, -1);
    }
    add();
    return batch.CountDecoding();
  };
  const auto row = [&](int32_t count, int32_t samples) {
    batch.AddRow(RequestId{2}, RowSlot{2}, tokens.data(), 3, 0, count);
    for (int32_t i = samples; i-- > 0;) batch.AddSample(true, -1, i);
  };
  CHECK(decoding([] {}) == 2);
  CHECK(decoding([&] { row(1, 1); }) == 3);
  CHECK(decoding([&] { row(1, 0); }) == 2);  // of a prompt that is not wholly in
  CHECK(decoding([&] { row(3, 1); }) == 2);
  CHECK(decoding([&] { row(2, 2); }) == 2);  // with a draft
  CHECK(decoding([&] {
          row(2, 1);
          row(1, 1);
        }) == 2);
  CHECK(decoding([&] {
          row(1, 0);
          row(1, 1);
        }) == 2);
  CHECK(decoding([&] {
          row(1, 1);
          batch.AddScore(0, 1, 1);
        }) == 2);
  CHECK(decoding([&] {
          row(1, 1);
          batch.NoteAdmitted();
        }) == 2);
}

TEST_CASE("rows behind those that are reordered stay as they are") {
  StepBatch batch(Config());
  batch.Open(1, {});
  const std::vector<int32_t> tokens{1, 2, 3};
  for (int32_t i = 0; i < 3; ++i) {
    batch.AddToken(RequestId{uint64_t(i)}, RowSlot{i}, 40 + i, 10 * i);
    batch.AddSample(true, i);
  }
  batch.AddRow(RequestId{7}, RowSlot{3}, tokens.data(), 3, 0, 3);
  batch.AddSample(true, 9);
  batch.Reorder(std::vector<int32_t>{2, 0, 1});
  const StepPlan& plan = *batch.Close();
  CHECK(Take(plan.token_id, 6) == std::vector<int32_t>{42, 40, 41, 1, 2, 3});
  CHECK(Take(plan.position, 6) == std::vector<int32_t>{20, 0, 10, 0, 1, 2});
  CHECK(Take(plan.row_slot, 4) == std::vector<int32_t>{2, 0, 1, 3});
  CHECK(Take(plan.seq_len, 4) == std::vector<int32_t>{21, 1, 11, 3});
  CHECK(Take(plan.request, 4) == std::vector<uint64_t>{2, 0, 1, 7});
  CHECK(ColumnOf<int32_t>(batch, plan, Column::kNumLogprobs, 4) ==
        std::vector<int32_t>{2, 0, 1, 9});
}

// Bans every token of a list.
class Bans final : public LogitEdits {
 public:
  explicit Bans(std::vector<int32_t> tokens) : tokens_(std::move(tokens)) {}
  void Write(EditWriter& out) const override {
    for (int32_t token : tokens_) out.Add(token, -1.5f);
  }

 private:
  std::vector<int32_t> tokens_;
};

TEST_CASE("a step that is not all greedy describes every sample, ragged edits included") {
  StepBatch batch(Config());
  batch.Open(3, {});
  const std::vector<int32_t> tokens{1, 2, 3};
  const uint32_t mask = 6;
  const Bans bans({7, 8});
  SamplingParams greedy, hot;
  greedy.temperature = 0;
  hot.temperature = 0.5f;
  hot.top_k = -1;
  hot.top_p = 0.9f;
  hot.min_p = 0.1f;
  hot.presence_penalty = 1;
  hot.frequency_penalty = 2;
  hot.repetition_penalty = 3;
  hot.seed = 99;
  for (int32_t i = 0; i < 3; ++i) {
    batch.AddToken(RequestId{uint64_t(i)}, RowSlot{i}, 1, 4);
    batch.AddSample(i == 0, -1);
  }
  REQUIRE_FALSE(batch.all_greedy());
  batch.DescribeSample({&greedy, tokens.data(), 3, 2, 0, nullptr, nullptr});
  batch.DescribeSample({&hot, tokens.data(), 3, 1, 2, &mask, &bans});
  batch.DescribeSample({&hot, tokens.data(), 2, 1, 1, nullptr, &bans});
  const StepPlan& plan = *batch.Close();
  CHECK(plan.slot == 1);
  CHECK(Take(plan.temperature, 3) == std::vector<float>{0, 0.5f, 0.5f});
  CHECK(Take(plan.top_k, 3) == std::vector<int32_t>{0, 0, 0});
  CHECK(Take(plan.top_p, 2) == std::vector<float>{1, 0.9f});
  CHECK(Take(plan.min_p, 2) == std::vector<float>{0, 0.1f});
  CHECK(ColumnOf<float>(batch, plan, Column::kPresence, 2) == std::vector<float>{0, 1});
  CHECK(ColumnOf<float>(batch, plan, Column::kFrequency, 2) == std::vector<float>{0, 2});
  CHECK(ColumnOf<float>(batch, plan, Column::kRepetition, 2) == std::vector<float>{1, 3});
  CHECK(Take(plan.seed, 2) == std::vector<uint64_t>{0, 99});
  CHECK(Take(plan.sample_index, 3) == std::vector<int64_t>{0, 2, 1});
  CHECK(Take(plan.history_len, 3) == std::vector<int32_t>{3, 3, 2});
  CHECK(Take(plan.prompt_len, 3) == std::vector<int32_t>{2, 1, 1});
  CHECK(plan.history[1] == reinterpret_cast<uint64_t>(tokens.data()));
  const auto masks = ColumnOf<uint64_t>(batch, plan, Column::kMask, 3);
  CHECK(masks == std::vector<uint64_t>{0, reinterpret_cast<uint64_t>(&mask), 0});
  CHECK(ColumnOf<int32_t>(batch, plan, Column::kBiasStart, 4) == std::vector<int32_t>{0, 0, 2, 4});
  CHECK(ColumnOf<int32_t>(batch, plan, Column::kBiasToken, 4) == std::vector<int32_t>{7, 8, 7, 8});
  CHECK(ColumnOf<float>(batch, plan, Column::kBiasValue, 1) == std::vector<float>{-1.5f});
}

TEST_CASE("a score names its token, its target and its row") {
  StepBatch batch(Config());
  batch.Open(1, {});
  const std::vector<int32_t> tokens{1, 2, 3, 4};
  batch.AddToken(RequestId{1}, RowSlot{0}, 5, 9);
  batch.AddRow(RequestId{2}, RowSlot{1}, tokens.data(), 4, 0, 3);
  batch.AddScore(0, 2, 5);
  batch.AddScore(2, 4, 5);
  const StepPlan& plan = *batch.Close();
  CHECK(plan.num_scores == 2);
  CHECK(Take(plan.score_token, 2) == std::vector<int32_t>{1, 3});
  CHECK(Take(plan.score_target, 2) == std::vector<int32_t>{2, 4});
  CHECK(ColumnOf<int32_t>(batch, plan, Column::kScoreRow, 2) == std::vector<int32_t>{1, 1});
  CHECK(ColumnOf<int32_t>(batch, plan, Column::kScoreTop, 2) == std::vector<int32_t>{5, 5});
}

TEST_CASE("the next step leaves the plan of this one alone") {
  StepBatch batch(Config());
  batch.Open(4, {});
  batch.AddToken(RequestId{1}, RowSlot{0}, 5, 9);
  const StepPlan& first = *batch.Close();
  batch.Open(5, {});
  batch.AddToken(RequestId{2}, RowSlot{3}, 6, 1);
  batch.AddToken(RequestId{3}, RowSlot{1}, 7, 1);
  batch.Close();
  CHECK(first.num_tokens == 1);
  CHECK(first.token_id[0] == 5);
  CHECK(first.row_slot[0] == 0);
}

TEST_CASE("a step begins empty, whatever the step before it in its slot held") {
  StepBatch batch(Config());
  batch.Open(2, {});
  batch.AddToken(RequestId{1}, RowSlot{0}, 5, 9);
  batch.AddSample(true, 4);
  batch.AddScore(0, 1, 1);
  batch.Close();
  batch.Open(4, {});
  const StepPlan& plan = *batch.Close();
  CHECK(plan.num_tokens == 0);
  CHECK(plan.num_rows == 0);
  CHECK(plan.num_samples == 0);
  CHECK(plan.num_scores == 0);
  CHECK(plan.max_logprobs == -1);
  CHECK(plan.max_seq_len == 0);
}

}  // namespace
}  // namespace octavo::batch
