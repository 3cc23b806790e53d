// The scheduler's hooks for KV from elsewhere: who waits again, who ends, what is offered.
#include "base/check.h"
#include "sched/scheduler.h"

namespace octavo::sched {

void Scheduler::Attach(KvConnector& connector) {
  OCTAVO_CHECK(!remote_ && arrivals_ == 0, "a connector comes before the first request");
  // The connector comes last: one that was attached in vain would have been stopped.
  const auto unsaid = static_cast<size_t>(RemoteKv::LimitOf(config_)) * kPollsUnsaid;
  ended_.reserve(unsaid);
  outputs_.resize(outputs_.size() + unsaid);
  remote_ = std::make_unique<RemoteKv>(config_, kv_, clock_, connector);
}

void Scheduler::PollTransfers() {
  const RemoteKv::Changes& changes = remote_->Poll(first_open_ - 1);
  for (Request* r : changes.ready) {
    r->status = RequestStatus::kWaiting;
    waiting_.Push({r->order, r->id});
  }
  for (Request* r : changes.failed) {
    StepOutput& o = ended_.emplace_back();
    o = {};
    o.request = Value(r->id);
    o.token = o.sample = o.stop_token = -1;
    o.cached_tokens = r->cached_tokens;
    o.finish = static_cast<uint8_t>(FinishReason::kError);
    Close(*r, FinishReason::kError);
  }
}

RemoteKv::Answer Scheduler::Consult(Request& r, int32_t local_hit) {
  if (r.packed) return RemoteKv::Answer::kLocal;
  RemoteKv::Gate gate;
  gate.cap = LookupCap(r);
  gate.tokens = config_.full_prompt_gate ? r.num_tokens : 0;
  gate.keep = pass_.reserved;
  gate.keep_parents =
      running_.empty() ? 0 : static_cast<int32_t>(config_.watermark * config_.num_blocks);
  gate.last_step = next_step_ - 1;
  return remote_->Consult(r, local_hit, gate);
}

int32_t Scheduler::ProcessedTokens(const Request& r) const {
  // What it hit when it was admitted may have been planned in that very step.
  return r.admitted_step <= executed_ ? r.computed - r.in_flight : 0;
}

void Scheduler::OfferSave(Request& r, KvRelease why) {
  remote_->OnRelease(r, why, ProcessedTokens(r));
}

void Scheduler::AppendEnded() {
  for (const StepOutput& o : ended_) outputs_[num_outputs_++] = o;
  ended_.clear();
}

// Drops an end that nobody was told of: whoever asks for it now gets no output any more.
bool Scheduler::Unsay(RequestId id) {
  return std::erase_if(ended_, [id](const StepOutput& o) { return o.request == Value(id); }) > 0;
}

std::span<const StepOutput> Scheduler::TakeEnded() {
  num_outputs_ = 0;
  AppendEnded();
  return Outputs();
}

bool Scheduler::ResetPrefixCache() {
  while (remote_ && remote_->DropPin()) {
  }
  if (!kv_.Reset()) return false;
  if (remote_) remote_->Reset();
  return true;
}

}  // namespace octavo::sched
