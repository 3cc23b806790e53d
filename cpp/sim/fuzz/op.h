// A scenario: one seeded life of an engine, as a list of operations that can be cut anywhere.
//
// Each operation is a kind and an argument, and means something whatever came before it (an abort
// names "one of those that run"; with nobody running it does nothing). So any subset of a failing
// list is a list again, and shrinking needs no knowledge. Files hold one operation a line.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/status.h"

namespace octavo::sim {

enum class OpKind : uint8_t {
  // The ordinary course of things.
  kSubmit,
  kBegin,
  kRun,     // the executor runs the oldest step that has not run
  kFinish,  // and if it has not, it runs now
  kTick,    // microseconds pass
  kCheck,   // every invariant of the engine
  kDraft,   // a guess of what follows, right for the most part
  // Ends.
  kAbortWaiting,
  kAbortRunning,
  kAbortInFlight,
  kAbortPreempted,
  kAbortStorm,
  kStopString,
  kAbortTwice,
  kUnknownId,
  kStaleId,
  // Time.
  kSlowStep,
  kClockJump,
  // Devices.
  kFailStep,
  kFailTwoSteps,
  kNanRow,
  kNanAtPrefillEnd,
  kTokenOutOfRange,
  // The caller's mistakes: refused, and nothing changes.
  kWrongStep,
  kWrongOrder,
  kWrongCount,
  kFinishTwice,
  kBeginWhenFull,
  kEmptyPrompt,
  kLongPrompt,
  kBadToken,
  kBadNumber,
  kBadList,
  kBadDraft,
  // Load.
  kHerd,
  kSaltMix,
  kPriorityFlood,
  kPromptAtLimit,
  kOneToken,
  kEndlessRequest,
  kDuplicateRequest,
  kResetCache,
  kDraftJunk,
  kPauseNew,
  kPauseAll,
  kResume,
  // Images. Those from here to kNanToken are drawn apart from the others (generate.cc).
  kBadItem,
  kItemHerd,
  kFailEncode,
  kNanItem,
  kResetEncoder,
  // Those who read the KV events.
  kSlowReader,
  kLostBatch,
  kReaderRestart,
  kNanToken,
  // What happens by itself and is only counted.
  kQueueFull,
  kResetRefused,
  kPreemption,
  kPreemptionStorm,
  kLateRun,
  kNothingToPlan,
  kItemEvicted,
  kItemShared,
  kItemSplit,
  kNanSpreads,
  kEventsDropped,
  kRetentionEnds,
  kLookupDraft,
  kDraftsRejected,
  kBlockCopied,
  kTierStore,
  kTierLoad,
  kTierEviction,
  kTierFailure,
  // What a connector does (connector.h).
  kLoadUnknown,
  kLoadRefused,
  kLoadFailed,
  kLoadPartial,
  kLoadLost,
  kLoadEndsRequest,
  kSaveLost,
  kTransferLate,
  kReportRepeated,
  kReportUnknown,
  kCancelRefused,
  kConnectorDeath,
  // Never drawn: the model spoils a cell of its cache, or an embedding, to see the simulator catch
  // it.
  kCorrupt,
  kCorruptItem,
};
inline constexpr size_t kNumOps = size_t(OpKind::kCorruptItem) + 1;

std::string_view Name(OpKind kind);
// Whether the kind is a fault (and not the ordinary course of things).
constexpr bool IsFault(OpKind kind) { return kind > OpKind::kDraft && kind < OpKind::kCorrupt; }
// Whether it only happens by itself: no list of operations can ask for it.
constexpr bool IsObserved(OpKind kind) {
  return kind >= OpKind::kQueueFull && kind < OpKind::kCorrupt;
}
// Whether a generator may draw it.
constexpr bool IsDrawn(OpKind kind) { return IsFault(kind) && !IsObserved(kind); }
constexpr bool NeedsImages(OpKind kind) {
  return kind >= OpKind::kBadItem && kind <= OpKind::kResetEncoder;
}
constexpr bool NeedsEvents(OpKind kind) {
  return kind >= OpKind::kSlowReader && kind <= OpKind::kReaderRestart;
}

constexpr bool IsDrawnApart(OpKind kind) {
  return kind >= OpKind::kBadItem && kind <= OpKind::kNanToken;
}

using OpCounts = std::array<uint64_t, kNumOps>;

// What an argument means is computed in 64 bits; 32 of its own keep that from running over.
inline constexpr uint64_t kMaxArgument = 0xFFFF'FFFF;

struct Op {
  OpKind kind = OpKind::kCheck;
  uint64_t argument = 0;
  bool operator==(const Op&) const = default;
};

struct Scenario {
  uint64_t config_seed = 0;  // fixes the engine's configuration
  std::vector<Op> ops;       // afterwards the engine is drained
};

std::string ToText(const Scenario& scenario);
// Names the line that it cannot read.
Result<Scenario> ScenarioFromText(std::string_view text);

}  // namespace octavo::sim
