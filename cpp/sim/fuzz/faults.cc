// What goes wrong in a life, kind by kind. A strike that finds nothing to hit returns false.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "sim/fuzz/generate.h"
#include "sim/fuzz/life.h"

namespace octavo::sim {
namespace {

constexpr int64_t kSecond = 1'000'000;

}  // namespace

template <typename Predicate>
Life::Guests Life::Pick(Predicate accepts) {
  Guests picked;
  for (const auto& guest : guests_) {
    if (accepts(*guest)) picked.push_back(guest.get());
  }
  return picked;
}

bool Life::Strike(OpKind kind, uint64_t argument) {
  if (kind == OpKind::kDraft || kind == OpKind::kDraftJunk || kind == OpKind::kBadDraft) {
    return StrikeDraft(kind, argument);
  }
  if (kind < OpKind::kSlowStep) return StrikeEnd(kind, argument);
  if (kind < OpKind::kWrongStep) return StrikeAnswer(kind, argument);
  if (kind < OpKind::kEmptyPrompt) return StrikeCall(kind, argument);
  if (kind < OpKind::kHerd) return StrikeSubmission(kind, argument);
  if (NeedsImages(kind)) return StrikeItem(kind, argument);
  if (NeedsEvents(kind)) return StrikeReader(kind, argument);
  if (kind == OpKind::kNanToken) {
    break_token_ = true;
    break_choice_ = argument;
    return false;  // counted where it strikes
  }
  return StrikeLoad(kind, argument);
}

bool Life::StrikeReader(OpKind kind, uint64_t argument) {
  switch (kind) {
    case OpKind::kSlowReader:
      reader_.Sleep(int32_t(argument % 16));
      return true;
    case OpKind::kLostBatch:
      return reader_.LoseBatch();
    default:
      reader_.Restart();
      return true;
  }
}

bool Life::End(const Guests& among, uint64_t argument, FinishReason reason) {
  if (among.empty()) return false;
  Guest& guest = *among[argument % among.size()];
  const RequestId id = guest.id;
  const Status ended = reason == FinishReason::kStop ? engine_.Stop(id) : engine_.Abort(id);
  OCTAVO_CHECK(ended.ok(), ended.message().c_str());
  Close(guest, reason);
  return true;
}

bool Life::EndAll() {
  if (guests_.size() < 2) return false;
  while (!guests_.empty()) End({guests_.back().get()}, 0, FinishReason::kAbort);
  return true;
}

bool Life::StrikeEnd(OpKind kind, uint64_t argument) {
  const auto refused = [&](RequestId id) {
    MustChangeNothing([&] {
      const Status s = engine_.Abort(id);
      OCTAVO_CHECK(s.ok() || s.code() == StatusCode::kNotFound, "another error than kNotFound");
      return s.ok();
    });
    return true;
  };
  switch (kind) {
    case OpKind::kAbortWaiting:
      return End(Pick([](const Guest& g) { return !g.admitted; }), argument, FinishReason::kAbort);
    case OpKind::kAbortRunning:
      return End(Pick([](const Guest& g) { return g.admitted && g.in_flight == 0; }), argument,
                 FinishReason::kAbort);
    case OpKind::kAbortInFlight:
      return End(Pick([](const Guest& g) { return g.in_flight > 0; }), argument,
                 FinishReason::kAbort);
    case OpKind::kAbortPreempted: {
      const int64_t waiting = engine_.Stats().waiting;
      return End(Pick([](const Guest& g) { return g.preempted; }), argument,
                 FinishReason::kAbort) &&
             engine_.Stats().waiting < waiting;
    }
    case OpKind::kAbortStorm:
      return EndAll();
    case OpKind::kStopString:
      return End(Pick([](const Guest& g) { return g.oracle.outputs() > 0; }), argument,
                 FinishReason::kStop);
    case OpKind::kAbortTwice: {
      const Guests all = Pick([](const Guest&) { return true; });
      if (all.empty()) return false;
      const RequestId id = all[argument % all.size()]->id;
      End(all, argument, FinishReason::kAbort);
      return refused(id);
    }
    case OpKind::kUnknownId:
      return !Find(argument) && refused(RequestId{argument});
    default:
      return !past_.empty() && refused(past_[argument % past_.size()]);
  }
}

bool Life::StrikeAnswer(OpKind kind, uint64_t argument) {
  const size_t open = open_.size();
  switch (kind) {
    case OpKind::kSlowStep:
      if (open == 0) return false;
      clock_.now_us += 30 * kSecond;
      Finish();
      return true;
    case OpKind::kClockJump:
      clock_.now_us += int64_t(argument) * kSecond;
      return true;
    case OpKind::kFailStep:
      Fail(1);
      return open > 0;
    case OpKind::kFailTwoSteps:
      Fail(2);
      return open > 1;
    default:  // counted where it strikes
      spoil_ = kind;
      spoil_choice_ = argument;
      return false;
  }
}

int32_t Life::SpoilTokens(OpenStep& step) {
  if (spoil_ == OpKind::kCheck || step.tokens.empty()) return -1;
  const size_t s = spoil_choice_ % step.tokens.size();
  const Guest* guest = Find(step.plan.request[step.plan.sample_row[s]]);
  if (!guest) return -1;
  if (spoil_ == OpKind::kNanAtPrefillEnd && guest->oracle.outputs() > 0) return -1;
  step.tokens[s] =
      spoil_ == OpKind::kTokenOutOfRange ? config_.vocab_size + int32_t(spoil_choice_ % 1000) : -1;
  return int32_t(s);
}

bool Life::StrikeCall(OpKind kind, uint64_t argument) {
  const size_t open = open_.size();
  const auto refused = [&](uint64_t step, size_t count) {
    const std::vector<int32_t> tokens(count, 1);
    MustChangeNothing([&] { return engine_.FinishStep(step, tokens).ok(); });
    return true;
  };
  switch (kind) {
    case OpKind::kWrongStep: {
      const auto named = [&](const OpenStep& s) { return s.plan.step_id == argument; };
      if (std::any_of(open_.begin(), open_.end(), named)) return false;
      MustChangeNothing([&] { return engine_.FailStep(argument).ok(); });
      return refused(argument, 1);
    }
    case OpKind::kWrongOrder:
      return open > 1 && refused(open_[1].plan.step_id, open_[1].tokens.size());
    case OpKind::kWrongCount: {
      if (open == 0) return false;
      const size_t right = open_[0].tokens.size();
      return refused(open_[0].plan.step_id, right == 0 || argument % 2 ? right + 1 : right - 1);
    }
    case OpKind::kFinishTwice: {
      if (open == 0) return false;
      const uint64_t step = open_[0].plan.step_id;
      const size_t count = open_[0].tokens.size();
      Finish();
      return refused(step, count);
    }
    default:
      if (open < size_t(config_.max_steps_in_flight)) return false;
      MustChangeNothing([&] { return engine_.BeginStep() != nullptr; });
      return true;
  }
}

bool Life::StrikeSubmission(OpKind kind, uint64_t argument) {
  RequestSpec s = MakeRequest(config_, argument);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  SamplingParams& p = s.params;
  switch (kind) {
    case OpKind::kEmptyPrompt:
      s.prompt.clear();
      break;
    case OpKind::kLongPrompt:
      s.prompt.resize(size_t(config_.max_model_len) + argument % 3, 1);
      break;
    case OpKind::kBadToken:
      s.prompt[argument % s.prompt.size()] =
          argument % 2 ? -1 - int32_t(argument % 7) : config_.vocab_size;
      break;
    case OpKind::kBadNumber: {
      float* const floats[] = {
          &p.temperature,       &p.top_p, &p.min_p, &p.presence_penalty, &p.frequency_penalty,
          &p.repetition_penalty};
      const float bad[] = {nan, -3.0f, 1e30f};
      if (argument % 7 < 6) *floats[argument % 7] = bad[argument / 7 % 3];
      if (argument % 7 == 6) p.max_tokens = -int32_t(argument % 5);
      break;
    }
    default: {
      const int32_t bad = argument % 2 ? -1 : config_.vocab_size;
      std::vector<int32_t>* const lists[] = {&p.eos_token_ids, &p.stop_token_ids,
                                             &p.allowed_token_ids};
      if (argument % 6 < 3) lists[argument % 6]->push_back(bad);
      if (argument % 6 == 3) p.bad_words.push_back({});
      if (argument % 6 == 4) p.logit_bias.assign(kMaxLogitBias + 1, {1, 1.0f});
      if (argument % 6 == 5) s.kept = {{0, 1, kMaxPriority + 1, 0}};
    }
  }
  MustChangeNothing([&] {
    const auto id = engine_.AddRequest(s.input());
    OCTAVO_CHECK(id.ok() || id.status().code() == StatusCode::kInvalidArgument,
                 "a bad request is no invalid argument");
    return id.ok();
  });
  return true;
}

bool Life::SetDrafts(Guest& guest, uint64_t argument, bool junk) {
  Random random(argument);
  std::vector<int32_t> drafts(size_t(random.Between(1, config_.max_draft_tokens)));
  Oracle ahead = guest.oracle;
  for (int32_t& token : drafts) {
    token = junk || random.OneIn(5) ? random.Below(config_.vocab_size) : ahead.Next().token;
    if (token < 0) token = 0;
  }
  const Status set = engine_.SetDrafts(guest.id, drafts);
  if (!set.ok()) {
    OCTAVO_CHECK(set.code() == StatusCode::kFailedPrecondition, set.message().c_str());
    return false;  // it has drafts in an open step
  }
  guest.drafts = std::move(drafts);
  guest.draft_position = int32_t(guest.oracle.tokens().size());
  return true;
}

bool Life::StrikeDraft(OpKind kind, uint64_t argument) {
  const Guests decoding = Pick([](const Guest& g) { return g.oracle.outputs() > 0; });
  if (decoding.empty()) return false;
  Guest& guest = *decoding[argument % decoding.size()];
  if (kind != OpKind::kBadDraft) {
    return config_.max_draft_tokens > 0 && SetDrafts(guest, argument, kind == OpKind::kDraftJunk);
  }
  std::vector<int32_t> drafts(1, argument % 2 ? -1 : config_.vocab_size);
  if (argument % 3 == 0) drafts.assign(size_t(config_.max_draft_tokens) + 1, 1);
  MustChangeNothing([&] { return engine_.SetDrafts(guest.id, drafts).ok(); });
  MustChangeNothing([&] { return engine_.SetDrafts(RequestId{argument}, {}).ok(); });
  return true;
}

bool Life::StrikeLoad(OpKind kind, uint64_t argument) {
  if (kind >= OpKind::kPauseNew && kind <= OpKind::kResume) {
    const PauseMode mode = kind == OpKind::kPauseNew   ? PauseMode::kNewRequests
                           : kind == OpKind::kPauseAll ? PauseMode::kAll
                                                       : PauseMode::kNone;
    const bool changes = engine_.pause() != mode;
    engine_.SetPause(mode);
    return changes;
  }
  RequestSpec s = MakeRequest(config_, argument);
  const int32_t many = 3 + int32_t(argument % 6);
  switch (kind) {
    case OpKind::kHerd:
      for (int32_t i = 0; i < many; ++i) {
        s.prompt.back() = i;
        Submit(s);
      }
      return true;
    case OpKind::kSaltMix:
      for (int32_t i = 0; i < many; ++i) {
        s.salt = std::string(size_t(i % 3), 's');
        Submit(s);
      }
      return true;
    case OpKind::kPriorityFlood:
      for (int32_t i = 0; i < many; ++i) {
        s.priority = i % 2 ? std::numeric_limits<int32_t>::min() : -i;
        Submit(s);
      }
      return true;
    case OpKind::kPromptAtLimit:
      s.prompt.resize(size_t(config_.max_model_len) - 1, 3);
      break;
    case OpKind::kOneToken:
      s.params.max_tokens = 1;
      s.params.min_tokens = 0;
      break;
    case OpKind::kEndlessRequest:
      s.params.max_tokens = std::numeric_limits<int32_t>::max();
      break;
    case OpKind::kDuplicateRequest:
      Submit(s);
      break;
    default:
      return ResetCache();
  }
  Submit(std::move(s));
  return true;
}

bool Life::ResetCache() {
  // What the cache must not forget is what somebody holds.
  const EngineStats before = engine_.Stats();
  const bool reset = engine_.ResetPrefixCache();
  // What was loaded and waits to be admitted is held, and given up by a reset.
  const bool free = before.free_blocks == before.total_blocks;
  OCTAVO_CHECK(reset ? free || Connector() : !free,
               "the cache was reset under a request, or not although nobody held a block");
  OCTAVO_CHECK(engine_.Stats().cached_blocks == (reset ? 0 : before.cached_blocks),
               "a reset forgot too much or too little");
  if (!reset) Count(OpKind::kResetRefused);
  return reset;
}

}  // namespace octavo::sim
