// CoreEngine: octavo::Engine over the real scheduler, with the inner parts open to tests and
// bindings.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "base/out_of_memory.h"
#include "batch/step_batch.h"
#include "kv/kv_manager.h"
#include "octavo/engine.h"
#include "sched/scheduler.h"
#include "transfer/host_tier.h"

namespace octavo::engine {

class CoreEngine final : public Engine {
 public:
  // As Engine::Create, with the inner parts that Engine hides.
  static Result<std::unique_ptr<CoreEngine>> Create(const EngineConfig& config, Clock& clock,
                                                    HostMemory& memory,
                                                    KvConnector* connector = nullptr);
  // The same, but throws std::bad_alloc. REQUIRES: Validate(config).ok().
  CoreEngine(const EngineConfig& config, Clock& clock, HostMemory& memory,
             KvConnector* connector = nullptr);

  using Engine::AddRequest;
  Result<RequestId> AddRequest(const RequestInput& input) override;
  Status SetDrafts(RequestId request, std::span<const int32_t> drafts) override {
    return OrOutOfMemory(kNoMessage, [&] { return scheduler_.SetDrafts(request, drafts); });
  }
  const StepPlan* BeginStep() override { return scheduler_.Begin(); }
  Result<std::span<const StepOutput>> FinishStep(uint64_t step_id,
                                                 std::span<const int32_t> tokens) override {
    return OrOutOfMemory(kNoMessage, [&] { return scheduler_.Finish(step_id, tokens); });
  }
  Result<std::span<const StepOutput>> FailStep(uint64_t step_id) override {
    return OrOutOfMemory(kNoMessage, [&] { return scheduler_.Fail(step_id); });
  }
  std::span<const StepOutput> TakeEnded() override { return scheduler_.TakeEnded(); }
  Result<std::span<const StepOutput>> Step(Executor& executor) override;
  Status LastError() const override;
  Status Abort(RequestId request) override { return End(request, FinishReason::kAbort); }
  Status Stop(RequestId request) override { return End(request, FinishReason::kStop); }
  void SetPause(PauseMode mode) override { scheduler_.SetPause(mode); }
  PauseMode pause() const override { return scheduler_.pause(); }
  bool HasUnfinished() const override { return scheduler_.HasUnfinished(); }
  EngineStats Stats() const override { return scheduler_.Stats(); }
  bool ResetPrefixCache() override { return scheduler_.ResetPrefixCache(); }
  void ResetEncoderCache() override { scheduler_.ResetEncoderCache(); }
  void TakeEvents(std::vector<KvEvent>* events) override { kv_.events().Take(events); }
  Status CachedContent(std::vector<KvEvent>* events) const override;
  const EngineConfig& config() const override { return config_; }
  std::span<const BlockTableView> block_tables() const override { return kv_.tables(); }

  // Gives the engine a tier of `budget_bytes` behind its pool, which lies in this process's memory
  // at `pool`, `parent_bytes` a block. kFailedPrecondition after the first request, and when it has
  // a tier or a connector.
  Status AddHostTier(std::byte* pool, int64_t parent_bytes, int64_t budget_bytes,
                     HostMemory& memory = SystemMemory());
  // The same for a pool anywhere, of which `copier` moves the blocks.
  Status AddHostTier(std::unique_ptr<transfer::BlockCopier> copier, int64_t parent_bytes,
                     int64_t budget_bytes, HostMemory& memory = SystemMemory());
  // Returns when nothing is being loaded from the tier; false: nothing was.
  bool WaitForLoads() { return host_tier_ && host_tier_->WaitForLoads(); }
  const transfer::HostTier* host_tier() const { return host_tier_.get(); }

  // No call locks. Where a loop steps the engine (engine/step_loop.h), everybody holds this while
  // calling it.
  std::mutex& gate() const { return gate_; }

  int32_t num_running() const { return scheduler_.num_running(); }
  int32_t num_waiting() const { return scheduler_.num_waiting(); }
  const batch::Arena& arena() const { return batch_.arena(); }
  const kv::KvManager& kv() const { return kv_; }
  void CheckInvariants() const { scheduler_.CheckInvariants(); }

 private:
  // These calls take memory only to say what was wrong with them.
  static constexpr char kNoMessage[] = "no memory for this call's error message";

  Status End(RequestId request, FinishReason reason) {
    return OrOutOfMemory(kNoMessage, [&] { return scheduler_.End(request, reason); });
  }

  mutable std::mutex gate_;
  EngineConfig config_;
  kv::KvManager kv_;
  batch::StepBatch batch_;
  std::vector<int32_t> tokens_;
  std::unique_ptr<transfer::HostTier> host_tier_;  // outlives the scheduler
  // Last: nothing may fail once it has the connector, or that would be stopped in vain.
  sched::Scheduler scheduler_;
  Status last_error_;
};

}  // namespace octavo::engine
