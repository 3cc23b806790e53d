// Planning a step: the running requests, preemption, and the rows of the batch. Admission is in
// admission.cc, what happens after the step in finish.cc.
#include "sched/scheduler.h"

#include <algorithm>

#include "base/check.h"
#include "base/out_of_memory.h"

namespace octavo::sched {
namespace {

// How many of the latest running requests are compared as victims. Bounds a preemption's cost; the
// best victim is rarely far from the end.
constexpr size_t kVictimWindow = 32;

}  // namespace

Scheduler::Scheduler(const EngineConfig& config, kv::KvManager& kv, batch::StepBatch& batch,
                     Clock& clock, KvConnector* connector)
    : config_(config),
      kv_(kv),
      batch_(batch),
      clock_(clock),
      encoder_(config.encoder_cache_size),
      hasher_(config.hash_seed != 0 ? config.hash_seed : RandomSeed()) {
  const size_t rows = config.max_num_seqs;
  running_.reserve(rows);
  filled_.reserve(rows);
  ordered_.reserve(rows);
  growing_.resize(rows);
  free_slots_.reserve(rows);
  quarantine_.reserve(rows);
  // A failed step takes the later open ones with it: one output a row. A finished one has one a
  // sample at most.
  outputs_ = TakeVector<StepOutput>(
      std::max(config.max_steps_in_flight * rows, batch::MaxSamples(config)),
      "the outputs of a step", "lower max_num_seqs or max_draft_tokens, or free some memory");
  for (const GroupSpec& spec : config.groups) {
    if (spec.kind != GroupKind::kCross) continue;
    longest_cross_ =
        longest_cross_ > 0 ? std::min(longest_cross_, spec.encoder_len) : spec.encoder_len;
  }
  for (int32_t slot = config.max_num_seqs - 1; slot >= 0; --slot) free_slots_.push_back(slot);
  // A row files the blocks its tokens fill and at most one that was full before, and those of the
  // items that the step encodes.
  size_t filed = kv.num_groups() * (config.max_num_batched_tokens / kv.unit() + 2 * rows);
  if (kv.has_cross()) filed += kv.num_groups() * static_cast<size_t>(StepEncoderBudget());
  for (StepRecord& step : records_) {
    step.rows.reserve(rows);
    step.copies.reserve(batch::MaxCopies(config));
    step.published.reserve(filed);
    if (kv.has_cross()) step.encoder_inputs.reserve(rows);
    if (config.encoder_cache_size == 0) continue;
    // Every item and span that a step names has a token of its own in it.
    step.encoder_evicted.reserve(2 * static_cast<size_t>(config.encoder_cache_size));
    step.encoder_inputs.reserve(rows + config.max_num_batched_tokens);
    step.encoder_spans.reserve(config.max_num_batched_tokens);
  }
  if (connector) Attach(*connector);
}

const StepPlan* Scheduler::Begin() {
  if (num_open() == config_.max_steps_in_flight) return nullptr;
  // As long as there is room for those who may end by it: until somebody asks who has.
  if (remote_ && ended_.size() + remote_->limit() <= ended_.capacity()) PollTransfers();
  if (pause_ == PauseMode::kAll) return nullptr;  // what transfers brought has its place by now
  StepRecord& step = record(next_step_);
  planned_ = &step;
  step.id = next_step_;
  step.rows.clear();
  step.published.clear();
  step.encoder_inputs.clear();
  step.encoder_spans.clear();
  step.copies.clear();
  batch_.Open(step.id, kv_.tables());
  kv_.BeginStep(&step.published, &step.copies);
  if (kv_.timed()) [[unlikely]]
    kv_.Expire(clock_.NowMicros());

  pass_ = Pass{};
  pass_.budget = config_.max_num_batched_tokens;
  pass_.encoder_budget = StepEncoderBudget();
  pass_.many = num_running() + num_waiting_ > 1;
  ScheduleRunning();
  // New work while older work is being thrown out would only be thrown out in turn.
  if (!pass_.preempted) AdmitWaiting();
  if (step.rows.empty()) return nullptr;
  batch_.SetShared(kv_.shared_tokens(), OrderRows(step));
  if (!batch_.all_greedy()) DescribeSamples(step);
  for (const kv::BlockCopy& c : step.copies) {
    const auto& pool = kv_.pool();
    batch_.AddCopy(c.group, pool.TableId(c.source, c.group), pool.TableId(c.target, c.group),
                   c.tokens);
  }
  if (remote_) remote_->OnPlanned(step.id, step.published);
  HandOutEncoding(step);
  ++next_step_;
  ++stats_.steps;
  const StepPlan* plan = batch_.Close();
  step.samples = plan->num_samples;
  return plan;
}

// Last, when all that depends on who comes first is decided. Returns whether enough is shared for
// an order. Who computes part of a prompt stays where it is, for whoever may read what another row
// writes has to come after it; and nobody moves where encoders work, whose spans name tokens.
bool Scheduler::OrderRows(StepRecord& step) {
  if (config_.sharing_min_tokens == 0 || kv_.shared_tokens() < config_.sharing_min_tokens) {
    return false;
  }
  const int32_t rows = batch_.CountDecoding();
  if (rows < config_.sharing_min_rows) return false;
  if (!step.encoder_inputs.empty() || !step.encoder_spans.empty()) return false;
  const auto slots = batch_.row_slots().first(static_cast<size_t>(rows));
  const std::span<const int32_t> order = kv_.OrderByPrefix(slots);
  if (order.empty()) return true;
  batch_.Reorder(order);
  ordered_.clear();
  for (const int32_t row : order) {
    ordered_.push_back(step.rows[row]);
    ordered_.back().sample = static_cast<int32_t>(ordered_.size()) - 1;
  }
  std::ranges::copy(ordered_, step.rows.begin());
  return true;
}

void Scheduler::DescribeSamples(const StepRecord& step) {
  for (const RowRecord& row : step.rows) {
    if (row.sample < 0) continue;
    for (int32_t i = row.drafts; i >= 0; --i) {
      batch_.DescribeSample(row.request->DescribeSample(i));
    }
  }
}

// Who stands on a block boundary takes a block soon. What that reads and writes is brought near, in
// stages, each some requests behind the one before; and what they have left behind goes back.
void Scheduler::ReachBoundaries() {
  if (kv_.keeps_everything()) return;
  size_t n = 0;
  for (size_t i = 0; i < running_.size(); ++i) {
    if (i + kPrefetchRequest < running_.size()) {
      __builtin_prefetch(running_[i + kPrefetchRequest], 1);
    }
    growing_[n] = running_[i];
    n += AtBoundary(*running_[i]);  // no branch, for one in block_size is never foreseen
  }
  for (size_t i = 0; i < n + 4 * kPrefetchGrowing; ++i) {
    const auto at = [&](size_t stage) -> Request* {
      const size_t index = i - stage * kPrefetchGrowing;  // wraps where it is before the first
      return index < n ? growing_[index] : nullptr;
    };
    if (const Request* r = at(0)) kv_.PrefetchCounts(r->row_slot());
    if (const Request* r = at(1)) kv_.PrefetchRow(r->row_slot());
    if (const Request* r = at(2)) kv_.PrefetchDead(r->row_slot());
    if (const Request* r = at(3)) kv_.PrefetchForget(r->row_slot());
    if (Request* r = at(4)) LeaveBehind(*r);
  }
}

void Scheduler::ScheduleRunning() {
  ReachBoundaries();
  filled_.clear();
  // Preemption takes from the end of the list, so the index stays valid while the list shrinks.
  for (size_t i = 0; i < running_.size(); ++i) {
    Request& r = *running_[i];
    if (i + kPrefetchRequest < running_.size()) {
      __builtin_prefetch(running_[i + kPrefetchRequest], 1);
      __builtin_prefetch(running_[i + kPrefetchRequest]->recent, 1);
    }
    if (r.drafts > 0 && AddDraftRow(r, i)) [[unlikely]]
      continue;
    const int32_t count = TokensFor(r);
    const bool scheduled = count > 0 && MakeRoom(r, i, r.computed + count);
    if (scheduled) {
      AddRow(r, count);
      if (FillsBlock(r, count)) filled_.push_back(&r);
    }
    if (r.status == RequestStatus::kRunning && r.computed < r.num_tokens) {
      pass_.reserved += kv_.RemainingNeed(r.row_slot(), r.num_tokens);
    }
  }
  // Before anybody is admitted, who may hit these blocks: within a step every layer writes its KV
  // before it reads any.
  PublishFilled();
}

int32_t Scheduler::TokensFor(const Request& r) const {
  const int32_t wanted = r.num_tokens + r.placeholders - r.computed;
  if (wanted <= 0 || pass_.budget == 0) return 0;
  if (r.placeholders > 0) {
    // Sure to end with what is in flight, or in need of a token that is not known yet.
    if (r.num_tokens + r.placeholders >= r.stop_len || r.needs_history) return 0;
  }
  int32_t count = std::min(wanted, pass_.budget);
  if (pass_.many && config_.long_prefill_token_threshold > 0) {
    count = std::min(count, config_.long_prefill_token_threshold);
  }
  if (!config_.enable_chunked_prefill && count < wanted) return 0;
  count = kv_.ClipChunk(r.row_slot(), r.computed, count, r.num_tokens);
  return num_encoding_ > 0 ? ClipToEncoder(r, r.computed, count) : count;
}

bool Scheduler::MakeRoom(Request& r, size_t index, int32_t tokens) {
  // A decode step stays inside its last block 15 times out of 16.
  if (tokens - r.computed == 1 && !AtBoundary(r)) return true;
  if (!kv_.keeps_everything() && !AtBoundary(r)) LeaveBehind(r);
  while (!kv_.Grow(r.row_slot(), tokens)) {
    if (remote_ && remote_->DropPin()) continue;
    if (remote_ && remote_->RoomIsComing()) return false;  // a victim's blocks are being saved
    const int32_t victim = PickVictim(index);
    if (victim >= 0) {
      Preempt(static_cast<size_t>(victim));
      continue;
    }
    // Nobody comes after it. The oldest request keeps what it has: whatever holds the other blocks
    // (a step in flight, a transfer) will let go of them.
    if (index > 0) {
      Preempt(index);
    } else if (num_open() == 0 && kv_.pool().num_groups() > 1 &&
               !(remote_ && remote_->OthersHold(r))) {
      // Alone, and yet short: its blocks lie scattered over more parents than they fill. Starting
      // afresh without the cache packs them.
      r.packed = true;
      Preempt(index);
    }
    return false;
  }
  return true;
}

void Scheduler::LeaveBehind(Request& r) {
  kv_.FreeDead(r.row_slot(), r.computed - r.in_flight, r.prompt_len, r.packed);
}

int32_t Scheduler::PickVictim(size_t requester) const {
  if (requester + 1 >= running_.size()) return -1;
  if (config_.victim == VictimPolicy::kLast) return static_cast<int32_t>(running_.size()) - 1;
  const size_t first =
      std::max(requester + 1, running_.size() - std::min(running_.size(), kVictimWindow));
  int32_t best = -1;
  int64_t best_cost = 0;
  int64_t best_freed = 1;
  for (size_t i = running_.size(); i-- > first;) {
    const Request& r = *running_[i];
    // Full blocks that are filed stay findable after release, in the pool or in a tier behind it,
    // so only the rest is computed again.
    const int64_t kept = kv_.published_tokens(r.row_slot());
    const int64_t cost = std::max<int64_t>(0, r.computed - kept);
    const int64_t freed = kv_.ExclusiveBlocks(r.row_slot());
    if (freed == 0) continue;
    // cost / freed < best_cost / best_freed, without the division.
    if (best < 0 || cost * best_freed < best_cost * freed) {
      best = static_cast<int32_t>(i);
      best_cost = cost;
      best_freed = freed;
    }
  }
  return best >= 0 ? best : static_cast<int32_t>(running_.size()) - 1;
}

void Scheduler::Preempt(size_t index) {
  Request& r = *running_[index];
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(index));
  r.Flush();  // the queue looks its prefix up
  PublishTail(r);
  if (remote_) OfferSave(r, KvRelease::kPreempted);
  ReleaseBlocks(r);
  ReleaseEncoder(r);
  r.computed = 0;
  r.placeholders = 0;
  if (!r.drafting) r.drafts = 0;
  ++r.epoch;  // what is in flight is stale from now on: delivered, but it moves no counter
  r.status = RequestStatus::kPreempted;
  waiting_.Push({r.order, r.id});
  ++num_waiting_;
  ++stats_.preemptions;
  pass_.preempted = true;
}

