// After a step: tokens in, stop rules, blocks back.
#include <algorithm>

#include "base/check.h"
#include "base/strcat.h"
#include "sched/scheduler.h"

namespace octavo::sched {

Status Scheduler::CheckOpen(uint64_t step_id) const {
  if (num_open() == 0) {
    return Status::FailedPrecondition(StrCat("step ", step_id, " is not open: no step is"));
  }
  if (step_id != first_open_) {
    return Status::FailedPrecondition(
        StrCat("step ", step_id, " is not the oldest open step: finish ", first_open_, " first"));
  }
  return Status::Ok();
}

Result<std::span<const StepOutput>> Scheduler::Finish(uint64_t step_id,
                                                      std::span<const int32_t> tokens) {
  if (Status s = CheckOpen(step_id); !s.ok()) return s;
  StepRecord& step = record(step_id);
  if (tokens.size() != static_cast<size_t>(step.samples)) {
    return Status::InvalidArgument(StrCat("step ", step_id, " has ", step.samples, " samples, but ",
                                          tokens.size(), " tokens were given"));
  }
  num_outputs_ = 0;
  executed_ = step_id;
  for (size_t i = 0; i < step.rows.size(); ++i) {
    const RowRecord& row = step.rows[i];
    if (i + kPrefetchRequest < step.rows.size()) {
      __builtin_prefetch(step.rows[i + kPrefetchRequest].request, 1);
    }
    if (row.drafts > 0) [[unlikely]] {
      FinishDraftRow(row, tokens.data());
    } else {
      FinishRow(row, row.sample >= 0 ? tokens[row.sample] : -1);
    }
  }
  CloseStep(step);
  AppendEnded();
  return Outputs();
}

bool Scheduler::Land(const RowRecord& row) {
  Request& r = *row.request;
  r.in_flight -= row.count;
  if (r.live()) return true;
  if (r.in_flight == 0) requests_.Recycle(r);
  return false;
}

void Scheduler::FinishRow(const RowRecord& row, int32_t token) {
  if (!Land(row)) return;
  Request& r = *row.request;
  const bool stale = row.epoch != r.epoch;
  const bool failed = row.sample >= 0 && Bad(token);
  if (num_encoding_ > 0 && !stale && !failed) AdvanceEncoder(r, r.computed - r.in_flight);
  if (kv_.has_states() && !stale && !failed) PublishState(r);
  if (row.sample < 0) return;
  if (!stale) --r.placeholders;
  if (failed) [[unlikely]] {
    FailRow(row, row.sample, r.computed - r.in_flight - row.count);
  } else {
    AcceptToken(r, token, row.sample);
  }
}

void Scheduler::PublishState(Request& r) {
  // Now and not when the next step is planned: with a step in flight that one sees the state after
  // this only.
  const int32_t processed = r.computed - r.in_flight;
  if (kv_.caching() && processed % kv_.unit() == 0) {
    r.Flush();
    r.ExtendChain(hasher_, kv_.unit());
    kv_.PublishStates(r.row_slot(), r.chain(), processed);
  }
  // The state that this step read is large, and the next boundary may be hundreds of steps away.
  LeaveBehind(r);
}

void Scheduler::AcceptToken(Request& r, int32_t token, int32_t sample) {
  r.Append(token);
  if (r.drafts > 0) [[unlikely]]
    r.UseDraft(token);
  if (r.status != RequestStatus::kRunning) r.Flush();  // stale: the queue looks its prefix up
  ++stats_.generation_tokens;
  int32_t stop_token = -1;
  const FinishReason reason = r.ReasonToFinish(token, &stop_token);
  Emit(r, token, sample, reason, stop_token);
  if (reason != FinishReason::kNone) [[unlikely]] {
    Close(r, reason);
  } else if (config_.prompt_lookup_max > 0) {
    Propose(r);
  }
}

void Scheduler::FailRow(const RowRecord& row, int32_t sample, int32_t processed) {
  Request& r = *row.request;
  // What a sample of this life has seen came out right. Without one whatever it read may be wrong:
  // chunks before the last have no sample that would tell. Left in a cache it would fail whoever
  // comes again, for as long as it stays there.
  const bool proven = row.epoch == r.epoch && processed >= r.admitted_len;
  if (!proven) {
    for (const EncoderUse& use : r.items) {
      const int32_t entry = encoder_.Find(use.hash());
      if (entry >= 0) encoder_.Forget(entry);
    }
  }
  r.Flush();
  if (kv_.caching()) r.ExtendChain(hasher_, kv_.unit());
  kv_.ForgetPast(r.chain(), proven ? processed : 0);
  if (kv_.has_cross() && !proven) kv_.ForgetCross(r.chain());
  if (remote_) remote_->OnForget(r, proven ? processed : 0);
  Emit(r, -1, sample, FinishReason::kError, -1);
  Close(r, FinishReason::kError);
}

void Scheduler::Emit(const Request& r, int32_t token, int32_t sample, FinishReason reason,
                     int32_t stop_token) {
  // Field by field in place: a record built on the stack and copied stalls on its own small stores,
  // which was most of what finishing a row cost.
  StepOutput& o = outputs_[num_outputs_++];
  o.request = Value(r.id);
  o.token = token;
  o.sample = sample;
  o.stop_token = stop_token;
  o.cached_tokens = r.cached_tokens;
  o.finish = static_cast<uint8_t>(reason);
}

Result<std::span<const StepOutput>> Scheduler::Fail(uint64_t step_id) {
  if (Status s = CheckOpen(step_id); !s.ok()) return s;
  num_outputs_ = 0;
  // A later open step built on what this one did not write, so it fails with it.
  while (num_open() > 0) {
    StepRecord& step = record(first_open_);
    for (BlockId b : step.published) kv_.Forget(b);
    ForgetEncoded(step);
    for (const RowRecord& row : step.rows) {
      if (!Land(row)) continue;
      Request& r = *row.request;
      Emit(r, -1, row.sample, FinishReason::kError, -1);
      Close(r, FinishReason::kError);
    }
    CloseStep(step);
    ++stats_.failed_steps;
  }
  // No step is open now, so what they gave out is evicted too.
  for (uint64_t id = step_id; id < first_open_; ++id) {
    encoder_.EvictAgain(record(id).encoder_evicted);
  }
  AppendEnded();
  return Outputs();
}

void Scheduler::Close(Request& r, FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      ++stats_.finished_stop;
      break;
    case FinishReason::kLength:
      ++stats_.finished_length;
      break;
    case FinishReason::kAbort:
      ++stats_.finished_abort;
      break;
    case FinishReason::kError:
      ++stats_.finished_error;
      break;
    case FinishReason::kNone:
      OCTAVO_CHECK(false, "a request ends for a reason");
  }
  if (!r.items.empty()) {
    ReleaseEncoder(r);
    --num_encoding_;
  }
  const bool was_running = r.status == RequestStatus::kRunning;
  r.status = RequestStatus::kFinished;
  if (was_running) {
    // What a failed row or step left in its last block is not to be trusted.
    if (reason != FinishReason::kError) {
      PublishTail(r);
      if (remote_) OfferSave(r, KvRelease::kFinished);
    }
    ReleaseBlocks(r);
    compact_running_ = true;  // whoever takes it off the running list recycles it
  } else {
    if (remote_) remote_->Detach(r);
    --num_waiting_;  // its queue entry finds a finished request and is skipped
    if (r.in_flight == 0) requests_.Recycle(r);
  }
}

