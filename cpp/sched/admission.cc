// From submission to the first row: what is refused, what is admitted, and who may overtake whom.
#include <algorithm>

#include "base/check.h"
#include "base/strcat.h"
#include "sched/scheduler.h"

namespace octavo::sched {
namespace {

// How many waiting requests one pass looks at behind a head that does not fit.
constexpr size_t kMaxPassedOver = 64;

// A request that did not fit cannot fit before room comes free or less is promised to others: what
// others cache of its prompt takes as much room as it saves. Yet one such request a step is looked
// up, so that what it will hit stays recent; all that a pass looks at have their turn.
constexpr uint64_t kRetrySteps = kMaxPassedOver;

// Linear aging needs no bookkeeping: "one level of priority equals so much waiting" is a constant
// key. Priorities beyond what 62 bits of microseconds express count as the last one that they do.
OrderKey OrderOf(const EngineConfig& config, int32_t priority, int64_t now_us, uint64_t arrival) {
  if (config.policy == SchedulingPolicy::kFcfs) return {0, arrival};
  if (config.priority_aging_ms == 0) return {priority, arrival};
  const int64_t level_us = config.priority_aging_ms * 1000;
  const int64_t most = (int64_t{1} << 62) / level_us;
  return {now_us + std::clamp<int64_t>(priority, -most, most) * level_us, arrival};
}

}  // namespace

Status Scheduler::CheckAdd(const RequestInput& input) const {
  const std::span<const int32_t> prompt = input.prompt;
  if (prompt.empty()) return Status::InvalidArgument("prompt is empty: give at least one token");
  const int64_t length = static_cast<int64_t>(prompt.size());
  if (length >= config_.max_model_len) {
    return Status::InvalidArgument(
        StrCat("prompt has ", length, " tokens, but max_model_len=", config_.max_model_len,
               " leaves room for at most ", config_.max_model_len - 1,
               " and one output token: shorten the prompt or raise max_model_len"));
  }
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i] < 0 || prompt[i] >= config_.vocab_size) {
      return Status::InvalidArgument(StrCat("prompt token ", i, " is ", prompt[i],
                                            ": token ids of this model lie in [0, ",
                                            config_.vocab_size, ")"));
    }
  }
  if (Status s = Validate(input.params, config_.vocab_size); !s.ok()) return s;
  if (Status s = Validate(input.retention, static_cast<int32_t>(length)); !s.ok()) return s;
  if (Status s = CheckEncoderItems(input); !s.ok()) return s;
  if (num_waiting_ >= config_.max_queued_requests) {
    return Status::ResourceExhausted(
        StrCat("the queue holds max_queued_requests=", config_.max_queued_requests,
               " requests already: try again later"));
  }
  return Status::Ok();
}

Result<RequestId> Scheduler::Add(const RequestInput& input) {
  if (Status s = CheckAdd(input); !s.ok()) return s;
  // Whatever throws for want of memory does so before the request is anybody's.
  const auto abandon = [this](Request* request) { requests_.Abandon(*request); };
  std::unique_ptr<Request, decltype(abandon)> fresh(&requests_.Create(), abandon);
  Initialize(*fresh, input, config_, hasher_, kv_.unit());
  if (fresh->retention.timed()) kv_.EnableExpiry();
  ReserveQueues();
  Request& r = *fresh.release();
  r.order = OrderOf(config_, input.priority, clock_.NowMicros(), arrivals_++);
  waiting_.Push({r.order, r.id});
  ++num_waiting_;
  num_encoding_ += !r.items.empty();
  return r.id;
}

void Scheduler::ReserveQueues() {
  // Room for every running request to come back, so that preemption never allocates.
  const auto loading = static_cast<size_t>(remote_ ? remote_->limit() : 0);
  const size_t queued = waiting_.size() + held_.size() + loading + 1;
  waiting_.Reserve(queued + static_cast<size_t>(config_.max_num_seqs));
  held_.Reserve(queued);
  passed_over_.reserve(kMaxPassedOver + static_cast<size_t>(config_.max_num_seqs));
}

