#include "engine/store_connector.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace octavo::engine {
namespace {

// Content is compared in full by kv::PrefixMap; here equal hashes are equal content.
std::tuple<int, uint64_t, uint64_t> KeyFor(int group, const Hash128& hash) {
  return {group, hash.lo, hash.hi};
}

}  // namespace

KvMatch StoreConnector::Match(const KvRequest& request, int32_t local_hit,
                              const KvResidency& local) {
  if (OneIn(8)) return {.known = false};
  const auto has = [&](int g, int32_t i) {
    return local.Has(g, i) || store_.count(KeyFor(g, groups_.KeyOf(request, g, i).hash)) > 0;
  };
  return {.tokens = groups_.LongestPrefix(request, local_hit, has) - local_hit};
}

StoreConnector::Job StoreConnector::Describe(const KvTransfer& t, bool load) const {
  Job job{t.id, load, t.last_token, {}};
  for (const KvBlock& b : t.blocks) {
    const Key key = KeyFor(b.group, groups_.KeyOf(t.request, b.group, b.index).hash);
    Piece piece{b, key, {}};
    const auto found = load ? store_.find(key) : store_.end();
    if (found != store_.end()) piece.cells = found->second;
    job.pieces.push_back(std::move(piece));
  }
  return job;
}

void StoreConnector::Run(const Job& job) {
  for (const Piece& p : job.pieces) {
    if (job.load) {
      model->WriteBlock(p.block.group, p.block.block, p.cells);
    } else {
      store_[p.key] = model->ReadBlock(p.block.group, p.block.block);
    }
  }
}

KvStart StoreConnector::StartLoad(const KvTransfer& load) {
  Job job = Describe(load, true);
  const bool whole = std::all_of(job.pieces.begin(), job.pieces.end(),
                                 [](const Piece& p) { return !p.cells.empty(); });
  if (!whole || OneIn(10)) return KvStart::kRefused;
  if (OneIn(3)) {
    Run(job);
    return KvStart::kDone;
  }
  jobs_.push_back(std::move(job));
  return KvStart::kPending;
}

KvStart StoreConnector::OnRelease(const KvTransfer& save, KvRelease) {
  if (OneIn(3)) return KvStart::kRefused;
  Job job = Describe(save, false);
  if (OneIn(2)) {
    Run(job);
    return KvStart::kDone;
  }
  jobs_.push_back(std::move(job));
  return KvStart::kPending;
}

void StoreConnector::OnEvict(const KvContent& content) {
  store_[KeyFor(content.group, content.hash)] = model->ReadBlock(content.group, content.block);
}

Status StoreConnector::TakeReports(std::vector<KvReport>* reports) {
  for (size_t i = 0; i < jobs_.size();) {
    if (!OneIn(3)) {
      ++i;
      continue;
    }
    Run(jobs_[i]);
    reports->push_back(jobs_[i].load ? KvReport{jobs_[i].id, true, jobs_[i].tokens}
                                     : KvReport{jobs_[i].id});
    jobs_.erase(jobs_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return Status::Ok();
}

bool StoreConnector::Cancel(uint64_t transfer) {
  const auto job =
      std::find_if(jobs_.begin(), jobs_.end(), [&](const Job& j) { return j.id == transfer; });
  OCTAVO_CHECK(job != jobs_.end(), "what was reported is cancelled");
  if (OneIn(2)) return false;
  jobs_.erase(job);
  return true;
}

}  // namespace octavo::engine
