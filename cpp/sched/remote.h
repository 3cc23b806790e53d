// RemoteKv: the scheduler's side of a connector. Which transfers hold which blocks, who waits for
// them, what happens when they end, fail, or never end.
//
// A load becomes an ordinary cached prefix: its blocks are held outside any table, filed when the
// connector reports them, and found by the waiting request like anything else that is cached. Until
// the request is admitted the hold pins them; whoever needs room may drop a pin, at the price of
// loading again. So a waiting request holds no row slot and no promise, and a load can neither
// starve nor block what can run. One thread, the scheduler's.
#pragma once

#include <cstdint>
#include <vector>

#include "kv/kv_manager.h"
#include "octavo/config.h"
#include "octavo/executor.h"
#include "octavo/kv_connector.h"
#include "octavo/stats.h"
#include "sched/request.h"
#include "sched/transfers.h"

namespace octavo::sched {

class RemoteKv final : private kv::EvictionListener {
 public:
  // Everything referred to must outlive it.
  RemoteKv(const EngineConfig& config, kv::KvManager& kv, Clock& clock, KvConnector& connector);
  ~RemoteKv() override;
  RemoteKv(const RemoteKv&) = delete;
  RemoteKv& operator=(const RemoteKv&) = delete;

  // What Poll changed for requests: those that may be admitted again, and those that must end.
  struct Changes {
    std::vector<Request*> ready;
    std::vector<Request*> failed;
  };
  // Takes reports, gives up what is overdue, and begins the loads whose fence was passed: all steps
  // up to `executed` are over. Valid until the next call.
  const Changes& Poll(uint64_t executed);

  struct Gate {
    int32_t cap = 0;     // tokens a load may reach
    int32_t tokens = 0;  // the request must have room for, once loaded
    kv::BlockNeed keep;  // what others were promised
    int32_t keep_parents = 0;
    uint64_t last_step = 0;  // the latest that may be open
  };
  enum class Answer {
    kLocal,       // nothing to load: go on with what the pool holds
    kLookAgain,   // what the pool holds has changed
    kLoading,     // Poll will name the request
    kAskAgain,    // in a later step
    kDoesNotFit,  // the blocks to load into
  };
  Answer Consult(Request& request, int32_t local_hit, const Gate& gate);
  // The request was admitted, or has ended: it waits for nothing any more.
  void Detach(Request& request);

  // Gives up a pinned prefix so that its blocks can be taken: the latest in order. False: none.
  bool DropPin() { return DropPinBut(nullptr, {}); }
  // The same for a waiting request that does not fit: a pin of a later one, or, when it is `alone`,
  // of anybody else. Once nothing of others is left, a request that is alone does without a load.
  bool YieldTo(Request& request, bool alone);
  // Whether a preempted request's blocks are still being saved: room that will come.
  bool RoomIsComing() const;
  // Whether a transfer but the request's own pin holds blocks.
  bool OthersHold(const Request& request) const;

  // Offers what the request has in its table: `processed` tokens are computed for certain.
  void OnRelease(Request& request, KvRelease why, int32_t processed);
  // What its tokens from `first` on left behind is not to be trusted.
  void OnForget(Request& request, int32_t first);
  void OnPlanned(uint64_t step_id, const std::vector<BlockId>& filed);
  // REQUIRES: the prefix cache is empty.
  void Reset();

  int32_t limit() const { return table_.limit(); }
  // Transfers under way at once in an engine of this configuration.
  static int32_t LimitOf(const EngineConfig& config);
  void AddTo(EngineStats* stats) const;

 private:
  KvRequest View(Request& request) const;
  Answer Start(Transfer& transfer);
  void Settle(Transfer& transfer, const KvReport& report);
  void Arrive(Transfer& transfer, int32_t valid);
  void Fail(Transfer& transfer);
  void Expire(Transfer& transfer, int64_t now);
  void Abandon(Transfer& transfer);
  void Drop(Transfer& transfer);
  void Die();
  bool DropPinBut(const Request* spared, OrderKey after);
  bool IsLoading(const Hash128& content) const;
  int64_t Deadline() { return clock_.NowMicros() + config_.kv_load_timeout_ms * 1000; }
  void OnEvict(BlockId block, const kv::PrefixKey& key) override;

  const EngineConfig& config_;
  kv::KvManager& kv_;
  Clock& clock_;
  KvConnector& connector_;
  bool dead_ = false;
  TransferTable table_;
  Changes changes_;
  std::vector<KvReport> reports_;
  std::vector<uint64_t> filed_by_;  // the step that filed a block last; empty: nobody asks
  uint64_t executed_ = 0;
  EngineStats stats_;
};

}  // namespace octavo::sched
