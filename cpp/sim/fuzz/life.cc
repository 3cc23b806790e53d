#include "sim/fuzz/life.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/host_memory.h"
#include "sim/fuzz/generate.h"

namespace octavo::sim {
namespace {

constexpr size_t kRememberedIds = 64;
constexpr size_t kMostRetries = 4;
// A drain that takes longer goes round in circles: the longest request alone needs a hundred steps.
constexpr int kMostTurns = 200'000;
// With nothing open one call may only make room (a request alone starts afresh) and the next plans.
constexpr int kMostIdleTurns = 2;
// Transfers take time: until they are given up, at the most.
constexpr int kMostTransferTurns = 1000;
constexpr int64_t kTransferTick = 1000;  // microseconds

}  // namespace

Life::Life(uint64_t config_seed, OpCounts* counts)
    : config_(MakeConfig(config_seed)),
      groups_(GroupsOf(config_)),
      counts_(counts),
      connector_(config_, Mix(config_seed, 5), counts, &model_),
      connected_(UsesConnector(config_seed, config_)),
      tier_(MakeTier(config_seed)),
      engine_(config_, clock_, SystemMemory(), Connector()),
      model_(config_, engine_.arena()),
      slot_seen_(size_t(config_.max_num_seqs), 0),
      reader_(engine_, counts) {
  if (copier_) copier_->set_model(&model_);
}

std::unique_ptr<transfer::HostTier> Life::MakeTier(uint64_t config_seed) {
  const TierChoice choice = ChooseTier(config_seed, config_);
  if (choice.bytes == 0) return nullptr;
  auto copier = std::make_unique<ModelCopier>(choice.slow, choice.failures);
  copier_ = copier.get();
  auto tier =
      transfer::HostTier::Create(config_, choice.bytes, choice.parent_bytes, std::move(copier));
  OCTAVO_CHECK(tier.ok(), tier.status().message().c_str());
  return std::move(*tier);
}

void Life::Apply(const Op& op) {
  switch (op.kind) {
    case OpKind::kSubmit:
      Submit(MakeRequest(config_, op.argument));
      break;
    case OpKind::kBegin:
      Begin();
      break;
    case OpKind::kRun:
      Run();
      break;
    case OpKind::kFinish:
      Finish();
      break;
    case OpKind::kTick:
      clock_.now_us += int64_t(op.argument);
      break;
    case OpKind::kCheck:
      engine_.CheckInvariants();
      reader_.Read();
      break;
    case OpKind::kDraft:
      if (Strike(op.kind, op.argument)) break;
      return;
    case OpKind::kCorrupt:
      model_.Corrupt(op.argument);
      break;
    case OpKind::kCorruptItem:
      model_.CorruptItem(op.argument);
      break;
    default:
      if (Strike(op.kind, op.argument)) Count(op.kind);
      return;
  }
  Count(op.kind);
}

void Life::Submit(RequestSpec spec) {
  const EngineStats before = engine_.Stats();
  auto guest = std::make_unique<Guest>(config_, groups_, std::move(spec));
  const auto id = engine_.AddRequest(guest->spec.input());
  if (before.waiting >= config_.max_queued_requests) {
    OCTAVO_CHECK(!id.ok() && id.status().code() == StatusCode::kResourceExhausted,
                 "a full queue took a request");
    OCTAVO_CHECK(engine_.Stats().waiting == before.waiting, "a refused request waits");
    return Count(OpKind::kQueueFull);
  }
  OCTAVO_CHECK(id.ok(), id.status().message().c_str());
  guest->id = *id;
  OCTAVO_CHECK(by_id_.emplace(Value(*id), guest.get()).second, "an id names two requests");
  guests_.push_back(std::move(guest));
  ++submitted_;
}

Life::Guest* Life::Find(uint64_t id) const {
  const auto at = by_id_.find(id);
  return at == by_id_.end() ? nullptr : at->second;
}

bool Life::Begin() {
  const bool full = open_.size() == size_t(config_.max_steps_in_flight);
  const uint64_t preempted = engine_.Stats().preemptions;
  const StepPlan* plan = engine_.BeginStep();
  OCTAVO_CHECK(!plan || !full, "more steps are open than may be");
  TakeEnded();
  const uint64_t more = engine_.Stats().preemptions - preempted;
  if (more > 0) Count(OpKind::kPreemption);
  if (more > 1) Count(OpKind::kPreemptionStorm);
  if (more > 0) {
    for (const auto& guest : guests_) guest->preempted = guest->admitted;
  }
  if (!plan) {
    if (!full) Count(OpKind::kNothingToPlan);
    return false;
  }
  CheckPlan(*plan);
  OpenStep& step = open_.emplace_back();
  step.plan = *plan;
  step.tokens.resize(size_t(plan->num_samples));
  NameInputs(step);
  return true;
}

void Life::TakeEnded() {
  for (const StepOutput& output : engine_.TakeEnded()) {
    Guest* guest = Find(output.request);
    OCTAVO_CHECK(guest && Connector() && output.token == -1 && output.sample == -1 &&
                     FinishReason{output.finish} == FinishReason::kError,
                 "a request ended outside a step for no reason");
    OCTAVO_CHECK(config_.kv_load_failure_policy == KvLoadFailurePolicy::kFail,
                 "a request ended although it was to compute what did not arrive");
    Count(OpKind::kLoadEndsRequest);
    Close(*guest, FinishReason::kError);
  }
}

void Life::CheckPlan(const StepPlan& plan) {
  OCTAVO_CHECK(plan.num_rows > 0 && plan.num_rows <= config_.max_num_seqs, "rows out of range");
  OCTAVO_CHECK(plan.num_tokens <= config_.max_num_batched_tokens, "a step exceeds its budget");
  OCTAVO_CHECK(plan.query_start[0] == 0 && plan.query_start[plan.num_rows] == plan.num_tokens,
               "rows do not cover the tokens");
  OCTAVO_CHECK(engine_.pause() != PauseMode::kAll, "a paused engine plans a step");
  for (int32_t r = 0; r < plan.num_rows; ++r) CheckRow(plan, r);
  int32_t previous = -1;
  for (int32_t s = 0; s < plan.num_samples; ++s) {
    const int32_t row = plan.sample_row[s];
    OCTAVO_CHECK(row >= previous && row < plan.num_rows, "samples are out of order");
    OCTAVO_CHECK(s == 0 || plan.sample_token[s] > plan.sample_token[s - 1],
                 "a token has two samples");
    previous = row;
  }
  if (MostCross(config_) > 0) CheckCross(plan);
  if (plan.num_copies > 0) Count(OpKind::kBlockCopied);
  if (config_.encoder_cache_size > 0) CheckItems(plan);
}

void Life::CheckRow(const StepPlan& plan, int32_t row) {
  Guest* guest = Find(plan.request[row]);
  OCTAVO_CHECK(guest, "a row names a request that has ended");
  OCTAVO_CHECK(guest->admitted || engine_.pause() != PauseMode::kNewRequests,
               "a request begins although new ones are held back");
  const int32_t first = plan.query_start[row];
  const int32_t count = plan.query_start[row + 1] - first;
  const int32_t start = plan.position[first];
  const auto tokens = guest->oracle.tokens();
  OCTAVO_CHECK(count > 0, "a row is empty");
  // Whoever comes back from preemption may find more in the cache than it had computed itself.
  OCTAVO_CHECK(start == guest->computed || !guest->admitted || guest->preempted,
               "a row leaves out tokens, or repeats some");
  OCTAVO_CHECK(plan.seq_len[row] == start + count, "seq_len is not the end of the row");
  for (int32_t i = 0; i < count; ++i) {
    OCTAVO_CHECK(plan.position[first + i] == start + i, "positions have a gap");
    const int32_t token = plan.token_id[first + i];
    const size_t position = size_t(start + i);
    if (position < tokens.size()) {
      OCTAVO_CHECK(token == tokens[position], "a row holds another token than the request");
    } else if (token != -1) {
      const size_t draft = position - size_t(guest->draft_position);
      const bool proposed = draft < guest->drafts.size() && token == guest->drafts[draft];
      OCTAVO_CHECK(count > 1 && (proposed || config_.prompt_lookup_max > 0),
                   "a row holds a token that nobody has sampled or proposed");
      if (!proposed) Count(OpKind::kLookupDraft);
    } else {
      OCTAVO_CHECK(count == 1, "a token that is not known yet shares its row");
    }
  }
  uint64_t& seen = slot_seen_[size_t(plan.row_slot[row])];
  OCTAVO_CHECK(seen != plan.step_id, "two rows have one slot");
  seen = plan.step_id;
  guest->admitted = true;
  guest->preempted = false;
  guest->computed = start + count;
  ++guest->in_flight;
}

void Life::Run() {
  for (OpenStep& step : open_) {
    if (step.executed) continue;
    if (fail_encode_ && !step.inputs.empty()) return FailEncode();
    model_.Encode(step.plan, step.inputs);
    if (break_token_) BreakToken(step.plan);
    OCTAVO_CHECK(model_.Execute(step.plan, step.tokens).ok(), "the model never fails a step");
    step.nans.assign(model_.nan_samples().begin(), model_.nan_samples().end());
    step.executed = true;
    return;
  }
}

void Life::Finish() {
  if (open_.empty()) return;
  if (!open_.front().executed) {
    if (open_.size() > 1) Count(OpKind::kLateRun);
    Run();
    if (open_.empty()) return;  // it failed
  }
  OpenStep step = std::move(open_.front());
  open_.erase(open_.begin());
  const int32_t spoiled = SpoilTokens(step);
  const auto outputs = engine_.FinishStep(step.plan.step_id, step.tokens);
  OCTAVO_CHECK(outputs.ok(), outputs.status().message().c_str());
  for (int32_t r = 0; r < step.plan.num_rows; ++r) {
    if (Guest* guest = Find(step.plan.request[r])) --guest->in_flight;
  }
  CheckOutputs(step, *outputs, spoiled);
}

void Life::CheckOutputs(const OpenStep& step, std::span<const StepOutput> outputs,
                        int32_t spoiled) {
  // Each sample whose request still lives gives one output, in order; in a row with drafts those up
  // to the first that differs from its draft.
  const StepPlan& plan = step.plan;
  size_t next = 0;
  int32_t over = -1;  // the row whose other samples do not count
  for (int32_t s = 0; s < plan.num_samples; ++s) {
    const int32_t row = plan.sample_row[s];
    Guest* guest = row == over ? nullptr : Find(plan.request[row]);
    if (!guest) continue;
    OCTAVO_CHECK(next < outputs.size() && outputs[next].request == plan.request[row],
                 "an output is missing");
    OCTAVO_CHECK(outputs[next].sample == s, "an output names another sample");
    const int32_t at = plan.sample_token[s];
    const bool drafted = at + 1 < plan.query_start[row + 1];
    if (!drafted || plan.token_id[at + 1] != step.tokens[size_t(s)]) over = row;
    if (drafted && over == row) Count(OpKind::kDraftsRejected);
    const bool speculative = plan.sample_token[s] != plan.query_start[row + 1] - 1 ||
                             (s > 0 && plan.sample_row[s - 1] == row);
    if (s == spoiled) Count(std::exchange(spoil_, OpKind::kCheck));
    // Once its last step has run, only what proved right is computed.
    if (speculative) guest->computed = int32_t(guest->oracle.tokens().size());
    const bool nan = std::find(step.nans.begin(), step.nans.end(), s) != step.nans.end();
    CheckOutput(*guest, outputs[next++], s == spoiled, nan);
  }
  OCTAVO_CHECK(next == outputs.size(), "an output names a request that has ended");
}

void Life::CheckOutput(Guest& guest, const StepOutput& output, bool spoiled, bool nan) {
  const FinishReason reason{output.finish};
  if (guest.cached_tokens < 0) guest.cached_tokens = output.cached_tokens;
  OCTAVO_CHECK(output.cached_tokens == guest.cached_tokens && output.cached_tokens >= 0 &&
                   output.cached_tokens <= int32_t(guest.spec.prompt.size()),
               "the cached tokens of a prompt changed");
  if (nan) {
    OCTAVO_CHECK(HasBroken(guest), "a NaN reached a request that has no part in it");
    Count(OpKind::kNanSpreads);
    if (to_retry_.size() < kMostRetries) to_retry_.push_back(guest.spec);
  }
  if (spoiled || nan) {
    OCTAVO_CHECK(reason == FinishReason::kError && output.token == -1,
                 "a row that failed is no error");
    return Close(guest, FinishReason::kError);
  }
  const Oracle::Answer expected = guest.oracle.Next();
  OCTAVO_CHECK(output.token == expected.token, "a request gets other tokens than it gets alone");
  OCTAVO_CHECK(reason == expected.reason, "a request ends otherwise than it does alone");
  OCTAVO_CHECK(output.stop_token == expected.stop_token, "another stop token is named");
  if (reason != FinishReason::kNone) Close(guest, reason);
}

void Life::Fail(size_t at_least) {
  if (open_.size() < std::max<size_t>(1, at_least)) return;
  const auto outputs = engine_.FailStep(open_.front().plan.step_id);
  OCTAVO_CHECK(outputs.ok(), outputs.status().message().c_str());
  size_t next = 0;
  for (const OpenStep& step : open_) {
    for (int32_t r = 0; r < step.plan.num_rows; ++r) {
      Guest* guest = Find(step.plan.request[r]);
      if (!guest) continue;
      OCTAVO_CHECK(next < outputs->size(), "a request of a failed step got no output");
      const StepOutput& output = (*outputs)[next++];
      OCTAVO_CHECK(output.request == step.plan.request[r] && output.token == -1 &&
                       FinishReason{output.finish} == FinishReason::kError,
                   "a request of a failed step ended otherwise");
      Close(*guest, FinishReason::kError);
    }
  }
  OCTAVO_CHECK(next == outputs->size(), "a failed step ended others than its own");
  open_.clear();
}

void Life::Close(Guest& guest, FinishReason reason) {
  ++ended_[size_t(reason)];
  if (past_.size() < kRememberedIds) {
    past_.push_back(guest.id);
  } else {
    past_[Value(guest.id) % kRememberedIds] = guest.id;
  }
  by_id_.erase(Value(guest.id));
  const auto at = std::find_if(guests_.begin(), guests_.end(),
                               [&](const auto& other) { return other.get() == &guest; });
  guests_.erase(at);
}

void Life::DrainTransfers() {
  // Loads that nobody waits for any more, and late saves, still hold blocks.
  for (int turn = 0; engine_.Stats().kv_transfers > 0; ++turn) {
    OCTAVO_CHECK(turn < kMostTransferTurns, "a transfer never ends");
    OCTAVO_CHECK(!Begin(), "a step is planned with no request left");
    clock_.now_us += kTransferTick;
  }
}

void Life::CheckRetentionEnds() {
  if (!EndsRetention(config_)) return;
  const auto retained = [&] {
    const kv::BlockPool& pool = engine_.kv().pool();
    uint64_t count = 0;
    for (int32_t b = 0; b < pool.num_places(); ++b) {
      const kv::EvictionClass kind = pool.eviction_class(BlockId{b});
      count += kind != kv::EvictionClass::kUnhashed && kind != kv::EvictionClass::kProbationary &&
               kind != kv::EvictionClass::kProven;
    }
    return count;
  };
  if (retained() == 0) return;
  clock_.now_us += 2 * 60 * int64_t{1'000'000};
  OCTAVO_CHECK(!Begin(), "a step is planned with no request left");
  OCTAVO_CHECK(retained() == 0, "a wish outlasts its time");
  Count(OpKind::kRetentionEnds);
}

void Life::Work() {
  int idle = 0;
  for (int turn = 0; engine_.HasUnfinished() || !open_.empty(); ++turn) {
    OCTAVO_CHECK(turn < kMostTurns, "the engine goes round in circles");
    idle = Begin() || !open_.empty() ? 0 : idle + 1;
    OCTAVO_CHECK(idle <= (Connector() ? kMostTransferTurns : kMostIdleTurns),
                 "the engine stands still with work left");
    if (Connector()) clock_.now_us += kTransferTick;
    Finish();
  }
  DrainTransfers();
}

void Life::Drain() {
  engine_.SetPause(PauseMode::kNone);
  Work();
  RetryBroken();
  engine_.CheckInvariants();
  reader_.Wake();
  reader_.Read();
  CheckLeftOver();
  CheckRetentionEnds();
}

void Life::CheckLeftOver() {
  if (tier_) {
    const transfer::HostTierStats tier = tier_->stats();
    (*counts_)[size_t(OpKind::kTierStore)] += tier.stored_blocks;
    (*counts_)[size_t(OpKind::kTierLoad)] += tier.loaded_blocks;
    (*counts_)[size_t(OpKind::kTierEviction)] += tier.evicted_blocks;
    (*counts_)[size_t(OpKind::kTierFailure)] += tier.failed_blocks;
  }
  const EngineStats s = engine_.Stats();
  OCTAVO_CHECK(guests_.empty(), "a request never ended");
  OCTAVO_CHECK(s.running == 0 && s.waiting == 0, "requests are left");
  OCTAVO_CHECK(s.free_blocks == s.total_blocks && s.kv_slots_allocated == 0, "blocks leaked");
  const auto ended = [&](FinishReason reason) { return ended_[size_t(reason)]; };
  OCTAVO_CHECK(s.finished_stop == ended(FinishReason::kStop) &&
                   s.finished_length == ended(FinishReason::kLength) &&
                   s.finished_abort == ended(FinishReason::kAbort) &&
                   s.finished_error == ended(FinishReason::kError),
               "the statistics count other ends");
  OCTAVO_CHECK(
      s.finished_stop + s.finished_length + s.finished_abort + s.finished_error == submitted_,
      "a request ended twice, or never");
}

}  // namespace octavo::sim
