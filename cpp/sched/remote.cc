#include "sched/remote.h"

#include <algorithm>

#include "base/check.h"

namespace octavo::sched {
namespace {

// Loads and saves under way at once; each may hold a whole prompt's blocks.
constexpr int32_t kMaxTransfers = 1024;
// In a pool with room for one of them, two requests could load for ever, each into the blocks that
// the other has just given up. Who has loaded so often without coming to run computes.
constexpr int kMostLoads = 8;

// What the pool holds of one request's prefix.
class Residency final : public KvResidency {
 public:
  Residency(const kv::KvManager& kv, const kv::PrefixChain& chain) : kv_(kv), chain_(chain) {}
  bool Has(int32_t group, int32_t index) const override { return kv_.Cached(chain_, group, index); }

 private:
  const kv::KvManager& kv_;
  const kv::PrefixChain& chain_;
};

}  // namespace

RemoteKv::RemoteKv(const EngineConfig& config, kv::KvManager& kv, Clock& clock,
                   KvConnector& connector)
    : config_(config), kv_(kv), clock_(clock), connector_(connector), table_(LimitOf(config)) {
  changes_.ready.reserve(table_.limit());
  changes_.failed.reserve(table_.limit());
  reports_.reserve(2 * table_.limit());
  if (connector.WantsEvictions()) {
    filed_by_.resize(kv.pool().num_places());
    kv.set_eviction_listener(this);
  }
}

int32_t RemoteKv::LimitOf(const EngineConfig& config) {
  return std::min(2 * config.max_num_seqs, kMaxTransfers);
}

RemoteKv::~RemoteKv() {
  kv_.set_eviction_listener(nullptr);
  if (!dead_) connector_.Stop();
}

KvRequest RemoteKv::View(Request& r) const {
  r.Flush();
  const kv::PrefixChain chain = r.chain();
  return {r.id, chain.tokens, chain.hashes, chain.root, r.extra.salt};
}

const RemoteKv::Changes& RemoteKv::Poll(uint64_t executed) {
  executed_ = executed;
  changes_.ready.clear();
  changes_.failed.clear();
  if (dead_) return changes_;
  reports_.clear();
  const Status alive = connector_.TakeReports(&reports_);
  for (const KvReport& report : reports_) {
    Transfer* t = table_.Find(report.transfer);
    if (t) Settle(*t, report);
  }
  if (!alive.ok()) Die();
  if (table_.active() == 0) return changes_;
  const int64_t now = clock_.NowMicros();
  for (Transfer& t : table_.places()) {
    if (dead_) break;
    switch (t.phase) {
      case TransferPhase::kFenced:
        if (t.after_step > executed) break;
        if (Request* r = t.request; Start(t) != Answer::kLoading) changes_.ready.push_back(r);
        break;
      case TransferPhase::kLoading:
      case TransferPhase::kSaving:
      case TransferPhase::kCancelled:
        if (config_.kv_load_timeout_ms > 0 && now >= t.deadline_us) Expire(t, now);
        break;
      case TransferPhase::kFree:
      case TransferPhase::kLoaded:
        break;
    }
  }
  return changes_;
}

RemoteKv::Answer RemoteKv::Consult(Request& r, int32_t local_hit, const Gate& gate) {
  // With a pin it has been loaded already, and is as good as it gets.
  if (dead_ || r.local_only || r.loads >= kMostLoads || r.transfer != 0) return Answer::kLocal;
  const KvRequest view = View(r);
  const kv::PrefixChain chain = r.chain();
  const KvMatch match = connector_.Match(view, local_hit, Residency(kv_, chain));
  if (!match.known) {
    const int64_t now = clock_.NowMicros();
    if (r.asked_us == 0) r.asked_us = now;
    const int64_t limit = config_.kv_load_timeout_ms * 1000;
    if (limit == 0 || now - r.asked_us < limit) return Answer::kAskAgain;
    r.local_only = true;
    return Answer::kLocal;
  }
  const int64_t known = int64_t{kv_.unit()} * static_cast<int64_t>(r.hashes.size());
  const int64_t reach = std::min({int64_t{local_hit} + match.tokens, int64_t{gate.cap}, known});
  const int32_t tokens = static_cast<int32_t>(reach / kv_.align() * kv_.align());
  if (tokens <= local_hit) return Answer::kLocal;
  // Whoever loads the same content is waited for: it will be a hit.
  const Hash128& content = r.hashes[local_hit / kv_.unit()];
  if (IsLoading(content)) return Answer::kAskAgain;
  Transfer* t = table_.Create();
  if (!t && DropPinBut(&r, r.order)) t = table_.Create();
  if (!t) return Answer::kLocal;
  t->phase = TransferPhase::kFenced;
  t->hold = kv_.HoldPrefix(chain, tokens, std::max(tokens, gate.tokens), gate.keep,
                           gate.keep_parents, &t->blocks);
  if (t->hold < 0) {
    table_.Free(*t);
    // Without memory for the list of blocks nothing is loaded: the request computes it.
    return t->hold == kv::KvManager::kNoMemory ? Answer::kLocal : Answer::kDoesNotFit;
  }
  t->first_token = local_hit;
  t->last_token = tokens;
  t->content = content;
  t->request = &r;
  t->after_step = gate.last_step;
  r.transfer = t->id;
  // A step that is still open may read what these blocks held before.
  return gate.last_step > executed_ ? Answer::kLoading : Start(*t);
}

RemoteKv::Answer RemoteKv::Start(Transfer& t) {
  Request& r = *t.request;
  ++stats_.kv_loads;
  ++r.loads;
  t.phase = TransferPhase::kLoading;
  const KvTransfer load{t.id, View(r), t.first_token, t.last_token, t.blocks};
  switch (connector_.StartLoad(load)) {
    case KvStart::kDone:
      Arrive(t, t.last_token);
      return Answer::kLookAgain;
    case KvStart::kPending:
      t.deadline_us = Deadline();
      return Answer::kLoading;
    case KvStart::kRefused:
      break;
  }
  --stats_.kv_loads;
  r.local_only = true;
  Drop(t);
  return Answer::kLookAgain;
}

void RemoteKv::Settle(Transfer& t, const KvReport& report) {
  if (t.phase == TransferPhase::kSaving || t.phase == TransferPhase::kCancelled) return Drop(t);
  if (t.phase != TransferPhase::kLoading) return;  // said before, or never asked for
  if (report.ok) {
    changes_.ready.push_back(t.request);
    return Arrive(t, t.last_token);
  }
  Arrive(t, std::clamp(report.valid_tokens, 0, t.last_token));
  Fail(t);
  Drop(t);
}

// The first `valid` tokens are there: from now on they are a cached prefix that `t` pins.
void RemoteKv::Arrive(Transfer& t, int32_t valid) {
  kv_.FileLoaded(t.request->chain(), t.blocks, valid);
  if (!filed_by_.empty()) {
    for (const KvBlock& b : t.blocks) {
      filed_by_[Index(kv_.pool().FromTable(b.block, b.group))] = 0;
    }
  }
  stats_.kv_loaded_tokens += static_cast<uint64_t>(std::max(0, valid - t.first_token));
  t.phase = TransferPhase::kLoaded;
}

// The request goes on, or ends, without what was promised.
void RemoteKv::Fail(Transfer& t) {
  Request& r = *t.request;
  ++stats_.kv_loads_failed;
  t.request = nullptr;
  r.transfer = 0;
  r.local_only = true;  // or it would be promised the same again
  const bool ends = config_.kv_load_failure_policy == KvLoadFailurePolicy::kFail;
  (ends ? changes_.failed : changes_.ready).push_back(&r);
}

void RemoteKv::Expire(Transfer& t, int64_t now) {
  if (t.phase == TransferPhase::kCancelled) {
    // It was asked to let go of these blocks long ago.
    connector_.Stop();
    return Die();
  }
  if (t.phase == TransferPhase::kLoading) Fail(t);
  t.deadline_us = now + config_.kv_load_timeout_ms * 1000;
  Abandon(t);
}

void RemoteKv::Abandon(Transfer& t) {
  if (connector_.Cancel(t.id)) return Drop(t);
  t.phase = TransferPhase::kCancelled;
}

void RemoteKv::Drop(Transfer& t) {
  if (t.request) t.request->transfer = 0;
  kv_.DropHold(t.hold);
  table_.Free(t);
}

void RemoteKv::Die() {
  dead_ = true;
  kv_.set_eviction_listener(nullptr);
  ++stats_.kv_connector_deaths;
  for (Transfer& t : table_.places()) {
    switch (t.phase) {
      case TransferPhase::kFenced:  // nothing was begun, so nothing is lost
        changes_.ready.push_back(t.request);
        Drop(t);
        break;
      case TransferPhase::kLoading:
        Fail(t);
        Drop(t);
        break;
      case TransferPhase::kSaving:
      case TransferPhase::kCancelled:
        Drop(t);
        break;
      case TransferPhase::kFree:
      case TransferPhase::kLoaded:  // a cached prefix like any other
        break;
    }
  }
}

void RemoteKv::Detach(Request& r) {
  if (r.transfer == 0) return;
  Transfer& t = *table_.Find(r.transfer);
  r.transfer = 0;
  t.request = nullptr;
  if (t.phase == TransferPhase::kLoading) {
    Abandon(t);
  } else {
    Drop(t);
  }
}

bool RemoteKv::DropPinBut(const Request* spared, OrderKey after) {
  Transfer* latest = nullptr;
  for (Transfer& t : table_.places()) {
    if (t.phase != TransferPhase::kLoaded || t.request == spared) continue;
    if (spared && t.request->order < after) continue;
    if (!latest || latest->request->order < t.request->order) latest = &t;
  }
  if (latest) Drop(*latest);
  return latest != nullptr;
}

bool RemoteKv::YieldTo(Request& r, bool alone) {
  const OrderKey first{INT64_MIN, 0};
  if (DropPinBut(&r, alone ? first : r.order)) return true;
  if (!alone || OthersHold(r) || r.local_only) return false;
  r.local_only = true;
  return true;
}

bool RemoteKv::RoomIsComing() const {
  for (const Transfer& t : table_.places()) {
    if (t.of_victim && t.phase != TransferPhase::kFree) return true;
  }
  return false;
}

bool RemoteKv::OthersHold(const Request& r) const {
  return table_.active() > (r.transfer != 0 ? 1 : 0);
}

bool RemoteKv::IsLoading(const Hash128& content) const {
  for (const Transfer& t : table_.places()) {
    const bool loads = t.phase == TransferPhase::kFenced || t.phase == TransferPhase::kLoading;
    if (loads && t.content == content) return true;
  }
  return false;
}

void RemoteKv::OnRelease(Request& r, KvRelease why, int32_t processed) {
  if (dead_ || !connector_.WantsReleases()) return;
  Transfer* const t = table_.Create();
  if (!t) return;  // what cannot be followed is not saved
  t->hold = kv_.HoldFiled(r.row_slot(), processed, &t->blocks);
  if (t->hold < 0) return table_.Free(*t);
  t->phase = TransferPhase::kSaving;
  t->first_token = 0;
  t->last_token = processed;
  const KvTransfer save{t->id, View(r), 0, processed, t->blocks};
  if (t->blocks.empty() || connector_.OnRelease(save, why) != KvStart::kPending) return Drop(*t);
  ++stats_.kv_saves;
  t->of_victim = why == KvRelease::kPreempted;
  t->deadline_us = Deadline();
}

void RemoteKv::OnForget(Request& r, int32_t first) {
  if (!dead_) connector_.OnForget(View(r), first);
}

void RemoteKv::OnPlanned(uint64_t step_id, const std::vector<BlockId>& filed) {
  if (dead_) return;
  if (!filed_by_.empty()) {
    for (BlockId b : filed) filed_by_[Index(b)] = step_id;
  }
  connector_.OnStepPlanned(step_id);
}

void RemoteKv::OnEvict(BlockId b, const kv::PrefixKey& key) {
  // Filed when it was planned: the step that writes it may not have run.
  if (filed_by_[Index(b)] > executed_) return;
  connector_.OnEvict(
      {key.group, kv_.pool().TableId(b, key.group), key.hash, key.parent, key.tokens});
}

void RemoteKv::Reset() {
  if (!dead_) connector_.Reset();
}

void RemoteKv::AddTo(EngineStats* s) const {
  s->kv_loads = stats_.kv_loads;
  s->kv_loads_failed = stats_.kv_loads_failed;
  s->kv_loaded_tokens = stats_.kv_loaded_tokens;
  s->kv_saves = stats_.kv_saves;
  s->kv_connector_deaths = stats_.kv_connector_deaths;
  for (const Transfer& t : table_.places()) {
    s->kv_transfers += t.phase != TransferPhase::kFree && t.phase != TransferPhase::kLoaded ? 1 : 0;
  }
}

}  // namespace octavo::sched