void Scheduler::AddRow(Request& r, int32_t count) {
  if (count == 1 && r.computed + 1 >= r.num_tokens) {
    r.Stash();
    const int32_t token = r.computed < r.num_tokens ? r.last_token : -1;
    batch_.AddToken(r.id, r.row_slot(), token, r.computed);
  } else {
    r.Flush();
    batch_.AddRow(r.id, r.row_slot(), r.tokens, r.num_tokens, r.computed, count);
  }
  if (kv_.has_cross()) [[unlikely]]
    batch_.SetCrossLen(r.cross.embeddings);
  stats_.scheduled_tokens += count;
  if (r.computed < r.prompt_len) {
    stats_.prompt_tokens += std::min(r.prompt_len - r.computed, count);
    if (r.wants_scores) AddScores(r, count);
  }
  int32_t sample = -1;
  if (r.computed + count == r.num_tokens + r.placeholders) {
    sample = batch_.AddSample(r.plain_greedy, r.num_logprobs());
    ++r.placeholders;
  }
  if (num_encoding_ > 0) UseEncoder(r, r.computed, count);
  r.computed += count;
  r.in_flight += count;
  pass_.budget -= count;
  RowRecord& row = planned_->rows.emplace_back();  // in place, as in Emit
  row.request = &r;
  row.count = count;
  row.sample = sample;
  row.epoch = r.epoch;
  row.drafts = 0;
}