void Scheduler::SetPause(PauseMode mode) {
  pause_ = mode;
  while (mode != PauseMode::kNewRequests && !held_.empty()) waiting_.Push(held_.Pop());
}

void Scheduler::AdmitWaiting() {
  passed_over_.clear();
  Request* head = nullptr;  // the first that does not fit: later ones pass it, but not for ever
  // Beside a request that starts afresh to pack its blocks nobody is admitted: their blocks would
  // lie between its own, and it would start afresh for ever.
  const auto packing = [&] { return !running_.empty() && running_.front()->packed; };
  while (pass_.budget > 0 && !free_slots_.empty() && !waiting_.empty() && !packing()) {
    const WaitingQueue::Entry entry = waiting_.Pop();
    Request* r = requests_.Find(entry.id);
    if (!r || !r->live()) continue;
    if (pause_ == PauseMode::kNewRequests && r->cached_tokens < 0) {
      held_.Push(entry);
      continue;
    }
    Admission outcome = TryAdmit(*r);
    while (outcome == Admission::kDoesNotFit && OfferRoom(*r)) outcome = TryAdmit(*r);
    if (outcome == Admission::kLoading) continue;
    if (outcome == Admission::kAdmitted) {
      if (head && ++head->overtaken >= config_.max_overtakes) break;
      continue;
    }
    passed_over_.push_back(entry);
    if (outcome == Admission::kStepIsFull || passed_over_.size() >= kMaxPassedOver) break;
    if (outcome == Admission::kDoesNotFit && !head) head = r;
    if (head && head->overtaken >= config_.max_overtakes) break;
  }
  for (const auto& entry : passed_over_) waiting_.Push(entry);
}

int32_t Scheduler::LookupCap(const Request& r) const {
  // At least one token must run, or there would be nothing to sample from.
  int32_t cap = r.packed ? 0 : r.num_tokens - 1;
  if (r.wants_scores && r.scored < r.prompt_len - 1) cap = std::min(cap, r.scored);
  return cap;
}

bool Scheduler::StillDoesNotFit(const Request& r) {
  // What a part of a prompt takes depends on the step, alone it may start afresh, and a connector
  // is to be asked each time.
  if (!config_.full_prompt_gate || running_.empty() || remote_) return false;
  if (r.refused_room < 0) return false;
  if (kv_.room() > r.refused_room || pass_.reserved.total() < r.refused_promised) return false;
  if (next_step_ - r.refused_step < kRetrySteps || pass_.retried) return true;
  pass_.retried = true;
  return false;
}

bool Scheduler::OfferRoom(Request& r) {
  return remote_ && remote_->YieldTo(r, running_.empty() && num_open() == 0);
}

Scheduler::Admission Scheduler::TryAdmit(Request& r) {
  // Output of a step from before its preemption is still to come and belongs before what it
  // computes next.
  if (r.in_flight > 0) return Admission::kNotNow;
  if (StillDoesNotFit(r)) return Admission::kDoesNotFit;
  const int32_t cap = LookupCap(r);
  // Tokens of steps that were open when it was preempted came since; others may have filed them.
  if (kv_.caching()) r.ExtendChain(hasher_, kv_.unit());
  kv::KvManager::Hit hit = kv_.Match(r.chain(), cap, r.packed);
  if (remote_) {
    switch (Consult(r, hit.tokens)) {
      case RemoteKv::Answer::kLocal:
        break;
      case RemoteKv::Answer::kLookAgain:
        hit = kv_.Match(r.chain(), cap, r.packed);
        break;
      case RemoteKv::Answer::kLoading:
        r.status = RequestStatus::kWaitingForRemoteKv;
        return Admission::kLoading;
      case RemoteKv::Answer::kAskAgain:
        return Admission::kNotNow;
      case RemoteKv::Answer::kDoesNotFit:
        return Admission::kDoesNotFit;
    }
  }
  const Admission outcome = TryAdmit(r, hit);
  if (outcome != Admission::kDoesNotFit || hit.partial == 0) return outcome;
  // The block to copy from is held beside its own: too much for a pool that it fills alone.
  hit.partial = 0;
  return TryAdmit(r, hit);
}

