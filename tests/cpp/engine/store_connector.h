// StoreConnector: keeps the KV of released and evicted blocks by content and gives it back, at once
// or late, and now and then refuses or does not know. It never fails a load: what goes wrong with
// those is the simulator's (sim/fuzz/connector.h).
#pragma once

#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "octavo/kv_connector.h"
#include "sim/hash_model.h"
#include "transfer/group_set.h"

namespace octavo::engine {

class StoreConnector final : public KvConnector {
 public:
  StoreConnector(const EngineConfig& config, uint32_t seed) : groups_(config), random_(seed) {}

  KvMatch Match(const KvRequest& request, int32_t local_hit, const KvResidency& local) override;
  KvStart StartLoad(const KvTransfer& load) override;
  bool WantsReleases() const override { return true; }
  KvStart OnRelease(const KvTransfer& save, KvRelease why) override;
  bool WantsEvictions() const override { return true; }
  void OnEvict(const KvContent& content) override;
  Status TakeReports(std::vector<KvReport>* reports) override;
  bool Cancel(uint64_t transfer) override;
  void Stop() override { jobs_.clear(); }
  void Reset() override { store_.clear(); }

  sim::HashModel* model = nullptr;

 private:
  using Cells = std::vector<sim::Cell>;
  using Key = std::tuple<int, uint64_t, uint64_t>;
  struct Piece {
    KvBlock block;
    Key key;
    Cells cells;  // of a load: what belongs there
  };
  struct Job {
    uint64_t id = 0;
    bool load = false;
    int32_t tokens = 0;
    std::vector<Piece> pieces;
  };

  bool OneIn(uint32_t n) { return random_() % n == 0; }
  Job Describe(const KvTransfer& transfer, bool load) const;
  void Run(const Job& job);

  transfer::GroupSet groups_;
  std::mt19937 random_;
  std::map<Key, Cells> store_;
  std::vector<Job> jobs_;
};

}  // namespace octavo::engine