bool Scheduler::FillsBlock(const Request& r, int32_t count) const {
  // With tokens in flight the block becomes known full that many steps later.
  if (!kv_.caching()) return false;
  if (count == 1 && (r.computed & (kv_.unit() - 1)) >= config_.max_steps_in_flight) return false;
  const int32_t known = std::min(r.computed, r.num_tokens);
  return known >= kv_.published_tokens(r.row_slot()) + kv_.unit();
}

void Scheduler::Publish(Request& r) {
  r.ExtendChain(hasher_, kv_.unit());
  kv_.Publish(r.row_slot(), r.chain(), std::min(r.computed, r.num_tokens));
}

void Scheduler::PublishFilled() {
  // Four stages, each some requests behind the one before: a block filed on its own waits for eight
  // misses, and one request in block_size files one in each step.
  const size_t n = filled_.size();
  for (size_t i = 0; i < n + kPrefetchRow; ++i) {
    if (i < n) {
      __builtin_prefetch(&filled_[i]->hashes);
      __builtin_prefetch(filled_[i]->tokens + filled_[i]->num_tokens - 1, 1);
      kv_.PrefetchRow(filled_[i]->row_slot());
    }
    if (const size_t at = i - kPrefetchHashes; i >= kPrefetchHashes && at < n) {
      const std::vector<Hash128>& hashes = filled_[at]->hashes;
      __builtin_prefetch(hashes.data() + hashes.size(), 1);
    }
    if (const size_t at = i - kPrefetchBlock; i >= kPrefetchBlock && at < n) {
      filled_[at]->ExtendChain(hasher_, kv_.unit());
      kv_.PrefetchPublish(filled_[at]->row_slot(), filled_[at]->chain());
    }
    if (i >= kPrefetchRow) Publish(*filled_[i - kPrefetchRow]);
  }
}