Scheduler::Admission Scheduler::TryAdmit(Request& r, const kv::KvManager::Hit& hit) {
  const int32_t start = hit.tokens + hit.partial;
  const int32_t wanted = r.num_tokens - start;
  int32_t count = std::min(wanted, pass_.budget);
  if (pass_.many && config_.long_prefill_token_threshold > 0) {
    count = std::min(count, config_.long_prefill_token_threshold);
  }
  if (!config_.enable_chunked_prefill && count < wanted) return Admission::kStepIsFull;
  count = kv_.ClipChunk(hit, start, count, r.num_tokens);
  if (kv_.has_cross() && CrossWork(r, hit) > pass_.encoder_budget) return Admission::kStepIsFull;
  if (!r.items.empty()) {
    EncoderLimit limit = EncoderLimit::kNone;
    count = ClipToEncoder(r, start, count, &limit, CrossWork(r, hit));
    if (count == 0 && limit == EncoderLimit::kStep) return Admission::kStepIsFull;
    if (count == 0) return Admission::kDoesNotFit;
    if (!config_.enable_chunked_prefill && count < wanted) return Admission::kStepIsFull;
  }
  if (count == 0) return Admission::kNotNow;

  // What it will hold at most, less what it takes now, is kept free for it; so is what others were
  // promised before.
  const int32_t gate = config_.full_prompt_gate ? r.num_tokens : start + count;
  const kv::BlockNeed now = kv_.AdmissionNeed(hit, start + count);
  kv::BlockNeed keep = kv_.PeakNeed(hit, gate);
  for (int g = 0; g < kv_.num_groups(); ++g) keep.of[g] = std::max(0, keep.of[g] - now.of[g]);
  keep += pass_.reserved;
  const int32_t keep_parents =
      running_.empty() ? 0 : static_cast<int32_t>(config_.watermark * config_.num_blocks);
  const RowSlot slot{free_slots_.back()};
  if (!kv_.Admit(slot, hit, start + count, keep, keep_parents)) {
    const bool in_its_way =
        (hit.tokens > 0 && hit.partial == 0) || hit.cross_cached || r.transfer != 0;
    if (!in_its_way || !running_.empty() || num_open() > 0 || (remote_ && remote_->OthersHold(r))) {
      r.refused_room = kv_.room();
      r.refused_promised = pass_.reserved.total();
      r.refused_step = next_step_;
      return Admission::kDoesNotFit;
    }
    // Alone, and yet too large: its hit lies scattered over more parents than it fills, or what was
    // loaded for it is no hit any more (the block before it was of a step that failed).
    if (remote_) remote_->Detach(r);
    r.packed = true;
    return TryAdmit(r);
  }

  free_slots_.pop_back();
  r.slot = Index(slot);
  if (remote_) remote_->Detach(r);
  stats_.copied_tokens += hit.partial;
  StartRunning(r, start);
  AddRow(r, count);
  batch_.NoteAdmitted();
  if (kv_.has_cross()) UseCross(r, hit);
  if (FillsBlock(r, count)) Publish(r);  // a row after this one may hit it
  pass_.reserved += kv_.RemainingNeed(slot, r.num_tokens);
  return Admission::kAdmitted;
}

void Scheduler::StartRunning(Request& r, int32_t hit_tokens) {
  r.computed = hit_tokens;
  r.status = RequestStatus::kRunning;
  r.admitted_step = next_step_;
  r.admitted_len = r.num_tokens;
  r.local_only = false;
  r.loads = 0;
  r.refused_room = -1;
  r.asked_us = 0;
  --num_waiting_;
  stats_.prefix_queries += r.num_tokens;
  stats_.prefix_hits += hit_tokens;
  if (r.cached_tokens < 0) r.cached_tokens = std::min(hit_tokens, r.prompt_len);
  // A request that comes back from preemption belongs before those that were admitted after it.
  const auto at =
      std::upper_bound(running_.begin(), running_.end(), &r,
                       [](const Request* a, const Request* b) { return a->order < b->order; });
  running_.insert(at, &r);
}

}  // namespace octavo::sched
