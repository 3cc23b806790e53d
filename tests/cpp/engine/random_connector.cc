#include "engine/random_connector.h"

#include <algorithm>

namespace octavo::engine {
namespace {

// Content is compared in full by kv::PrefixMap; here equal hashes are equal content.
std::tuple<int, uint64_t, uint64_t> KeyFor(int group, const Hash128& hash) {
  return {group, hash.lo, hash.hi};
}

}  // namespace

KvMatch RandomConnector::Match(const KvRequest& request, int32_t local_hit,
                               const KvResidency& local) {
  OCTAVO_CHECK(!dead_, "a dead connector is asked");
  if (OneIn(8)) return {.known = false};
  const auto has = [&](int g, int32_t i) {
    return local.Has(g, i) || store_.count(KeyFor(g, groups_.KeyOf(request, g, i).hash)) > 0;
  };
  const int32_t more = groups_.LongestPrefix(request, local_hit, has) - local_hit;
  if (more == 0 || !OneIn(3)) return {.tokens = more};
  // A shorter prefix may need blocks of a window that the longest does not.
  const int32_t less = Below(random_, more + 1);
  KvRequest part = request;
  part.hashes = part.hashes.first(size_t((local_hit + less) / groups_.unit()));
  return {.tokens = groups_.LongestPrefix(part, local_hit, has) - local_hit};
}

RandomConnector::Job RandomConnector::Describe(const KvTransfer& t, bool load) const {
  Job job{t.id, load, t.last_token, {}};
  for (const KvBlock& b : t.blocks) {
    const Key key = KeyFor(b.group, groups_.KeyOf(t.request, b.group, b.index).hash);
    Piece piece{b, key, {}, (b.index + 1) * groups_.spec(b.group).block_size};
    if (load) {
      const auto found = store_.find(key);
      if (found != store_.end()) piece.cells = found->second;
    }
    job.pieces.push_back(std::move(piece));
  }
  return job;
}

void RandomConnector::Spoil(const Piece& piece) {
  Cells garbage(groups_.spec(piece.block.group).block_size);
  for (sim::Cell& cell : garbage) cell = {random_(), Below(random_, 50), Below(random_, 100)};
  model->WriteBlock(piece.block.group, piece.block.block, garbage);
}

void RandomConnector::Save(const Piece& piece) {
  store_[piece.key] = model->ReadBlock(piece.block.group, piece.block.block);
}

KvStart RandomConnector::StartLoad(const KvTransfer& load) {
  OCTAVO_CHECK(!dead_, "a dead connector is asked to load");
  Job job = Describe(load, true);
  const bool whole = std::all_of(job.pieces.begin(), job.pieces.end(),
                                 [](const Piece& p) { return !p.cells.empty(); });
  if (!whole || OneIn(10)) return KvStart::kRefused;
  ++loads;
  for (const Piece& p : job.pieces) Spoil(p);
  if (OneIn(3)) {
    for (const Piece& p : job.pieces) {
      model->WriteBlock(p.block.group, p.block.block, p.cells);
    }
    return KvStart::kDone;
  }
  ++pending_loads;
  jobs_.push_back(std::move(job));
  return KvStart::kPending;
}

KvStart RandomConnector::OnRelease(const KvTransfer& save, KvRelease why) {
  OCTAVO_CHECK(!dead_, "a dead connector is asked to save");
  const int choice = Below(random_, 3);
  if (choice == 0) return KvStart::kRefused;
  retractions += why == KvRelease::kPreempted;
  Job job = Describe(save, false);
  if (choice == 1) {
    for (const Piece& p : job.pieces) Save(p);
    return KvStart::kDone;
  }
  ++held_saves;
  jobs_.push_back(std::move(job));
  return KvStart::kPending;
}

void RandomConnector::OnEvict(const KvContent& content) {
  OCTAVO_CHECK(!dead_, "a dead connector is told of an eviction");
  ++evictions;
  store_[KeyFor(content.group, content.hash)] = model->ReadBlock(content.group, content.block);
}

void RandomConnector::OnStepPlanned(uint64_t step_id) {
  OCTAVO_CHECK(!dead_ && step_id > last_step_, "steps are planned in order");
  last_step_ = step_id;
}

KvReport RandomConnector::Finish(const Job& job) {
  if (!job.load) {
    for (const Piece& p : job.pieces) Save(p);
    return {job.id};
  }
  int32_t valid = job.tokens;
  if (trouble_.failures && OneIn(3)) valid = Below(random_, job.tokens);
  for (const Piece& p : job.pieces) {
    if (p.end <= valid) model->WriteBlock(p.block.group, p.block.block, p.cells);
  }
  failures += valid < job.tokens;
  return {job.id, valid == job.tokens, valid};
}

Status RandomConnector::TakeReports(std::vector<KvReport>* reports) {
  OCTAVO_CHECK(!dead_, "a dead connector is asked for reports");
  if (trouble_.death && OneIn(500)) {
    Die();
    return Status::Unavailable("the peer is gone");
  }
  for (size_t i = 0; i < jobs_.size();) {
    if (!OneIn(3) || (trouble_.losses && jobs_[i].id % 7 == 0)) {
      if (jobs_[i].load) Spoil(jobs_[i].pieces[0]);
      ++i;
      continue;
    }
    reports->push_back(Finish(jobs_[i]));
    said_.push_back(reports->back());
    jobs_.erase(jobs_.begin() + int64_t(i));
  }
  // Late repetitions, and names that never were.
  if (!said_.empty() && OneIn(4)) reports->push_back(said_[random_() % said_.size()]);
  if (OneIn(20)) reports->push_back({1'000'000 + random_()});
  return Status::Ok();
}

bool RandomConnector::Cancel(uint64_t transfer) {
  OCTAVO_CHECK(!dead_, "a dead connector is asked to cancel");
  const auto job =
      std::find_if(jobs_.begin(), jobs_.end(), [&](const Job& j) { return j.id == transfer; });
  OCTAVO_CHECK(job != jobs_.end(), "what was reported is cancelled");
  if (OneIn(2)) return false;
  jobs_.erase(job);
  return true;
}

void RandomConnector::Die() {
  dead_ = true;
  jobs_.clear();
}

}  // namespace octavo::engine
