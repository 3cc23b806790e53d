// Lives of one kind each: what the contracts claim of random requests, where it can be found. Every
// case lives some thousand steps of engines that have what it speaks of, beside all other trouble,
// and says how often the trouble that it is about must have struck.
#include <algorithm>
#include <initializer_list>
#include <utility>

#include "doctest/doctest.h"
#include "sim/fuzz/generate.h"
#include "sim/fuzz/isolate.h"
#include "sim/oracle.h"

namespace octavo::sim {
namespace {

using Accepts = std::function<bool(uint64_t seed, const EngineConfig&)>;
using Kinds = std::initializer_list<OpKind>;

constexpr uint64_t kSteps = 30'000;
constexpr uint64_t kLeast = 5;

void CheckLives(const Accepts& accepts, Kinds must_strike, uint64_t first_seed) {
  Campaign campaign;
  campaign.first_seed = first_seed;
  campaign.steps = kSteps;
  campaign.accepts = accepts;
  const CampaignResult result = RunCampaign(campaign);
  CAPTURE(result.failed_seed);
  CHECK(result.ok);
  CHECK(result.steps >= kSteps);
  // What never reaches the hard parts proves nothing.
  CHECK(result.counts[size_t(OpKind::kPreemption)] > kLeast);
  for (OpKind kind : must_strike) {
    CAPTURE(Name(kind));
    CHECK(result.counts[size_t(kind)] > kLeast);
  }
}

bool OneGroup(uint64_t, const EngineConfig& c) { return c.groups.empty(); }
bool InFlight(uint64_t, const EngineConfig& c) { return c.max_steps_in_flight > 1; }
bool Drafts(uint64_t, const EngineConfig& c) { return c.max_draft_tokens > 0; }
bool Images(uint64_t, const EngineConfig& c) { return c.encoder_cache_size > 0; }
bool Connected(uint64_t seed, const EngineConfig& c) { return UsesConnector(seed, c); }

// Engines whose groups are all of `kinds`, each of which occurs.
Accepts Only(std::vector<GroupKind> kinds) {
  return [kinds](uint64_t, const EngineConfig& c) {
    const std::vector<GroupSpec> groups = GroupsOf(c);
    const auto is = [](GroupKind kind) {
      return [kind](const GroupSpec& g) { return g.kind == kind; };
    };
    return std::all_of(groups.begin(), groups.end(),
                       [&](const GroupSpec& g) {
                         return std::find(kinds.begin(), kinds.end(), g.kind) != kinds.end();
                       }) &&
           std::all_of(kinds.begin(), kinds.end(), [&](GroupKind kind) {
             return std::any_of(groups.begin(), groups.end(), is(kind));
           });
  };
}

Accepts Tier(bool slow) {
  return [slow](uint64_t seed, const EngineConfig& c) {
    const TierChoice tier = ChooseTier(seed, c);
    return tier.bytes > 0 && tier.slow == slow;
  };
}

constexpr GroupKind kFull = GroupKind::kFull;
constexpr GroupKind kWindow = GroupKind::kSlidingWindow;
constexpr GroupKind kChunk = GroupKind::kChunkedLocal;
constexpr GroupKind kState = GroupKind::kState;

TEST_CASE("requests in a crowd get the tokens that they get alone") {
  CheckLives(OneGroup, {OpKind::kHerd, OpKind::kSaltMix, OpKind::kPriorityFlood}, 1'000'000);
}

TEST_CASE("requests in a crowd get their own tokens with steps in flight") {
  CheckLives(InFlight, {OpKind::kAbortInFlight, OpKind::kPreemptionStorm}, 1'010'000);
}

TEST_CASE("requests get their own tokens when steps run long after they were planned") {
  CheckLives(InFlight, {OpKind::kLateRun, OpKind::kAbortPreempted}, 1'020'000);
}

TEST_CASE("failed rows end their own request and spoil no other") {
  CheckLives(OneGroup, {OpKind::kNanRow, OpKind::kNanAtPrefillEnd, OpKind::kTokenOutOfRange},
             1'030'000);
}

TEST_CASE("failed steps leave nothing in the cache that was never written") {
  CheckLives(InFlight, {OpKind::kFailStep, OpKind::kFailTwoSteps}, 1'040'000);
}

TEST_CASE("guesses, right or wrong, change no request's tokens") {
  CheckLives(Drafts,
             {OpKind::kDraft, OpKind::kDraftJunk, OpKind::kDraftsRejected, OpKind::kLookupDraft},
             1'050'000);
}

TEST_CASE("failed samples and steps spoil nothing when rows carry guesses") {
  CheckLives(Drafts, {OpKind::kNanRow, OpKind::kFailStep}, 1'060'000);
}

TEST_CASE("own tokens: full attention cut into parts of parents") {
  const auto cut = [](uint64_t seed, const EngineConfig& c) {
    return Only({kFull})(seed, c) && !c.groups.empty() && c.groups[0].split > 1;
  };
  CheckLives(cut, {OpKind::kFailStep}, 1'100'000);
}
TEST_CASE("own tokens: full attention and a sliding window") {
  CheckLives(Only({kFull, kWindow}), {OpKind::kFailStep, OpKind::kDraft}, 1'110'000);
}
TEST_CASE("own tokens: full attention and chunks with a sink") {
  CheckLives(Only({kFull, kChunk}), {OpKind::kFailStep, OpKind::kDraft}, 1'120'000);
}
TEST_CASE("own tokens: full attention and recurrent states") {
  CheckLives(Only({kFull, kState}), {OpKind::kFailStep}, 1'130'000);
}
TEST_CASE("own tokens: a sliding window alone") {
  CheckLives(Only({kWindow}), {OpKind::kFailStep, OpKind::kDraft}, 1'140'000);
}
TEST_CASE("own tokens: states alone") {
  CheckLives(Only({kState}), {OpKind::kFailStep}, 1'150'000);
}
TEST_CASE("own tokens: every kind of group") {
  CheckLives(Only({kFull, kWindow, kChunk, kState}), {OpKind::kFailStep}, 1'160'000);
}

TEST_CASE("requests get their own tokens while prefixes are loaded and saved") {
  CheckLives(Connected, {OpKind::kTransferLate, OpKind::kReportRepeated, OpKind::kCancelRefused},
             1'200'000);
}
TEST_CASE("a load that failed spoils nobody's tokens") {
  CheckLives(Connected, {OpKind::kLoadFailed, OpKind::kLoadPartial, OpKind::kLoadEndsRequest},
             1'210'000);
}
TEST_CASE("reports that never come keep nobody waiting for ever") {
  CheckLives(Connected, {OpKind::kLoadLost, OpKind::kSaveLost}, 1'220'000);
}
TEST_CASE("the engine outlives its connector") {
  CheckLives(Connected, {OpKind::kConnectorDeath}, 1'230'000);
}
TEST_CASE("failed steps and rows leave nothing wrong with a connector") {
  CheckLives(Connected, {OpKind::kFailStep, OpKind::kNanRow}, 1'240'000);
}
TEST_CASE("requests get their own tokens from a host tier") {
  CheckLives(Tier(false), {OpKind::kTierStore, OpKind::kTierLoad, OpKind::kTierEviction},
             1'250'000);
}
TEST_CASE("requests get their own tokens from a host tier that copies late") {
  CheckLives(Tier(true), {OpKind::kTierStore, OpKind::kTierLoad, OpKind::kTierEviction}, 1'260'000);
}
TEST_CASE("copies of a host tier that fail spoil nobody's tokens") {
  const auto fails = [](uint64_t seed, const EngineConfig& c) {
    return ChooseTier(seed, c).failures != 0;
  };
  CheckLives(fails, {OpKind::kTierLoad, OpKind::kTierFailure}, 1'270'000);
}

TEST_CASE("random lives with images keep every span right and end empty") {
  CheckLives(Images,
             {OpKind::kItemEvicted, OpKind::kItemShared, OpKind::kItemSplit, OpKind::kFailEncode,
              OpKind::kResetEncoder, OpKind::kBadItem, OpKind::kItemHerd},
             1'300'000);
}
TEST_CASE("a NaN that was noticed is in no cache any more") {
  // Each life ends with requests that failed for a NaN coming again.
  CheckLives(Images, {OpKind::kNanItem, OpKind::kNanSpreads}, 1'310'000);
  CheckLives([](uint64_t, const EngineConfig& c) { return c.sub_block_hits; },
             {OpKind::kNanToken, OpKind::kNanSpreads, OpKind::kBlockCopied}, 1'312'000);
  CheckLives(Connected, {OpKind::kNanToken, OpKind::kNanSpreads}, 1'314'000);
}
TEST_CASE("who reads the events slowly, loses some or starts anew is exact again") {
  const auto small = [](uint64_t, const EngineConfig& c) {
    return c.enable_kv_events && c.max_kv_events < 1 << 16;
  };
  CheckLives(
      small,
      {OpKind::kEventsDropped, OpKind::kSlowReader, OpKind::kLostBatch, OpKind::kReaderRestart},
      1'320'000);
}
TEST_CASE("what was to be kept for a time is ordinary after it") {
  const auto ends = [](uint64_t, const EngineConfig& c) { return EndsRetention(c); };
  CheckLives(ends, {OpKind::kRetentionEnds}, 1'330'000);
}

}  // namespace
}  // namespace octavo::sim
