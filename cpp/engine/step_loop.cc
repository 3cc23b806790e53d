#include "engine/step_loop.h"

#include <utility>

#include "base/check.h"

namespace octavo::engine {

StepLoop::StepLoop(CoreEngine& engine, StepDevice& device, int depth)
    : engine_(engine), device_(device), depth_(static_cast<size_t>(depth)), reports_(kMostAhead) {
  OCTAVO_CHECK(depth >= 1 && depth <= engine.config().max_steps_in_flight,
               "a loop is as deep as its engine allows");
  // No step yields more outputs than samples, and none that fails more than there are rows.
  const size_t samples = engine.arena().capacity(batch::Column::kSampleToken);
  for (StepReport& report : reports_) report.outputs.reserve(samples);
  thread_ = std::thread([this] { Run(); });
}

LoopNews StepLoop::Next(std::chrono::microseconds patience) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  Lock lock(gate());
  Want();
  LoopNews news = Poll();
  for (bool late = false; news.turn == LoopTurn::kNotYet && !late; news = Poll()) {
    if (HasWork()) {
      Drive(lock);
    } else {
      late = news_.wait_until(lock, deadline) == std::cv_status::timeout;
    }
  }
  if (HasWork()) work_.notify_one();
  return news;
}

LoopNews StepLoop::TryNext() {
  const Lock lock(gate(), std::try_to_lock);
  if (!lock.owns_lock()) return {};
  Want();
  const LoopNews news = Poll();
  // Who hears nothing calls Next, and does the work himself.
  if (news.turn != LoopTurn::kNotYet && HasWork()) work_.notify_one();
  return news;
}

void StepLoop::Launched(Status status) {
  const Lock lock(gate());
  OpenStep& step = newest();
  OCTAVO_CHECK(num_open_ > 0 && step.stage == Stage::kHandedOut, "no step was handed out");
  if (status.ok()) status = device_.NoteEnd(step.plan);
  step.stage = status.ok() ? Stage::kRunning : Stage::kRefused;
  step.refusal = std::move(status);
  work_.notify_one();
}

void StepLoop::Stop() {
  {
    const Lock lock(gate());
    Reclaim();
    stopped_ = true;
    work_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

// Gives the caller's last report back, and says that steps are wanted.
void StepLoop::Want() {
  Reclaim();
  if (std::exchange(report_taken_, false)) {
    first_report_ = (first_report_ + 1) % reports_.size();
    --num_reports_;
  }
  wanted_ = true;
}

// Who asks for something else does not launch what was handed out.
void StepLoop::Reclaim() {
  if (num_open_ == 0 || newest().stage != Stage::kHandedOut) return;
  newest().stage = Stage::kRefused;
  newest().refusal = {StatusCode::kCancelled, "the launch of a step was interrupted"};
  work_.notify_one();
}

LoopNews StepLoop::Poll() {
  // Reports come first: the step to launch may use the host slot of one that is reported.
  if (num_reports_ > 0) {
    report_taken_ = true;
    return {LoopTurn::kReport, &reports_[first_report_], nullptr};
  }
  if (num_open_ > 0 && newest().stage == Stage::kOffered) {
    newest().stage = Stage::kHandedOut;
    return {LoopTurn::kLaunch, nullptr, &newest().plan};
  }
  return {wanted_ && !stopped_ ? LoopTurn::kNotYet : LoopTurn::kNothing, nullptr, nullptr};
}

void StepLoop::Run() {
  Lock lock(gate());
  for (;;) {
    work_.wait(lock, [this] { return stopped_ || HasWork(); });
    if (stopped_) break;
    Drive(lock);
  }
  FailAll(lock, {StatusCode::kCancelled, "the engine was stopped"});
}

// Begins a step, finishes one, or finds that there is nothing to do.
void StepLoop::Drive(Lock& lock) {
  driving_ = true;
  if (!CanBegin() || !Begin(lock)) {
    if (num_open_ > 0) {
      FinishOldest(lock);
    } else {
      wanted_ = false;
      news_.notify_one();
    }
  }
  driving_ = false;
}

bool StepLoop::CanBegin() const {
  return wanted_ && num_open_ < depth_ && num_open_ + num_reports_ < reports_.size() &&
         (num_open_ == 0 || newest().stage == Stage::kRunning);
}

bool StepLoop::HasWork() const {
  if (driving_) return false;
  return CanBegin() || (num_open_ > 0 && open_[first_].stage >= Stage::kRunning);
}

// False: there is nothing to begin now.
bool StepLoop::Begin(Lock& lock) {
  const StepPlan* plan = engine_.BeginStep();
  if (!plan) return false;
  ++num_open_;
  OpenStep& step = newest();
  step.plan = *plan;
  step.refusal = Status::Ok();
  if (!device_.Takes(*plan)) {
    step.stage = Stage::kOffered;
    news_.notify_one();
    return true;
  }
  lock.unlock();
  Status launched = device_.Launch(step.plan);
  lock.lock();
  step.stage = launched.ok() ? Stage::kRunning : Stage::kRefused;
  step.refusal = std::move(launched);
  return true;
}

void StepLoop::FinishOldest(Lock& lock) {
  OpenStep& step = oldest();
  Status failure = step.refusal;
  if (failure.ok()) {
    lock.unlock();
    const Result<std::span<const int32_t>> tokens = device_.Wait(step.plan);
    lock.lock();
    if (stopped_) return;
    failure = tokens.status();
    if (failure.ok()) {
      const auto outputs = engine_.FinishStep(step.plan.step_id, tokens.value());
      if (outputs.ok()) {
        Report(Status::Ok(), *outputs);
        first_ = (first_ + 1) % open_.size();
        --num_open_;
        return;
      }
      failure = outputs.status();
    }
  }
  FailAll(lock, std::move(failure));
}

// They are waited for first: one that still ran would read tables that the engine gives to others.
void StepLoop::FailAll(Lock& lock, Status why) {
  work_.wait(lock, [this] { return num_open_ == 0 || newest().stage != Stage::kHandedOut; });
  if (num_open_ == 0) return;
  if (newest().stage == Stage::kOffered) newest().stage = Stage::kRefused;
  for (size_t i = 0; i < num_open_; ++i) {
    const OpenStep& step = open_[(first_ + i) % open_.size()];
    lock.unlock();
    // A launch that was given up half way left something to wait for, too.
    if (step.stage == Stage::kRunning || device_.NoteEnd(step.plan).ok()) {
      (void)device_.Wait(step.plan).ok();
    }
    lock.lock();
  }
  const auto outputs = engine_.FailStep(oldest().plan.step_id);
  OCTAVO_CHECK(outputs.ok(), "an open step can fail");
  Report(std::move(why), *outputs);
  num_open_ = 0;
}

void StepLoop::Report(Status failure, std::span<const StepOutput> outputs) {
  StepReport& report = reports_[(first_report_ + num_reports_++) % reports_.size()];
  report.step_id = oldest().plan.step_id;
  report.num_rows = oldest().plan.num_rows;
  report.failure = std::move(failure);
  report.outputs.assign(outputs.begin(), outputs.end());
  news_.notify_one();
}

}  // namespace octavo::engine
