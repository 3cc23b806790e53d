#include "sim/fuzz/connector.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace octavo::sim {
namespace {

constexpr uint64_t kModestStream = 2;

uint64_t Fold(int32_t group, const Hash128& hash) {
  return Mix(hash.lo ^ uint64_t(group), hash.hi);
}

}  // namespace

FaultyConnector::FaultyConnector(const EngineConfig& config, uint64_t seed, OpCounts* counts,
                                 HashModel* model)
    : groups_(config),
      random_(seed),
      counts_(counts),
      model_(model),
      trouble_(random_.Between(3, 20)),
      mortal_(random_.OneIn(3)),
      less_(Mix(seed, kModestStream)),
      modest_(less_.OneIn(3)) {}

bool FaultyConnector::Strikes(OpKind kind, int32_t one_in) {
  if (!random_.OneIn(one_in)) return false;
  ++(*counts_)[size_t(kind)];
  return true;
}

uint64_t FaultyConnector::ContentOf(const KvRequest& request, int32_t group, int32_t index) const {
  return Fold(group, groups_.KeyOf(request, group, index).hash);
}

KvMatch FaultyConnector::Match(const KvRequest& request, int32_t local_hit,
                               const KvResidency& local) {
  OCTAVO_CHECK(!dead_, "a dead connector is asked");
  if (Strikes(OpKind::kLoadUnknown, trouble_)) return {.known = false};
  const auto has = [&](int32_t g, int32_t i) {
    return local.Has(g, i) || store_.contains(ContentOf(request, g, i));
  };
  const int32_t more = groups_.LongestPrefix(request, local_hit, has) - local_hit;
  if (more == 0 || !modest_ || !less_.OneIn(3)) return {.tokens = more};
  // A shorter prefix may need blocks of a window that the longest does not.
  KvRequest part = request;
  part.hashes = part.hashes.first(size_t((local_hit + less_.Below(more + 1)) / groups_.unit()));
  return {.tokens = groups_.LongestPrefix(part, local_hit, has) - local_hit};
}

void FaultyConnector::OnForget(const KvRequest& request, int32_t first) {
  OCTAVO_CHECK(!dead_, "a dead connector is told to forget");
  for (int g = 0; g < groups_.size(); ++g) {
    for (int32_t i = first / groups_.spec(g).block_size; i < groups_.Covered(request, g); ++i) {
      store_.erase(ContentOf(request, g, i));
    }
  }
}

void FaultyConnector::OnStepPlanned(uint64_t step_id) {
  OCTAVO_CHECK(!dead_ && step_id > last_step_, "steps are planned in order");
  last_step_ = step_id;
}

FaultyConnector::Job FaultyConnector::Describe(const KvTransfer& t, bool load) const {
  Job job{t.id, load, false, t.last_token, {}};
  for (const KvBlock& b : t.blocks) {
    OCTAVO_CHECK(groups_.spec(b.group).kind != GroupKind::kCross, "a transfer moves an item");
    const int32_t end = (b.index + 1) * groups_.spec(b.group).block_size;
    Piece piece{b, ContentOf(t.request, b.group, b.index), end, {}};
    if (const auto found = store_.find(piece.content); load && found != store_.end()) {
      piece.cells = found->second;
    }
    job.pieces.push_back(std::move(piece));
  }
  return job;
}

void FaultyConnector::Fill(const Piece& piece, bool garbage) {
  std::vector<Cell> cells = piece.cells;
  if (garbage) {
    cells.assign(size_t(groups_.spec(piece.block.group).block_size), {random_.Next(), 1, 1});
  }
  model_->WriteBlock(piece.block.group, piece.block.block, cells);
}

void FaultyConnector::Keep(const Job& job) {
  for (const Piece& p : job.pieces) {
    store_[p.content] = model_->ReadBlock(p.block.group, p.block.block);
  }
}

