// HostTier: a bounded second home in host memory for what the KV pool evicts.
//
// Blocks are kept by content, tokens compared, like in the prefix map; what was evicted from the
// pool longest ago and never asked for again goes first. A block is copied out when the pool gives
// its memory away, unless the tier has it already, and stays when it is copied in again: nothing is
// copied that nobody was about to lose. A preempted request's blocks take the same way. All groups.
// Used as any connector: one thread, the engine's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/host_memory.h"
#include "kv/block_pool.h"
#include "kv/prefix_map.h"
#include "octavo/config.h"
#include "octavo/kv_connector.h"
#include "octavo/status.h"
#include "transfer/block_copier.h"
#include "transfer/group_set.h"

namespace octavo::transfer {

struct HostTierStats {
  uint64_t stored_blocks = 0;   // copied out
  uint64_t loaded_blocks = 0;   // copied in
  uint64_t evicted_blocks = 0;  // given up for others
  uint64_t dropped_blocks = 0;  // not stored: all of the tier was being read
  uint64_t failed_blocks = 0;   // of copies that failed, in either direction
  int64_t blocks = 0;           // held now
  int64_t capacity_bytes = 0;
};

class HostTier final : public KvConnector, private kv::EvictionSink {
 public:
  // kResourceExhausted without memory for it; then `copier` is gone.
  // `parent_bytes`: what one block of the pool takes; of a group's block, the split-th part. The
  // budget bounds the copies; the map beside them takes some 100 bytes a block.
  static Result<std::unique_ptr<HostTier>> Create(const EngineConfig& config, int64_t budget_bytes,
                                                  int64_t parent_bytes,
                                                  std::unique_ptr<BlockCopier> copier,
                                                  HostMemory& memory = SystemMemory());

  KvMatch Match(const KvRequest& request, int32_t local_hit, const KvResidency& local) override;
  KvStart StartLoad(const KvTransfer& load) override;
  bool WantsEvictions() const override { return true; }
  void OnEvict(const KvContent& content) override;
  void OnForget(const KvRequest& request, int32_t first) override;
  void OnStepPlanned(uint64_t) override { BeginCopies(); }
  Status TakeReports(std::vector<KvReport>* reports) override;
  // What was begun is copied soon; its report follows.
  bool Cancel(uint64_t) override { return false; }
  void Stop() override;
  void Reset() override;

  // Returns when no load is under way; false: none was. The next TakeReports reports them.
  bool WaitForLoads();

  HostTierStats stats() const;

 private:
  struct Load {
    uint64_t id = 0;
    uint64_t batch = 0;
    bool ended = false;
    bool ok = false;
    std::vector<BlockId> sources;
  };
  struct Store {
    BlockId block{};
    uint64_t batch = 0;
  };

  HostTier(const EngineConfig& config, int32_t parents, int64_t parent_bytes,
           std::unique_ptr<BlockCopier> copier, HostMemory& memory);
  std::byte* At(BlockId block, int group) const;
  void BeginCopies();
  void LookAtCopies();
  void Forget(BlockId block);
  void Unpin(std::span<const BlockId> sources);
  void OnEvict(BlockId block) override;

  GroupSet groups_;
  std::unique_ptr<BlockCopier> copier_;
  int64_t parent_bytes_;
  kv::BlockPool pool_;
  kv::PrefixMap map_;
  HostArray<std::byte> memory_;  // where the copier has no place of its own
  std::byte* place_;
  std::vector<Load> loads_;    // begun and not reported
  std::vector<Store> stores_;  // not known to have ended, in the order of their batches
  std::vector<BlockId> sources_;
  uint64_t batch_ = 0;  // the last one begun
  bool asked_ = false;  // for copies since then
  HostTierStats stats_;
};

}  // namespace octavo::transfer
