// An engine under any configuration, requests, answers and calls. There is no oracle of tokens here
// (life.cc has one): the executor answers what the fuzzer says. Checked are the invariants of the
// engine, the plan's ranges, that a refusal changes nothing, and that everything ends.
#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "base/check.h"
#include "base/host_memory.h"
#include "engine/core_engine.h"
#include "fuzz/bytes.h"
#include "fuzz/engine_input.h"
#include "fuzz/targets.h"
#include "sim/virtual_clock.h"

namespace octavo::fuzz {
namespace {

constexpr int kMostCalls = 300;
constexpr int kMostTurns = 20'000;    // of a drain
constexpr int64_t kParentBytes = 64;  // of the pool that a host tier copies
constexpr int64_t kTurnUs = 100'000;  // a transfer that lasts is given up in time

class Driver {
 public:
  Driver(const EngineConfig& config, Bytes* bytes)
      : config_(config), bytes_(*bytes), engine_(config, clock_, SystemMemory()) {
    if (!bytes_.OneIn(3)) return;
    pool_.resize(size_t(config.num_blocks) * kParentBytes);
    // It may refuse a budget that holds no block, or a configuration without a cache.
    (void)engine_.AddHostTier(pool_.data(), kParentBytes, bytes_.Below(64) * kParentBytes).ok();
  }

  void Run() {
    for (int call = 0; call < kMostCalls && !bytes_.empty(); ++call) {
      Call();
      engine_.CheckInvariants();
    }
    Drain();
  }

 private:
  void Call() {
    switch (bytes_.Below(16)) {
      case 0:
      case 1:
      case 2:
        return Submit();
      case 3:
      case 4:
      case 5:
        Begin();
        return;
      case 6:
      case 7:
      case 8:
        return Finish(/*wild=*/true);
      case 9:
        return Fail();
      case 10:
        return End();
      case 11:
        return Draft();
      case 12:
        return engine_.SetPause(PauseMode(bytes_.Below(3)));
      case 13:
        clock_.now_us += int64_t(bytes_.Word(4));
        return;
      case 14:
        return Caches();
      default:
        return Events();
    }
  }

  template <typename Answer>
  bool Refused(const EngineStats& before, const Answer& answer) {
    if (answer.ok()) return false;
    const EngineStats after = engine_.Stats();
    OCTAVO_CHECK(std::memcmp(&before, &after, sizeof(before)) == 0, "a refusal left a trace");
    return true;
  }

  void Submit() {
    const RequestParts parts(&bytes_, config_);
    const EngineStats before = engine_.Stats();
    const auto id = engine_.AddRequest(parts.input());
    if (Refused(before, id)) return;
    OCTAVO_CHECK(std::find(live_.begin(), live_.end(), *id) == live_.end(), "an id is given twice");
    live_.push_back(*id);
  }

  bool Begin() {
    const StepPlan* plan = engine_.BeginStep();
    Take(engine_.TakeEnded());
    if (!plan) return false;
    CheckPlan(*plan, config_, engine_.block_tables());
    CheckLive(*plan);
    encoders_.Follow(*plan);
    open_.push_back({plan->step_id, size_t(plan->num_samples)});
    return true;
  }

  void CheckLive(const StepPlan& plan) const {
    for (int32_t r = 0; r < plan.num_rows; ++r) {
      const RequestId id{plan.request[r]};
      OCTAVO_CHECK(std::find(live_.begin(), live_.end(), id) != live_.end(),
                   "a row of nobody who lives");
    }
  }

  void Finish(bool wild) {
    if (open_.empty()) return;
    uint64_t step = open_.front().id;
    std::vector<int32_t> tokens(open_.front().samples);
    for (int32_t& token : tokens) {
      token = wild ? bytes_.IntNear(-1, config_.vocab_size - 1) : bytes_.Below(config_.vocab_size);
    }
    if (wild && bytes_.OneIn(32)) tokens.resize(tokens.size() + 1);
    if (wild && bytes_.OneIn(32)) step += bytes_.Below(3);
    const EngineStats before = engine_.Stats();
    const auto outputs = engine_.FinishStep(step, tokens);
    if (Refused(before, outputs)) {
      OCTAVO_CHECK(step != open_.front().id || tokens.size() != open_.front().samples,
                   "a step that was right is refused");
      return;
    }
    open_.pop_front();
    Take(*outputs);
  }

