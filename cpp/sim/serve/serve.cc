#include "sim/serve/serve.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <queue>
#include <unordered_map>

#include "base/check.h"
#include "base/host_memory.h"
#include "base/strcat.h"
#include "engine/core_engine.h"
#include "sim/digest.h"
#include "sim/virtual_clock.h"

namespace octavo::sim {
namespace {

// With nothing open one call may only make room, and the next plans.
constexpr int kMostIdleTurns = 3;
constexpr uint64_t kPrefixStream = uint64_t{1} << 40;
constexpr uint64_t kOutputStream = uint64_t{1} << 41;

Status Check(std::span<const ServeRequest> requests) {
  for (size_t i = 0; i < requests.size(); ++i) {
    const ServeRequest& r = requests[i];
    const auto wrong = [&](const char* what) {
      return Status::InvalidArgument(StrCat("request ", i, " ", what));
    };
    if (!(r.arrival >= 0 && std::isfinite(r.arrival))) return wrong("arrives at no time");
    if (r.after >= int32_t(i) || r.after < -1) return wrong("follows one that is not before it");
    if (r.grows && r.after < 0) return wrong("grows from nothing");
    if (r.input_len < 0 || r.prefix_len < 0) return wrong("has a negative length");
    if (r.input_len + r.prefix_len == 0 && !r.grows) return wrong("has an empty prompt");
    if (r.like >= int32_t(i) || r.like < -1) return wrong("is like one that is not before it");
    if (r.like >= 0) {
      const ServeRequest& other = requests[size_t(r.like)];
      if (r.prefix >= 0 || r.grows) return wrong("is like another, so it has no prefix or turns");
      if (other.prefix >= 0 || other.grows) return wrong("is like one that has a prefix or turns");
      if (r.prefix_len > int64_t{other.prefix_len} + other.input_len) {
        return wrong("shares more tokens than the other has");
      }
    }
    if (r.output_len < 1) return wrong("makes no token: give output_len of at least 1");
  }
  return Status::Ok();
}

class Server {
 public:
  Server(const EngineConfig& config, const CostModel& cost, std::span<const ServeRequest> requests,
         const ServeOptions& options)
      : cost_(cost),
        requests_(requests),
        options_(options),
        vocab_size_(config.vocab_size),
        engine_(config, clock_, SystemMemory()),
        followers_(requests.size()),
        tokens_(requests.size()) {
    result_.records.resize(requests.size());
    for (size_t i = 0; i < requests.size(); ++i) {
      if (requests[i].after >= 0) {
        followers_[size_t(requests[i].after)].push_back(int32_t(i));
      } else {
        arrivals_.push({requests[i].arrival, int32_t(i)});
      }
    }
  }

  ServeResult Run() {
    int idle = 0;
    while (now_ <= options_.max_seconds) {
      Arrive();
      // Plans as far ahead as the device may queue.
      while (open_.size() <= size_t(options_.lag)) {
        if (!Begin()) break;
      }
      if (!open_.empty()) {
        Finish();
      } else if (!arrivals_.empty()) {
        now_ = std::max(now_, arrivals_.top().time);
      } else if (!engine_.HasUnfinished()) {
        break;
      } else {
        OCTAVO_CHECK(++idle < kMostIdleTurns, "the engine stands still with work left");
        continue;
      }
      idle = 0;
    }
    result_.stats = engine_.Stats();
    if (result_.busy_seconds > 0) {
      result_.bandwidth_use /= result_.busy_seconds;
      result_.compute_use /= result_.busy_seconds;
      result_.mean_kv_use /= result_.busy_seconds;
    }
    return std::move(result_);
  }

 private:
  struct Arrival {
    double time;
    int32_t request;
    bool operator>(const Arrival& other) const {
      return time != other.time ? time > other.time : request > other.request;
    }
  };
  struct Running {
    int32_t request = 0;
    double latest = 0;  // token
  };
  struct OpenStep {
    uint64_t id = 0;
    int32_t samples = 0;
    double end = 0;
  };

  int32_t Token(uint64_t stream, uint64_t index) const {
    return int32_t(Mix(stream, index) % uint64_t(vocab_size_));
  }

  void Arrive() {
    for (; !arrivals_.empty() && arrivals_.top().time <= now_; arrivals_.pop()) {
      Submit(arrivals_.top().request, arrivals_.top().time);
    }
  }

  // What a request shares with earlier ones: of each the tokens of its own, from the last on.
  void AppendShared(const ServeRequest& request, std::vector<int32_t>* prompt) const {
    int32_t end = request.prefix_len;
    prompt->resize(size_t(end));
    for (int32_t i = request.like; end > 0; i = requests_[size_t(i)].like) {
      const int32_t own = requests_[size_t(i)].prefix_len;
      for (int32_t k = own; k < end; ++k) {
        (*prompt)[size_t(k)] = Token(uint64_t(i), uint64_t(k - own));
      }
      end = std::min(end, own);
    }
  }

