// Scheduler: decides what each step computes, and takes what the step sampled.
//
// Begin plans a step: running requests first, in scheduling order, then waiting ones, under one
// token budget. A request that finds no block preempts a later one (never an earlier one, so the
// oldest always advances and nothing livelocks); a preempted request recomputes, minus what the
// prefix cache kept. Finish applies a step's tokens and stop rules. Up to max_steps_in_flight
// steps may be open.
//
// Blocks may be reused by the step right after the one that released them, because steps execute in
// order on one stream; row slots and what their table rows say wait until every open step is
// finished, because a host-side executor reads the tables while it runs.
//
// Rows are planned in scheduling order, which decides who gets tokens and blocks. Of those that
// decode, requests that share a prefix are then put next to each other, where that is of use.
//
// Deterministic in its calls and the clock. Begin and Finish allocate nothing once warm. One
// thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "batch/step_batch.h"
#include "encoder/encoder_cache.h"
#include "kv/kv_manager.h"
#include "octavo/config.h"
#include "octavo/executor.h"
#include "octavo/kv_connector.h"
#include "octavo/request_input.h"
#include "octavo/stats.h"
#include "sched/remote.h"
#include "sched/request.h"
#include "sched/waiting_queue.h"

namespace octavo::sched {

class Scheduler {
 public:
  // `connector` may be null. Everything referred to must outlive the scheduler.
  // REQUIRES: Validate(config).ok().
  Scheduler(const EngineConfig& config, kv::KvManager& kv, batch::StepBatch& batch, Clock& clock,
            KvConnector* connector = nullptr);

  Result<RequestId> Add(const RequestInput& input);
  Status SetDrafts(RequestId id, std::span<const int32_t> drafts);
  const StepPlan* Begin();
  Result<std::span<const StepOutput>> Finish(uint64_t step_id, std::span<const int32_t> tokens);
  Result<std::span<const StepOutput>> Fail(uint64_t step_id);
  void SetPause(PauseMode mode);
  PauseMode pause() const { return pause_; }
  // Ends a request without an output; `reason` only counts.
  Status End(RequestId id, FinishReason reason);

  // Outputs of requests that ended outside a step; Finish and Fail return them too.
  std::span<const StepOutput> TakeEnded();
  // Gives a scheduler its connector, when that needs what exists only later. REQUIRES: no request
  // was ever added, and it has none.
  void Attach(KvConnector& connector);
  bool has_connector() const { return remote_ != nullptr; }
  // Whether one was ever added, also when it has ended.
  bool had_requests() const { return arrivals_ > 0; }
  // Forgets all cached content, the connector's too. False, and no change, while blocks are used.
  bool ResetPrefixCache();

  bool HasUnfinished() const { return num_waiting_ > 0 || num_running() > 0 || !ended_.empty(); }
  int32_t num_running() const { return static_cast<int32_t>(running_.size()); }
  int32_t num_waiting() const { return num_waiting_; }
  EngineStats Stats() const;
  // Forgets the embeddings that no request uses.
  void ResetEncoderCache() { encoder_.Clear(); }
  // Aborts with a message when the counters of any request contradict the tables.
  void CheckInvariants() const;

 private:
  // How many requests ahead the memory of the next ones is fetched, because a full batch does not
  // fit the first caches: their lines, and of those that fill a block first their rows and where
  // their hashes are, then these, then what the block's hash names.
  static constexpr size_t kPrefetchRequest = 16;
  static constexpr size_t kPrefetchRow = 18;
  static constexpr size_t kPrefetchHashes = 4;
  static constexpr size_t kPrefetchBlock = 10;
  // The same for those that are about to take a block: between one stage and the next.
  static constexpr size_t kPrefetchGrowing = 6;

  // How often steps may be planned, and each time fail all loads, before anybody is told who ended.
  static constexpr size_t kPollsUnsaid = kMaxStepsInFlight + 1;

  struct RowRecord {
    Request* request;
    int32_t count;
    int32_t sample;  // the first of 1 + drafts; -1: none
    uint8_t epoch;
    int8_t drafts;
  };
  struct StepRecord {
    uint64_t id = 0;
    int32_t samples = 0;
    std::vector<RowRecord> rows;
    std::vector<BlockId> published;
    std::vector<int32_t> encoder_evicted;
    std::vector<EncoderInput> encoder_inputs;
    std::vector<EncoderSpan> encoder_spans;
    std::vector<kv::BlockCopy> copies;
  };
  struct Quarantine {
    int32_t slot;
    uint64_t after_step;
  };
  // What is left to give in the pass that plans a step.
  struct Pass {
    int32_t budget = 0;
    kv::BlockNeed reserved;  // promised to running prompts that are not wholly in yet
    kv::BlockNeed promised;  // what drafts leave to others; known once `counted`
    bool counted = false;
    int32_t encoder_budget = 0;  // embeddings
    bool many = false;           // more than one request competes
    bool preempted = false;
    bool retried = false;  // a request that no room came free for was looked up
  };
  enum class Admission { kAdmitted, kDoesNotFit, kNotNow, kStepIsFull, kLoading };

