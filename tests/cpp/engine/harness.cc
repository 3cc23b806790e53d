#include "engine/harness.h"

#include "base/check.h"

namespace octavo::engine {

RequestId Harness::Add(const RequestInput& input) {
  auto id = engine.AddRequest(input);
  OCTAVO_CHECK(id.ok(), id.status().message().c_str());
  engine.CheckInvariants();
  items_[Value(*id)].assign(input.encoder_items.begin(), input.encoder_items.end());
  return *id;
}

const StepPlan* Harness::Begin() {
  const StepPlan* plan = engine.BeginStep();
  engine.CheckInvariants();
  if (plan) open_.push_back({*plan, std::vector<int32_t>(plan->num_samples), false});
  if (!plan) Take(engine.TakeEnded());
  return plan;
}

void Harness::Run(Open& open) {
  std::vector<sim::Encoded> inputs;
  for (const EncoderInput& input : open.plan.encoder_inputs) {
    const EncoderItem& item = items_.at(input.request).at(size_t(input.item));
    inputs.push_back({item.hash[0], item.embeddings, item.bidirectional});
  }
  model.Encode(open.plan, inputs);
  OCTAVO_CHECK(model.Execute(open.plan, open.tokens).ok(), "the model never fails a step");
  open.executed = true;
}

void Harness::Execute() {
  for (Open& open : open_) {
    if (!open.executed) return Run(open);
  }
}

std::vector<StepOutput> Harness::Finish() {
  if (!open_.front().executed) Run(open_.front());
  return FinishWith(open_.front().tokens);
}

std::vector<StepOutput> Harness::FinishWith(std::vector<int32_t> tokens) {
  const uint64_t step = open_.front().plan.step_id;
  open_.pop_front();
  return Take(engine.FinishStep(step, tokens));
}

std::vector<StepOutput> Harness::Fail() {
  const uint64_t step = open_.front().plan.step_id;
  open_.clear();  // a failed step takes the later ones with it
  return Take(engine.FailStep(step));
}

std::vector<StepOutput> Harness::Take(const Result<std::span<const StepOutput>>& result) {
  OCTAVO_CHECK(result.ok(), result.status().message().c_str());
  engine.CheckInvariants();
  for (const StepOutput& o : *result) {
    Done& d = done_[o.request];
    OCTAVO_CHECK(d.reason == FinishReason::kNone, "an output names a request that has ended");
    if (o.token >= 0) d.tokens.push_back(o.token);
    d.reason = FinishReason{o.finish};
    d.stop_token = o.stop_token;
    d.cached_tokens = o.cached_tokens;
  }
  return {result->begin(), result->end()};
}

bool Harness::Step() {
  if (!Begin()) return false;
  Finish();
  return true;
}

void Harness::Drain() {
  while (Step()) {
  }
  OCTAVO_CHECK(!engine.HasUnfinished(), "the engine stands still with work left");
}

void Harness::Abort(RequestId id) {
  OCTAVO_CHECK(engine.Abort(id).ok(), "aborting a request that has ended");
  done_[Value(id)].reason = FinishReason::kAbort;
  engine.CheckInvariants();
}

void Harness::SetDrafts(RequestId id, const std::vector<int32_t>& drafts) {
  const Status s = engine.SetDrafts(id, drafts);
  OCTAVO_CHECK(s.ok(), s.message().c_str());
  engine.CheckInvariants();
}

std::vector<Row> Harness::Rows(const StepPlan* plan) const {
  std::vector<Row> rows;
  for (int32_t r = 0; r < plan->num_rows; ++r) {
    const int32_t first = plan->query_start[r];
    rows.push_back(
        {RequestId{plan->request[r]}, plan->position[first], plan->query_start[r + 1] - first, 0});
  }
  for (int32_t s = 0; s < plan->num_samples; ++s) ++rows[plan->sample_row[s]].sampled;
  return rows;
}

}  // namespace octavo::engine
