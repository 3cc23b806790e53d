// FaultyConnector: keeps the KV of released and evicted blocks by content and gives it back late,
// in part, wrongly, twice or never; it may die on the way. While a load is under way its blocks
// hold garbage: whoever reads them early, or trusts what was not reported, gets other tokens.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "octavo/kv_connector.h"
#include "sim/fuzz/op.h"
#include "sim/hash_model.h"
#include "sim/random.h"
#include "transfer/group_set.h"

namespace octavo::sim {

class FaultyConnector final : public KvConnector {
 public:
  // `counts` gets what went wrong, by kind; `model` holds the blocks. Both must outlive it.
  FaultyConnector(const EngineConfig& config, uint64_t seed, OpCounts* counts, HashModel* model);

  KvMatch Match(const KvRequest& request, int32_t local_hit, const KvResidency& local) override;
  KvStart StartLoad(const KvTransfer& load) override;
  bool WantsReleases() const override { return true; }
  KvStart OnRelease(const KvTransfer& save, KvRelease why) override;
  bool WantsEvictions() const override { return true; }
  void OnEvict(const KvContent& content) override;
  void OnForget(const KvRequest& request, int32_t first) override;
  void OnStepPlanned(uint64_t step_id) override;
  Status TakeReports(std::vector<KvReport>* reports) override;
  bool Cancel(uint64_t transfer) override;
  void Stop() override;
  void Reset() override { store_.clear(); }

 private:
  struct Piece {
    KvBlock block;
    uint64_t content = 0;
    int32_t end = 0;          // tokens of the request up to its end
    std::vector<Cell> cells;  // of a load: what belongs there
  };
  struct Job {
    uint64_t id = 0;
    bool load = false;
    bool lost = false;  // never reported
    int32_t tokens = 0;
    std::vector<Piece> pieces;
  };

  bool Strikes(OpKind kind, int32_t one_in);
  uint64_t ContentOf(const KvRequest& request, int32_t group, int32_t index) const;
  Job Describe(const KvTransfer& transfer, bool load) const;
  void Keep(const Job& job);
  void Fill(const Piece& piece, bool garbage);
  KvReport Finish(const Job& job);

  transfer::GroupSet groups_;
  Random random_;
  OpCounts* counts_;
  HashModel* model_;
  int32_t trouble_;  // one answer in so many goes wrong
  bool mortal_;
  Random less_;  // when it offers less than it has
  bool modest_;
  uint64_t last_step_ = 0;
  bool dead_ = false;
  std::unordered_map<uint64_t, std::vector<Cell>> store_;
  std::vector<Job> jobs_;
  std::vector<KvReport> said_;
};

}  // namespace octavo::sim