void Scheduler::AddScores(Request& r, int32_t count) {
  // Token p predicts token p + 1; the last prompt token predicts the first output.
  const int32_t end = std::min(r.computed + count, r.prompt_len - 1);
  for (int32_t p = std::max(r.computed, r.scored); p < end; ++p) {
    batch_.AddScore(p - r.computed, r.tokens[p + 1], r.params.num_prompt_logprobs);
  }
  r.scored = std::max(r.scored, end);
}

EngineStats Scheduler::Stats() const {
  EngineStats s = stats_;
  if (remote_) remote_->AddTo(&s);
  s.running = num_running();
  s.waiting = num_waiting_;
  s.evictions = kv_.evictions();
  s.dropped_events = kv_.events().dropped();
  s.total_blocks = kv_.pool().num_parents() - 1;
  s.free_blocks = kv_.free_blocks();
  s.cached_blocks = kv_.map().size();
  s.encoder_entries = encoder_.size();
  s.encoder_embeddings = encoder_.capacity() - encoder_.free();
  int group = 0;  // the first that holds tokens
  while (kv_.is_cross(group)) ++group;
  for (const Request* r : running_) {
    s.kv_slots_allocated +=
        int64_t{kv_.length(r->row_slot(), group)} * kv_.tables()[group].block_size;
    s.kv_slots_filled += r->computed;
  }
  return s;
}

void Scheduler::CheckInvariants() const {
  CheckEncoderInvariants();
  kv_.CheckInvariants();
  const Request* previous = nullptr;
  for (const Request* r : running_) {
    OCTAVO_CHECK(r->status == RequestStatus::kRunning, "a running request is not running");
    OCTAVO_CHECK(!previous || previous->order < r->order, "the running list is out of order");
    for (int g = 0; g < kv_.num_groups(); ++g) {
      if (kv_.is_cross(g)) continue;
      OCTAVO_CHECK(r->computed <= kv_.length(r->row_slot(), g) * kv_.tables()[g].block_size,
                   "more tokens computed than the blocks hold");
    }
    OCTAVO_CHECK(r->computed <= r->num_tokens + r->placeholders, "computed past the last token");
    OCTAVO_CHECK(r->in_flight >= 0 && r->in_flight <= r->computed, "in flight out of range");
    OCTAVO_CHECK(
        r->placeholders >= 0 && r->placeholders <= (r->drafting ? 1 + r->drafts : num_open()),
        "placeholders out of range");
    OCTAVO_CHECK(r->drafts >= 0 && r->drafts <= config_.max_draft_tokens &&
                     r->num_tokens + r->drafts < r->stop_len,
                 "drafts out of range");
    OCTAVO_CHECK(r->num_tokens < r->stop_len, "a request runs past its length");
    previous = r;
  }
  OCTAVO_CHECK(num_running() + num_waiting_ <= requests_.live(), "requests were lost");
  OCTAVO_CHECK(running_.size() + free_slots_.size() + quarantine_.size() ==
                   static_cast<size_t>(config_.max_num_seqs),
               "row slots leaked");
}

}  // namespace octavo::sched
