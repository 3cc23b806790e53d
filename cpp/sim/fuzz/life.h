// Life: one engine living through a scenario, watched at every step.
//
// After each call the answers are compared with what the oracle says and with what the calls before
// allow; a difference aborts through OCTAVO_CHECK, as the engine's own invariants do, so whoever
// wants to go on runs a life in a process of its own (isolate.h).
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/check.h"
#include "engine/core_engine.h"
#include "sim/fuzz/connector.h"
#include "sim/fuzz/event_reader.h"
#include "sim/fuzz/op.h"
#include "sim/hash_model.h"
#include "sim/model_copier.h"
#include "sim/oracle.h"
#include "sim/random.h"
#include "sim/virtual_clock.h"

namespace octavo::sim {

class Life {
 public:
  // `counts` gets how often each kind struck; kinds that found nothing to strike do not count.
  Life(uint64_t config_seed, OpCounts* counts);

  void Apply(const Op& op);
  // Steps until nothing is left, and checks that nothing is.
  void Drain();
  uint64_t steps() const { return engine_.Stats().steps; }

 private:
  // A request that was accepted.
  struct Guest {
    Guest(const EngineConfig& config, std::span<const GroupSpec> groups, RequestSpec s)
        : spec(std::move(s)), oracle(config, groups, spec) {}
    RequestSpec spec;
    Oracle oracle;
    RequestId id{};
    int32_t computed = 0;   // tokens planned in this life; falls when it is preempted
    int32_t in_flight = 0;  // open steps that hold a row of it
    int32_t cached_tokens = -1;
    std::vector<int32_t> drafts;  // what was proposed last
    int32_t draft_position = 0;   // of its first token
    bool admitted = false;
    bool preempted = false;  // seen without a row after a step that preempted somebody
  };
  struct OpenStep {
    StepPlan plan;
    std::vector<int32_t> tokens;
    std::vector<Encoded> inputs;  // what the plan's encoder_inputs stand for
    std::vector<int32_t> nans;    // samples that saw a NaN
    bool executed = false;
  };
  using Guests = std::vector<Guest*>;

  // life.cc
  void Submit(RequestSpec spec);
  bool Begin();
  void Run();
  void Finish();
  void Fail(size_t at_least);
  void TakeEnded();
  void CheckPlan(const StepPlan& plan);
  void CheckRow(const StepPlan& plan, int32_t row);
  void CheckOutputs(const OpenStep& step, std::span<const StepOutput> outputs, int32_t spoiled);
  void CheckOutput(Guest& guest, const StepOutput& output, bool spoiled, bool nan);
  bool SetDrafts(Guest& guest, uint64_t argument, bool junk);
  void Close(Guest& guest, FinishReason reason);
  std::unique_ptr<transfer::HostTier> MakeTier(uint64_t config_seed);
  KvConnector* Connector() {
    return connected_ ? static_cast<KvConnector*>(&connector_) : tier_.get();
  }
  void Work();
  void CheckLeftOver();
  void CheckRetentionEnds();
  void DrainTransfers();
  Guest* Find(uint64_t id) const;
  // cross.cc
  void CheckCross(const StepPlan& plan);
  // items.cc
  void CheckItems(const StepPlan& plan);
  void NameInputs(OpenStep& step);
  bool StrikeItem(OpKind kind, uint64_t argument);
  void FailEncode();
  bool SubmitBadItem(uint64_t argument);
  bool HasBroken(const Guest& guest) const;
  void BreakToken(const StepPlan& plan);
  void RetryBroken();
  // faults.cc
  bool Strike(OpKind kind, uint64_t argument);
  bool StrikeEnd(OpKind kind, uint64_t argument);
  bool StrikeAnswer(OpKind kind, uint64_t argument);
  bool StrikeCall(OpKind kind, uint64_t argument);
  bool StrikeSubmission(OpKind kind, uint64_t argument);
  bool StrikeDraft(OpKind kind, uint64_t argument);
  bool StrikeLoad(OpKind kind, uint64_t argument);
  bool StrikeReader(OpKind kind, uint64_t argument);
  bool End(const Guests& among, uint64_t argument, FinishReason reason);
  bool EndAll();
  bool ResetCache();
  // The sample whose token it replaced, or -1; with drafts before it that prove wrong it will not
  // matter.
  int32_t SpoilTokens(OpenStep& step);
  // The live ones that `accepts` takes, oldest first.
  template <typename Predicate>
  Guests Pick(Predicate accepts);
  template <typename Call>
  void MustChangeNothing(Call call);
  void Count(OpKind kind) { ++(*counts_)[size_t(kind)]; }

  EngineConfig config_;
  std::vector<GroupSpec> groups_;
  OpCounts* counts_;
  VirtualClock clock_;
  FaultyConnector connector_;
  bool connected_;
  ModelCopier* copier_ = nullptr;  // the tier's
  std::unique_ptr<transfer::HostTier> tier_;
  engine::CoreEngine engine_;
  HashModel model_;
  std::vector<OpenStep> open_;                  // oldest first
  std::vector<std::unique_ptr<Guest>> guests_;  // live ones, oldest first
  std::unordered_map<uint64_t, Guest*> by_id_;
  std::vector<RequestId> past_;      // some that have ended
  std::vector<uint64_t> slot_seen_;  // the step that last used a row slot
  EventReader reader_;
  uint64_t submitted_ = 0;
  uint64_t ended_[5] = {};         // by FinishReason
  OpKind spoil_ = OpKind::kCheck;  // armed: what happens to a token of the next step that fits
  uint64_t spoil_choice_ = 0;
  bool fail_encode_ = false;  // armed: the next step with items fails at one of them
  bool break_item_ = false;   // armed: the next item that is encoded comes out as NaN
  bool break_token_ = false;  // armed: a token of the next step that fits is a NaN
  uint64_t break_choice_ = 0;
  // Prefixes, with their salt, whose last token was.
  std::vector<std::pair<std::string, std::vector<int32_t>>> broken_prefixes_;
  std::vector<uint64_t> broken_;       // contents that once did
  std::vector<RequestSpec> to_retry_;  // some that failed for that
  bool retrying_ = false;
};

template <typename Call>
void Life::MustChangeNothing(Call call) {
  const EngineStats before = engine_.Stats();
  OCTAVO_CHECK(!call(), "a wrong call was accepted");
  const EngineStats after = engine_.Stats();
  OCTAVO_CHECK(std::memcmp(&before, &after, sizeof(before)) == 0, "a refused call left a trace");
}

}  // namespace octavo::sim