  void Fail() {
    const uint64_t step = open_.empty() ? bytes_.Byte() : open_.front().id + bytes_.OneIn(8);
    const EngineStats before = engine_.Stats();
    const auto outputs = engine_.FailStep(step);
    if (Refused(before, outputs)) return;
    open_.clear();
    Take(*outputs);
  }

  void Take(std::span<const StepOutput> outputs) {
    for (const StepOutput& output : outputs) {
      const auto at = std::find(live_.begin(), live_.end(), RequestId{output.request});
      OCTAVO_CHECK(at != live_.end(), "an output for nobody who lives");
      OCTAVO_CHECK(output.token >= -1 && output.token < config_.vocab_size, "no such token");
      const auto finish = FinishReason{output.finish};
      OCTAVO_CHECK(finish == FinishReason::kError || output.token >= 0, "an output without token");
      if (finish != FinishReason::kNone) live_.erase(at);
    }
  }

  void End() {
    const EngineStats before = engine_.Stats();
    if (live_.empty() || bytes_.OneIn(8)) {
      const RequestId id{uint64_t(bytes_.Number())};
      if (std::find(live_.begin(), live_.end(), id) != live_.end()) return;
      OCTAVO_CHECK(Refused(before, engine_.Abort(id)), "nobody has this id");
      return;
    }
    const auto at = live_.begin() + bytes_.Byte() % int64_t(live_.size());
    const Status ended = bytes_.OneIn(2) ? engine_.Stop(*at) : engine_.Abort(*at);
    OCTAVO_CHECK(ended.ok(), "who lives can be ended");
    live_.erase(at);
  }

  void Draft() {
    if (live_.empty()) return;
    const RequestId id = live_[bytes_.Byte() % live_.size()];
    std::vector<int32_t> drafts(size_t(bytes_.Below(config_.max_draft_tokens + 2)));
    for (int32_t& token : drafts) token = bytes_.IntNear(0, config_.vocab_size - 1);
    const EngineStats before = engine_.Stats();
    Refused(before, engine_.SetDrafts(id, drafts));
  }

  void Caches() {
    if (bytes_.OneIn(2)) return engine_.ResetEncoderCache();
    const EngineStats before = engine_.Stats();
    const bool reset = engine_.ResetPrefixCache();
    const int64_t left = engine_.Stats().cached_blocks;
    OCTAVO_CHECK(left == (reset ? 0 : before.cached_blocks), "a reset forgets all, or nothing");
  }

  void Events() {
    std::vector<KvEvent> events;
    if (bytes_.OneIn(2)) {
      OCTAVO_CHECK(engine_.CachedContent(&events).ok(), "no memory for a few events");
    } else {
      engine_.TakeEvents(&events);
    }
  }

  void Drain() {
    engine_.SetPause(PauseMode::kNone);
    int idle = 0;
    for (int turn = 0; engine_.HasUnfinished() || !open_.empty(); ++turn) {
      OCTAVO_CHECK(turn < kMostTurns, "the engine goes round in circles");
      idle = Begin() || !open_.empty() ? 0 : idle + 1;
      OCTAVO_CHECK(idle < 1000, "the engine stands still with work left");
      clock_.now_us += kTurnUs;
      Finish(/*wild=*/false);
    }
    for (int turn = 0; engine_.Stats().kv_transfers > 0; ++turn) {
      OCTAVO_CHECK(turn < 1000, "a transfer never ends");
      OCTAVO_CHECK(!Begin(), "a step without requests");
      clock_.now_us += kTurnUs;
    }
    engine_.CheckInvariants();
    const EngineStats s = engine_.Stats();
    OCTAVO_CHECK(live_.empty() && s.running == 0 && s.waiting == 0, "a request never ended");
    OCTAVO_CHECK(s.free_blocks == s.total_blocks && s.kv_slots_allocated == 0, "blocks leaked");
  }

  struct OpenStep {
    uint64_t id;
    size_t samples;
  };

  EngineConfig config_;
  Bytes& bytes_;
  sim::VirtualClock clock_;
  std::vector<std::byte> pool_;
  engine::CoreEngine engine_;
  EncoderEntries encoders_;
  std::deque<OpenStep> open_;
  std::vector<RequestId> live_;
};

}  // namespace

void Engine(Input input) {
  Bytes bytes(input);
  const EngineConfig config = ReadConfig(&bytes);
  const Status valid = Validate(config);
  OCTAVO_CHECK(valid.ok() || !valid.message().empty(), "a refusal says why");
  if (!valid.ok() || !IsSmall(config)) return;
  Driver(config, &bytes).Run();
}

}  // namespace octavo::fuzz