void Scheduler::PublishTail(Request& r) {
  if (!config_.sub_block_hits || !kv_.caching()) return;
  // What no sample has proven is not worth a copy.
  if (r.num_tokens <= r.admitted_len) return;
  r.Flush();
  r.ExtendChain(hasher_, kv_.unit());
  kv_.PublishTail(r.row_slot(), r.chain(), std::min(r.computed - r.in_flight, r.num_tokens));
}

void Scheduler::ReleaseBlocks(Request& r) {
  kv_.Release(r.row_slot(), kv_.timed() ? clock_.NowMicros() : 0);
  if (num_open() > 0) {
    quarantine_.push_back({r.slot, next_step_ - 1});
  } else {
    kv_.ClearRow(r.row_slot());
    free_slots_.push_back(r.slot);
  }
  r.slot = -1;
}

void Scheduler::CloseStep(StepRecord& step) {
  ++first_open_;
  kv_.EndCopies(step.copies);
  step.copies.clear();
  if (compact_running_) {
    compact_running_ = false;
    std::erase_if(running_, [&](Request* r) {
      if (r->live()) return false;
      if (r->in_flight == 0) requests_.Recycle(*r);
      return true;
    });
  }
  if (!quarantine_.empty()) {
    std::erase_if(quarantine_, [&](const Quarantine& q) {
      if (q.after_step > step.id) return false;
      kv_.ClearRow(RowSlot{q.slot});
      free_slots_.push_back(q.slot);
      return true;
    });
  }
}

Status Scheduler::End(RequestId id, FinishReason reason) {
  Request* r = requests_.Find(id);
  if (!r || !r->live()) {
    if (Unsay(id)) return Status::Ok();
    return Status::NotFound(StrCat("request ", Value(id), " is unknown or has ended"));
  }
  const bool was_running = r->status == RequestStatus::kRunning;
  Close(*r, reason);
  if (was_running) {
    compact_running_ = false;
    std::erase(running_, r);
    if (r->in_flight == 0) requests_.Recycle(*r);
  }
  return Status::Ok();
}

}  // namespace octavo::sched