  // admission.cc
  Status CheckAdd(const RequestInput& input) const;
  void ReserveQueues();
  void AdmitWaiting();
  Admission TryAdmit(Request& request);
  Admission TryAdmit(Request& request, const kv::KvManager::Hit& hit);
  bool StillDoesNotFit(const Request& request);
  int32_t LookupCap(const Request& request) const;
  bool OfferRoom(Request& request);
  void StartRunning(Request& request, int32_t hit_tokens);
  // encoding.cc
  int32_t StepEncoderBudget() const {
    if (config_.encoder_budget > 0) return config_.encoder_budget;
    return config_.encoder_cache_size > 0 ? config_.encoder_cache_size : longest_cross_;
  }
  void HandOutEncoding(StepRecord& step);
  Status CheckEncoderItems(const RequestInput& input) const;
  enum class EncoderLimit { kNone, kStep, kCache };
  // `reserved`: of the step's budget, for the request's cross item.
  int32_t ClipToEncoder(const Request& request, int32_t start, int32_t count,
                        EncoderLimit* limit = nullptr, int32_t reserved = 0) const;
  void UseEncoder(Request& request, int32_t start, int32_t count);
  void AdvanceEncoder(Request& request, int32_t processed);
  void ReleaseEncoder(Request& request);
  void ForgetEncoded(const StepRecord& step);
  void CheckEncoderInvariants() const;
  // cross.cc
  Status CheckCrossItems(std::span<const EncoderItem> items) const;
  // The embeddings that admitting the request with this hit has to encode for its cross item.
  int32_t CrossWork(const Request& request, const kv::KvManager::Hit& hit) const {
    return hit.cross_cached ? 0 : request.cross.embeddings;
  }
  void UseCross(Request& request, const kv::KvManager::Hit& hit);
  // drafts.cc
  bool AddDraftRow(Request& request, size_t index);
  void ShortenToFit(Request& request);
  void CountPromised();
  void FinishDraftRow(const RowRecord& row, const int32_t* tokens);
  void PublishAccepted(Request& request);
  void Propose(Request& request);
  // transfers.cc
  void PollTransfers();
  RemoteKv::Answer Consult(Request& request, int32_t local_hit);
  void OfferSave(Request& request, KvRelease why);
  void AppendEnded();
  bool Unsay(RequestId id);
  int32_t ProcessedTokens(const Request& request) const;
  // scheduler.cc
  void ScheduleRunning();
  bool OrderRows(StepRecord& step);
  void DescribeSamples(const StepRecord& step);
  int32_t TokensFor(const Request& request) const;
  void ReachBoundaries();
  bool AtBoundary(const Request& request) const {
    return (request.computed & (kv_.unit() - 1)) == 0;
  }
  void LeaveBehind(Request& request);
  bool MakeRoom(Request& request, size_t index, int32_t tokens);
  void AddRow(Request& request, int32_t count);
  bool FillsBlock(const Request& request, int32_t count) const;
  void Publish(Request& request);
  void PublishFilled();
  void AddScores(Request& request, int32_t count);
  int32_t PickVictim(size_t requester) const;
  void Preempt(size_t index);
  // finish.cc
  Status CheckOpen(uint64_t step_id) const;
  // Takes a row out of flight. False: its request has ended.
  bool Land(const RowRecord& row);
  void FinishRow(const RowRecord& row, int32_t token);
  void PublishState(Request& request);
  bool Bad(int32_t token) const { return token < 0 || token >= config_.vocab_size; }
  void AcceptToken(Request& request, int32_t token, int32_t sample);
  void FailRow(const RowRecord& row, int32_t sample, int32_t processed);
  void Close(Request& request, FinishReason reason);
  void ReleaseBlocks(Request& request);
  void PublishTail(Request& request);
  void Emit(const Request& request, int32_t token, int32_t sample, FinishReason reason,
            int32_t stop_token);
  void CloseStep(StepRecord& step);

  std::span<const StepOutput> Outputs() const { return {outputs_.data(), num_outputs_}; }
  StepRecord& record(uint64_t step_id) { return records_[step_id % config_.max_steps_in_flight]; }
  int32_t num_open() const { return static_cast<int32_t>(next_step_ - first_open_); }

  const EngineConfig config_;
  kv::KvManager& kv_;
  batch::StepBatch& batch_;
  Clock& clock_;
  encoder::EncoderCache encoder_;
  int32_t num_encoding_ = 0;   // live requests with images or audio in their prompts
  int32_t longest_cross_ = 0;  // embeddings; of any item that every cross group holds, 0: no groups
  ChainHasher hasher_;
  std::unique_ptr<RemoteKv> remote_;  // null without a connector

  RequestTable requests_;
  WaitingQueue waiting_;
  WaitingQueue held_;  // new requests that a pause keeps out of waiting_
  PauseMode pause_ = PauseMode::kNone;
  std::vector<WaitingQueue::Entry> passed_over_;
  std::vector<Request*> running_;  // in scheduling order
  std::vector<Request*> filled_;   // of these, whose row of this step fills a block
  std::vector<Request*> growing_;  // room for as many as run, for ReachBoundaries
  std::vector<int32_t> free_slots_;
  std::vector<Quarantine> quarantine_;
  int32_t num_waiting_ = 0;
  uint64_t arrivals_ = 0;
  bool compact_running_ = false;

  StepRecord records_[kMaxStepsInFlight];
  StepRecord* planned_ = nullptr;   // the one that Begin fills
  std::vector<RowRecord> ordered_;  // rows of a step, while they are put in order
  uint64_t first_open_ = 1;
  uint64_t next_step_ = 1;
  uint64_t executed_ = 0;  // the last step that ran to its end
  Pass pass_;
  std::vector<StepOutput> outputs_;  // as large as any steps need; the first num_outputs_ count
  size_t num_outputs_ = 0;
  std::vector<StepOutput> ended_;  // outside a step, not told yet
  EngineStats stats_;
};

}  // namespace octavo::sched