KvStart FaultyConnector::StartLoad(const KvTransfer& load) {
  OCTAVO_CHECK(!dead_, "a dead connector is asked to load");
  Job job = Describe(load, true);
  const bool whole = std::all_of(job.pieces.begin(), job.pieces.end(),
                                 [](const Piece& p) { return !p.cells.empty(); });
  if (!whole || Strikes(OpKind::kLoadRefused, trouble_)) return KvStart::kRefused;
  for (const Piece& p : job.pieces) Fill(p, true);
  if (random_.OneIn(3)) {
    for (const Piece& p : job.pieces) Fill(p, false);
    return KvStart::kDone;
  }
  job.lost = Strikes(OpKind::kLoadLost, trouble_);
  jobs_.push_back(std::move(job));
  return KvStart::kPending;
}

KvStart FaultyConnector::OnRelease(const KvTransfer& save, KvRelease) {
  OCTAVO_CHECK(!dead_, "a dead connector is asked to save");
  const int32_t choice = random_.Below(3);
  if (choice == 0) return KvStart::kRefused;
  Job job = Describe(save, false);
  if (choice == 1) {
    Keep(job);
    return KvStart::kDone;
  }
  job.lost = Strikes(OpKind::kSaveLost, trouble_);
  jobs_.push_back(std::move(job));
  return KvStart::kPending;
}

void FaultyConnector::OnEvict(const KvContent& content) {
  OCTAVO_CHECK(!dead_, "a dead connector is told of an eviction");
  OCTAVO_CHECK(groups_.spec(content.group).kind != GroupKind::kCross, "an item is offered");
  store_[Fold(content.group, content.hash)] = model_->ReadBlock(content.group, content.block);
}

KvReport FaultyConnector::Finish(const Job& job) {
  if (!job.load) {
    Keep(job);
    return {job.id};
  }
  int32_t valid = job.tokens;
  if (Strikes(OpKind::kLoadFailed, trouble_)) {
    valid = 0;
  } else if (Strikes(OpKind::kLoadPartial, trouble_)) {
    valid = random_.Below(job.tokens);
  }
  for (const Piece& p : job.pieces) {
    if (p.end <= valid) Fill(p, false);
  }
  return {job.id, valid == job.tokens, valid};
}

Status FaultyConnector::TakeReports(std::vector<KvReport>* reports) {
  OCTAVO_CHECK(!dead_, "a dead connector is asked for reports");
  if (mortal_ && random_.OneIn(20 * trouble_)) {
    Stop();
    return Status::Unavailable("the peer is gone");
  }
  for (size_t i = 0; i < jobs_.size();) {
    if (jobs_[i].lost || Strikes(OpKind::kTransferLate, 2)) {
      // What is half loaded looks different every time.
      if (jobs_[i].load && !jobs_[i].pieces.empty()) Fill(jobs_[i].pieces[0], true);
      ++i;
      continue;
    }
    reports->push_back(Finish(jobs_[i]));
    if (said_.size() < 32) said_.push_back(reports->back());
    jobs_.erase(jobs_.begin() + std::ptrdiff_t(i));
  }
  if (!said_.empty() && Strikes(OpKind::kReportRepeated, trouble_)) {
    reports->push_back(said_[random_.Next() % said_.size()]);
  }
  if (Strikes(OpKind::kReportUnknown, trouble_)) {
    reports->push_back({1'000'000 + (random_.Next() >> 32)});
  }
  return Status::Ok();
}

bool FaultyConnector::Cancel(uint64_t transfer) {
  OCTAVO_CHECK(!dead_, "a dead connector is asked to cancel");
  const auto job =
      std::find_if(jobs_.begin(), jobs_.end(), [&](const Job& j) { return j.id == transfer; });
  OCTAVO_CHECK(job != jobs_.end(), "what was reported is cancelled");
  if (Strikes(OpKind::kCancelRefused, 2)) return false;
  jobs_.erase(job);
  return true;
}

void FaultyConnector::Stop() {
  if (!dead_) ++(*counts_)[size_t(OpKind::kConnectorDeath)];
  dead_ = true;
  jobs_.clear();
}

}  // namespace octavo::sim
