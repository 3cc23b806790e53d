// ScriptedConnector: does what a test says, and remembers what it was asked.
#pragma once

#include <algorithm>
#include <vector>

#include "octavo/kv_connector.h"

namespace octavo::sched {

class ScriptedConnector final : public KvConnector {
 public:
  struct Asked {
    uint64_t id = 0;
    int32_t first = 0;
    int32_t last = 0;
    std::vector<KvBlock> blocks;
  };

  KvMatch Match(const KvRequest&, int32_t local_hit, const KvResidency&) override {
    ++matches;
    return {known, std::max(0, tokens - local_hit)};
  }
  KvStart StartLoad(const KvTransfer& t) override {
    loads.push_back({t.id, t.first_token, t.last_token, {t.blocks.begin(), t.blocks.end()}});
    return start;
  }
  bool WantsReleases() const override { return true; }
  KvStart OnRelease(const KvTransfer& t, KvRelease why) override {
    saves.push_back({t.id, t.first_token, t.last_token, {t.blocks.begin(), t.blocks.end()}});
    preempted += why == KvRelease::kPreempted;
    return release;
  }
  bool WantsEvictions() const override { return true; }
  void OnEvict(const KvContent& content) override { evicted.push_back(content.block); }
  void OnForget(const KvRequest&, int32_t first) override { forgotten.push_back(first); }
  void OnStepPlanned(uint64_t step_id) override { planned.push_back(step_id); }
  Status TakeReports(std::vector<KvReport>* out) override {
    if (dead) return Status::Unavailable("the peer is gone");
    out->insert(out->end(), reports.begin(), reports.end());
    reports.clear();
    return Status::Ok();
  }
  bool Cancel(uint64_t transfer) override {
    cancelled.push_back(transfer);
    return lets_go;
  }
  void Stop() override { ++stops; }
  void Reset() override { ++resets; }

  int32_t tokens = 0;  // it has so many of every prompt
  bool known = true;
  KvStart start = KvStart::kPending;
  KvStart release = KvStart::kRefused;
  bool lets_go = true;
  bool dead = false;
  std::vector<KvReport> reports;

  int matches = 0;
  int preempted = 0;
  int stops = 0;
  int resets = 0;
  std::vector<Asked> loads;
  std::vector<Asked> saves;
  std::vector<int32_t> evicted;
  std::vector<int32_t> forgotten;  // first tokens
  std::vector<uint64_t> planned;
  std::vector<uint64_t> cancelled;
};

}  // namespace octavo::sched
