// Draft tokens: rows that carry a guess of what follows, and what is kept of it.
//
// A row of [last token, d1 .. dk] is sampled at each of its tokens. Sample i is what the model says
// after the drafts before it, so it counts exactly when each of those equals the sample before it:
// the tokens that come out are the ones that come out without drafts (ADR 7). What was computed for
// the others is written over; a block is filed only under tokens that have been sampled.
#include <algorithm>

#include "base/strcat.h"
#include "sched/ngram.h"
#include "sched/scheduler.h"

namespace octavo::sched {

Status Scheduler::SetDrafts(RequestId id, std::span<const int32_t> drafts) {
  const auto most = static_cast<size_t>(config_.max_draft_tokens);
  if (most == 0) {
    return Status::FailedPrecondition(
        "this engine takes no drafts (max_draft_tokens=0): make it with a larger max_draft_tokens, "
        "which needs cache groups without a recurrent state");
  }
  if (drafts.size() > most) {
    return Status::InvalidArgument(
        StrCat("drafts has ", drafts.size(), " tokens: give at most max_draft_tokens=", most));
  }
  for (size_t i = 0; i < drafts.size(); ++i) {
    if (!Bad(drafts[i])) continue;
    return Status::InvalidArgument(StrCat("draft ", i, " is ", drafts[i],
                                          ": token ids of this model lie in [0, ",
                                          config_.vocab_size, ")"));
  }
  Request* const r = requests_.Find(id);
  if (!r || !r->live()) {
    return Status::NotFound(StrCat("request ", Value(id), " is unknown or has ended"));
  }
  if (r->drafting) {
    return Status::FailedPrecondition(
        StrCat("request ", Value(id), " has drafts in an open step: finish it first"));
  }
  r->drafts = 0;
  if (r->status != RequestStatus::kRunning) return Status::Ok();
  // The row yields one token more than it has drafts.
  const int32_t room = r->stop_len - r->num_tokens - 1;
  r->drafts = static_cast<int8_t>(std::min(static_cast<int32_t>(drafts.size()), room));
  std::copy_n(drafts.begin(), r->drafts, r->tokens + r->num_tokens);
  return Status::Ok();
}

bool Scheduler::AddDraftRow(Request& r, size_t index) {
  if (r.placeholders > 0) return true;  // first the tokens in flight, then what follows them
  const bool decodes = r.computed + 1 == r.num_tokens && r.computed >= r.prompt_len;
  // One token of the budget is left for each request after it: drafts hold nobody up.
  const int32_t after = num_running() - static_cast<int32_t>(index) - 1;
  r.drafts = static_cast<int8_t>(
      decodes ? std::max(0, std::min<int32_t>(r.drafts, pass_.budget - 1 - after)) : 0);
  if (r.drafts > 0) ShortenToFit(r);
  if (r.drafts == 0) return false;

  const int32_t count = 1 + r.drafts;
  r.Flush();
  batch_.AddRow(r.id, r.row_slot(), r.tokens, r.num_tokens + r.drafts, r.computed, count);
  if (kv_.has_cross()) batch_.SetCrossLen(r.cross.embeddings);
  const int32_t sample = batch_.AddSample(r.plain_greedy, r.num_logprobs(), r.drafts);
  for (int32_t i = r.drafts - 1; i >= 0; --i) {
    batch_.AddSample(r.plain_greedy, r.num_logprobs(), i);
  }
  planned_->rows.push_back({&r, count, sample, r.epoch, r.drafts});
  r.drafting = true;
  r.placeholders = static_cast<int8_t>(count);
  r.computed += count;
  r.in_flight += count;
  pass_.budget -= count;
  stats_.scheduled_tokens += count;
  ++stats_.draft_rows;
  stats_.draft_tokens += r.drafts;
  if (FillsBlock(r, count)) filled_.push_back(&r);
  return true;
}

void Scheduler::ShortenToFit(Request& r) {
  if (!pass_.counted) CountPromised();
  if (!kv_.keeps_everything() && !AtBoundary(r)) LeaveBehind(r);
  const int32_t end = r.computed + 1;
  int32_t drafts = r.drafts;
  // By whole blocks: the last one that could be had may be used up.
  while (drafts > 0 && !kv_.GrowSparing(r.row_slot(), end + drafts, pass_.promised)) {
    drafts = (end + drafts - 1) / kv_.unit() * kv_.unit() - end;
  }
  r.drafts = static_cast<int8_t>(std::max(0, drafts));
}

void Scheduler::CountPromised() {
  // A block for everybody who runs and what their prompts still need: nobody is preempted because
  // of a guess.
  pass_.counted = true;
  for (int g = 0; g < kv_.num_groups(); ++g) {
    pass_.promised.of[g] = kv_.is_cross(g) ? 0 : num_running();
  }
  for (const Request* r : running_) {
    if (r->computed + 1 >= r->num_tokens) continue;
    pass_.promised += kv_.RemainingNeed(r->row_slot(), r->num_tokens);
  }
}

void Scheduler::FinishDraftRow(const RowRecord& row, const int32_t* tokens) {
  if (!Land(row)) return;
  Request& r = *row.request;
  const bool stale = row.epoch != r.epoch;
  const int32_t before = r.num_tokens - 1;
  r.drafting = false;
  r.drafts = 0;
  if (!stale) {
    r.placeholders = 0;
    r.computed = r.num_tokens;  // what follows has to prove right
  }
  int32_t stop_token = -1;
  FinishReason reason = FinishReason::kNone;
  for (int32_t i = 0; i <= row.drafts; ++i) {
    const int32_t token = tokens[row.sample + i];
    if (Bad(token)) [[unlikely]] {
      FailRow(row, row.sample + i, before);
      return;
    }
    const bool guessed = i < row.drafts && r.tokens[r.num_tokens] == token;
    r.Append(token);
    ++stats_.generation_tokens;
    reason = r.ReasonToFinish(token, &stop_token);
    Emit(r, token, row.sample + i, reason, stop_token);
    stats_.accepted_tokens += guessed;
    if (!guessed || reason != FinishReason::kNone) break;
    if (!stale) ++r.computed;
  }
  r.Flush();
  if (!stale) PublishAccepted(r);
  if (reason != FinishReason::kNone) {
    Close(r, reason);
  } else if (config_.prompt_lookup_max > 0) {
    Propose(r);
  }
}

void Scheduler::PublishAccepted(Request& r) {
  // Now, as the next row may begin well inside the block after. The step has run: nothing takes
  // this back.
  if (!kv_.caching() || r.computed < kv_.published_tokens(r.row_slot()) + kv_.unit()) return;
  kv_.StopLogging();
  Publish(r);
}

void Scheduler::Propose(Request& r) {
  if (r.status != RequestStatus::kRunning) return;
  r.Flush();
  const int32_t from = FindContinuation(r.tokens, r.num_tokens, config_.prompt_lookup_min,
                                        config_.prompt_lookup_max);
  if (from < 0) return;
  const int32_t room = r.stop_len - r.num_tokens - 1;
  r.drafts = static_cast<int8_t>(std::min(config_.max_draft_tokens, room));
  // Forwards, one by one: a guess longer than what followed goes on with itself, as a loop does.
  for (int32_t i = 0; i < r.drafts; ++i) r.tokens[r.num_tokens + i] = r.tokens[from + i];
}

}  // namespace octavo::sched
