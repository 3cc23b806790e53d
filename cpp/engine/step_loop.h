// StepLoop: steps an engine on a thread of its own, so that a device finds its next step waiting
// whatever the caller's thread does meanwhile.
//
// The loop begins steps, launches them, waits for the oldest and hands its tokens to the engine;
// the caller takes a report of each finished step, in order, through Next. A step that the device
// does not take is handed out by Next too: the caller launches it and calls Launched. Nothing is
// begun before Next is called, and from then on until nothing is left to do, but never more than
// kMostAhead reports ahead of the caller.
//
// Every call of the engine, by whomever, is made under its gate. Next, Launched and Stop are
// called by one thread at a time, without the gate. The loop allocates nothing once warm.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/core_engine.h"
#include "octavo/executor.h"

namespace octavo::engine {

// A step that is over.
struct StepReport {
  uint64_t step_id = 0;
  int32_t num_rows = 0;
  Status failure;  // not ok: every request of this step and of later open ones has ended
  std::vector<StepOutput> outputs;
};

// What the caller has to do next.
enum class LoopTurn {
  kNothing,  // there is nothing to run
  kReport,   // take `report`
  kLaunch,   // launch `plan`, then call Launched
  kNotYet,   // the time is up
};

struct LoopNews {
  LoopTurn turn = LoopTurn::kNotYet;
  const StepReport* report = nullptr;  // valid until the next call of Next
  const StepPlan* plan = nullptr;      // valid until Launched
};

class StepLoop {
 public:
  static constexpr size_t kMostAhead = 32;

  // At most `depth` steps are open. Both must outlive the loop.
  // REQUIRES: 1 <= depth <= max_steps_in_flight; the engine has no open step and no connector.
  StepLoop(CoreEngine& engine, StepDevice& device, int depth);
  ~StepLoop() { Stop(); }
  StepLoop(const StepLoop&) = delete;
  StepLoop& operator=(const StepLoop&) = delete;

  // Waits for something to do. A step that was handed out and never reported as launched fails.
  LoopNews Next(std::chrono::microseconds patience);
  // The same, waiting for nothing: not for the gate either.
  LoopNews TryNext();
  // The step that Next handed out runs on the device; or, not ok, it could not be started: it then
  // fails when its turn comes.
  void Launched(Status status);
  // Waits for the open steps and ends the thread; what they sampled is lost. Can be called twice.
  void Stop();

  std::mutex& gate() { return engine_.gate(); }

 private:
  using Lock = std::unique_lock<std::mutex>;

  // Where an open step stands. Those that the caller launches pass through the first two.
  enum class Stage { kOffered, kHandedOut, kRunning, kRefused };
  struct OpenStep {
    StepPlan plan;
    Stage stage = Stage::kRunning;
    Status refusal;
  };

  // The caller's side.
  void Want();
  void Reclaim();
  LoopNews Poll();

  // The thread's.
  void Run();

  // The work, of one thread at a time.
  bool CanBegin() const;
  bool HasWork() const;
  void Drive(Lock& lock);
  bool Begin(Lock& lock);
  void FinishOldest(Lock& lock);
  void FailAll(Lock& lock, Status why);
  void Report(Status failure, std::span<const StepOutput> outputs);

  OpenStep& oldest() { return open_[first_]; }
  OpenStep& newest() { return open_[(first_ + num_open_ - 1) % open_.size()]; }
  const OpenStep& newest() const { return open_[(first_ + num_open_ - 1) % open_.size()]; }

  CoreEngine& engine_;
  StepDevice& device_;
  const size_t depth_;

  // All below is guarded by the gate.
  std::condition_variable work_;  // the thread waits here
  std::condition_variable news_;  // the caller waits here
  std::array<OpenStep, kMaxStepsInFlight> open_;
  size_t first_ = 0;
  size_t num_open_ = 0;
  std::vector<StepReport> reports_;  // a ring
  size_t first_report_ = 0;
  size_t num_reports_ = 0;
  bool report_taken_ = false;  // by the caller, who reads the first one
  bool wanted_ = false;        // Next was called, and there may be something to do
  bool driving_ = false;       // somebody is in Drive, which lets go of the gate
  bool stopped_ = false;

  std::thread thread_;  // last: it sees everything above
};

}  // namespace octavo::engine
