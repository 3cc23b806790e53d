// RandomConnector: keeps the KV of released and evicted blocks by content, and gives it back late,
// in part, wrongly, twice or never. While a load is under way its blocks hold garbage, so that
// whoever reads them early, or trusts what was not reported, gets other tokens.
#pragma once

#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "base/check.h"
#include "engine/simulation.h"
#include "octavo/kv_connector.h"
#include "sim/hash_model.h"
#include "transfer/group_set.h"

namespace octavo::engine {

class RandomConnector final : public KvConnector {
 public:
  RandomConnector(const EngineConfig& config, const Trouble& trouble, uint32_t seed)
      : groups_(config), trouble_(trouble), random_(seed) {}

  KvMatch Match(const KvRequest& request, int32_t local_hit, const KvResidency& local) override;
  KvStart StartLoad(const KvTransfer& load) override;
  bool WantsReleases() const override { return true; }
  KvStart OnRelease(const KvTransfer& save, KvRelease why) override;
  bool WantsEvictions() const override { return true; }
  void OnEvict(const KvContent& content) override;
  void OnStepPlanned(uint64_t step_id) override;
  Status TakeReports(std::vector<KvReport>* reports) override;
  bool Cancel(uint64_t transfer) override;
  void Stop() override { Die(); }
  void Reset() override { store_.clear(); }

  bool dead() const { return dead_; }
  sim::HashModel* model = nullptr;
  int loads = 0;
  int pending_loads = 0;
  int failures = 0;
  int held_saves = 0;
  int retractions = 0;
  int evictions = 0;

 private:
  using Cells = std::vector<sim::Cell>;
  using Key = std::tuple<int, uint64_t, uint64_t>;
  struct Piece {
    KvBlock block;
    Key key;
    Cells cells;  // of a load: what belongs there
    int32_t end = 0;
  };
  struct Job {
    uint64_t id = 0;
    bool load = false;
    int32_t tokens = 0;
    std::vector<Piece> pieces;
  };

  bool OneIn(int32_t n) { return Below(random_, n) == 0; }
  void Die();
  Job Describe(const KvTransfer& transfer, bool load) const;
  void Spoil(const Piece& piece);
  void Save(const Piece& piece);
  KvReport Finish(const Job& job);

  transfer::GroupSet groups_;
  Trouble trouble_;
  std::mt19937 random_;
  std::map<Key, Cells> store_;
  std::vector<Job> jobs_;
  std::vector<KvReport> said_;  // repeated now and then
  uint64_t last_step_ = 0;
  bool dead_ = false;
};

}  // namespace octavo::engine
