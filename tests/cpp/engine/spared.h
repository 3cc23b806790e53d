// What belongs to a test, not to the engine, spared from the allocations that FailAllocations
// refuses: a connector, and what copies for a host tier.
#pragma once

#include <utility>

#include "engine/counting_new.h"
#include "engine/store_connector.h"
#include "sim/model_copier.h"

namespace octavo::engine {

// A StoreConnector.
class SparedConnector final : public KvConnector {
 public:
  explicit SparedConnector(const EngineConfig& config) : inner_(config, 1) {}

  KvMatch Match(const KvRequest& r, int32_t hit, const KvResidency& local) override {
    const SpareAllocations spared;
    inner_.model = model;
    return inner_.Match(r, hit, local);
  }
  KvStart StartLoad(const KvTransfer& load) override {
    const SpareAllocations spared;
    return inner_.StartLoad(load);
  }
  bool WantsReleases() const override { return true; }
  KvStart OnRelease(const KvTransfer& save, KvRelease why) override {
    const SpareAllocations spared;
    return inner_.OnRelease(save, why);
  }
  bool WantsEvictions() const override { return true; }
  void OnEvict(const KvContent& content) override {
    const SpareAllocations spared;
    inner_.OnEvict(content);
  }
  Status TakeReports(std::vector<KvReport>* reports) override {
    const SpareAllocations spared;
    return inner_.TakeReports(reports);
  }
  bool Cancel(uint64_t transfer) override {
    const SpareAllocations spared;
    return inner_.Cancel(transfer);
  }
  void Stop() override { inner_.Stop(); }
  void Reset() override { inner_.Reset(); }

  sim::HashModel* model = nullptr;

 private:
  StoreConnector inner_;
};

// A ModelCopier that copies late.
class SparedCopier final : public transfer::BlockCopier {
 public:
  void Out(int group, int32_t block, std::byte* host) override {
    const SpareAllocations spared;
    inner_.set_model(model);
    inner_.Out(group, block, host);
  }
  void In(int group, int32_t block, const std::byte* host) override {
    const SpareAllocations spared;
    inner_.In(group, block, host);
  }
  uint64_t Begin() override {
    const SpareAllocations spared;
    return inner_.Begin();
  }
  transfer::CopyProgress Poll() override {
    const SpareAllocations spared;
    return inner_.Poll();
  }
  void Drain() override {
    const SpareAllocations spared;
    inner_.Drain();
  }

  sim::HashModel* model = nullptr;

 private:
  sim::ModelCopier inner_{true};
};

// Knows nothing, and counts how often it is stopped.
class StoppedConnector final : public KvConnector {
 public:
  KvMatch Match(const KvRequest&, int32_t, const KvResidency&) override { return {}; }
  KvStart StartLoad(const KvTransfer&) override { return KvStart::kRefused; }
  bool WantsEvictions() const override { return true; }
  Status TakeReports(std::vector<KvReport>*) override { return Status::Ok(); }
  bool Cancel(uint64_t) override { return true; }
  void Stop() override { ++stops; }
  int stops = 0;
};

}  // namespace octavo::engine