  void Submit(int32_t i, double time) {
    const ServeRequest& r = requests_[size_t(i)];
    ServeRecord& record = result_.records[size_t(i)];
    std::vector<int32_t>& prompt = tokens_[size_t(i)];
    if (r.grows) prompt = tokens_[size_t(r.after)];
    if (r.like >= 0) {
      AppendShared(r, &prompt);
    } else {
      for (int32_t k = 0; k < r.prefix_len; ++k) {
        prompt.push_back(Token(kPrefixStream + uint64_t(r.prefix), uint64_t(k)));
      }
    }
    for (int32_t k = 0; k < r.input_len; ++k) prompt.push_back(Token(uint64_t(i), uint64_t(k)));
    record.arrival = time;
    if (r.grows && result_.records[size_t(r.after)].refused) {
      record.refused = 1;  // a conversation ends where it no longer fits
      return End(i);
    }
    record.prompt_tokens = int32_t(prompt.size());
    SamplingParams params;
    params.temperature = 0;
    params.max_tokens = r.output_len;
    params.ignore_eos = true;
    clock_.now_us = int64_t(now_ * 1e6);
    const auto id = engine_.AddRequest(prompt, params);
    if (!id.ok()) {
      record.refused = 1;
      return End(i);
    }
    running_[Value(*id)] = {i, 0};
    now_ += options_.submit_seconds;
  }

  bool Begin() {
    clock_.now_us = int64_t(now_ * 1e6);
    const StepPlan* plan = engine_.BeginStep();
    if (!plan) return false;
    const StepCost cost = cost_.Of(*plan);
    const double start = std::max(now_, device_free_);
    device_free_ = start + cost.seconds;
    open_.push_back({plan->step_id, plan->num_samples, device_free_});
    result_.busy_seconds += cost.seconds;
    result_.bandwidth_use += cost.bandwidth_use * cost.seconds;
    result_.compute_use += cost.compute_use * cost.seconds;
    Sample(*plan, start, cost.seconds);
    return true;
  }

  void Sample(const StepPlan& plan, double start, double seconds) {
    const EngineStats s = engine_.Stats();
    const double used = 1.0 - double(s.free_blocks) / double(std::max<int64_t>(1, s.total_blocks));
    result_.mean_kv_use += used * seconds;
    if (start < next_sample_) return;
    result_.samples.push_back(
        {start, int32_t(s.running), int32_t(s.waiting), used, plan.num_tokens, seconds});
    next_sample_ = start + options_.sample_interval;
  }

  void Finish() {
    const OpenStep step = open_.front();
    open_.pop_front();
    now_ = std::max(now_, step.end);
    sampled_.assign(size_t(step.samples), 0);
    for (int32_t& token : sampled_) token = Token(kOutputStream, ++drawn_);
    const auto outputs = engine_.FinishStep(step.id, sampled_);
    OCTAVO_CHECK(outputs.ok(), outputs.status().message().c_str());
    for (const StepOutput& o : *outputs) Take(o);
  }

  void Take(const StepOutput& o) {
    const auto at = running_.find(o.request);
    const int32_t i = at->second.request;
    ServeRecord& record = result_.records[size_t(i)];
    if (record.output_tokens++ == 0) {
      record.first_token = now_;
      record.cached_tokens = o.cached_tokens;
    } else {
      result_.gaps.Add(now_ - at->second.latest);
    }
    at->second.latest = now_;
    if (!followers_[size_t(i)].empty()) tokens_[size_t(i)].push_back(o.token);
    if (FinishReason{o.finish} == FinishReason::kNone) return;
    record.end = now_;
    result_.seconds = now_;
    running_.erase(at);
    End(i);
  }

  // Those that waited for it arrive; its tokens stay until they have taken them.
  void End(int32_t i) {
    for (int32_t follower : followers_[size_t(i)]) {
      arrivals_.push({now_ + requests_[size_t(follower)].arrival, follower});
    }
    const int32_t before = requests_[size_t(i)].after;
    if (before >= 0 && followers_[size_t(before)].size() == 1) {
      tokens_[size_t(before)] = {};
    }
    if (followers_[size_t(i)].empty()) tokens_[size_t(i)] = {};
  }

  const CostModel& cost_;
  std::span<const ServeRequest> requests_;
  ServeOptions options_;
  int32_t vocab_size_;
  VirtualClock clock_;
  engine::CoreEngine engine_;
  std::vector<std::vector<int32_t>> followers_;
  std::vector<std::vector<int32_t>> tokens_;  // of requests that wait, run or are grown from
  std::priority_queue<Arrival, std::vector<Arrival>, std::greater<>> arrivals_;
  std::unordered_map<uint64_t, Running> running_;
  std::deque<OpenStep> open_;
  std::vector<int32_t> sampled_;
  uint64_t drawn_ = 0;
  double now_ = 0;
  double device_free_ = 0;
  double next_sample_ = 0;
  ServeResult result_;
};

}  // namespace

void GapHistogram::Add(double seconds) {
  const double bucket = std::log(std::max(seconds, kFirst) / kFirst) / std::log(kBase);
  ++counts_[std::min(kBuckets - 1, size_t(bucket))];
}

Result<ServeResult> Serve(const EngineConfig& config, const CostModel& cost,
                          std::span<const ServeRequest> requests, const ServeOptions& options) {
  if (Status s = Validate(config); !s.ok()) return s;
  if (Status s = Check(requests); !s.ok()) return s;
  if (!(options.submit_seconds >= 0 && std::isfinite(options.submit_seconds))) {
    return Status::InvalidArgument(
        StrCat("submit_seconds=", options.submit_seconds, " is out of range: give 0 or more"));
  }
  if (options.lag < 0 || options.lag >= config.max_steps_in_flight) {
    return Status::InvalidArgument(
        StrCat("lag=", options.lag, " is out of range: give 0 to max_steps_in_flight - 1"));
  }
  return Server(config, cost, requests, options).Run();
}

}  // namespace octavo::sim
