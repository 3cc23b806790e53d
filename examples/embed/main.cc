// Drives Octavo's engine from C++ with an executor of our own and checks every token it gives.
//
// The pool is too small for all requests at once, so some are preempted and computed again; half of
// them share a prefix, so blocks are reused; requests arrive while others run; one is aborted. None
// of that may show in the output. Prints one line and returns 0, or says what differed.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "hash_executor.h"
#include "octavo/config.h"
#include "octavo/engine.h"
#include "octavo/sampling_params.h"

namespace {

constexpr int kNumRequests = 200;
constexpr int kArrivalsPerStep = 3;
constexpr int kMaxSteps = 100'000;

struct Request {
  std::vector<int32_t> prompt;
  int32_t max_tokens = 0;
  std::vector<int32_t> output;
  bool finished = false;
};

octavo::EngineConfig MakeConfig() {
  octavo::EngineConfig config;
  config.num_blocks = 97;  // 96 blocks of 16 tokens; the requests want about ten times that
  config.block_size = 16;
  config.vocab_size = 32'000;
  config.max_model_len = 512;
  config.max_num_seqs = 32;
  config.max_num_batched_tokens = 256;
  config.full_prompt_gate = false;  // admit early, so that preemption happens
  config.sub_block_hits = true;     // our executor makes the copies
  config.hash_seed = 1;
  return config;
}

std::vector<Request> MakeRequests(const octavo::EngineConfig& config) {
  std::mt19937 random(2024);
  const auto tokens = [&](int count) {
    std::vector<int32_t> out(static_cast<size_t>(count));
    for (int32_t& token : out) {
      token = static_cast<int32_t>(random() % static_cast<uint32_t>(config.vocab_size));
    }
    return out;
  };
  const std::vector<int32_t> shared = tokens(100);

  std::vector<Request> requests(kNumRequests);
  for (size_t i = 0; i < requests.size(); ++i) {
    Request& request = requests[i];
    if (i % 2 == 0) request.prompt = shared;
    const std::vector<int32_t> own = tokens(1 + static_cast<int>(random() % 150));
    request.prompt.insert(request.prompt.end(), own.begin(), own.end());
    request.max_tokens = 1 + static_cast<int32_t>(random() % 100);
  }
  return requests;
}

bool Fail(const std::string& what) {
  std::fprintf(stderr, "embed: %s\n", what.c_str());
  return false;
}

class Driver {
 public:
  Driver(std::unique_ptr<octavo::Engine> engine, std::vector<Request> requests)
      : engine_(std::move(engine)), executor_(engine_->config()), requests_(std::move(requests)) {}

  bool Run() {
    for (int step = 0; step < kMaxSteps; ++step) {
      if (!Submit() || !Step()) return false;
      if (step == 20 && !AbortOne()) return false;
      if (next_ == requests_.size() && !engine_->HasUnfinished()) return Check();
    }
    return Fail("the engine did not come to an end");
  }

 private:
  bool Submit() {
    for (int i = 0; i < kArrivalsPerStep && next_ < requests_.size(); ++i, ++next_) {
      octavo::SamplingParams params;
      params.temperature = 0.0f;
      params.max_tokens = requests_[next_].max_tokens;
      const auto id = engine_->AddRequest(requests_[next_].prompt, params);
      if (!id.ok()) return Fail(id.status().message());
      of_id_[octavo::Value(*id)] = next_;
    }
    return true;
  }

  bool Step() {
    const auto outputs = engine_->Step(executor_);
    if (!outputs.ok()) return Fail(outputs.status().message());
    for (const octavo::StepOutput& output : *outputs) {
      const auto found = of_id_.find(output.request);
      if (found == of_id_.end()) return Fail("an output of a request that has ended");
      Request& request = requests_[found->second];
      if (output.token >= 0) request.output.push_back(output.token);
      const auto reason = static_cast<octavo::FinishReason>(output.finish);
      if (reason == octavo::FinishReason::kNone) continue;
      if (reason != octavo::FinishReason::kLength)
        return Fail("a request ended for a wrong reason");
      request.finished = true;
      of_id_.erase(found);
    }
    return true;
  }

  bool AbortOne() {
    if (of_id_.empty()) return Fail("nothing to abort");
    const auto last = std::prev(of_id_.end());
    const octavo::Status status = engine_->Abort(octavo::RequestId{last->first});
    if (!status.ok()) return Fail(status.message());
    aborted_ = last->second;
    of_id_.erase(last);
    return true;
  }

  bool Check() const {
    for (size_t i = 0; i < requests_.size(); ++i) {
      const Request& request = requests_[i];
      std::vector<int32_t> expected = executor_.Expect(request.prompt, request.max_tokens);
      if (i == aborted_) expected.resize(std::min(expected.size(), request.output.size()));
      if (request.finished == (i == aborted_) || request.output != expected) {
        return Fail("request " + std::to_string(i) + " differs from what it says when alone");
      }
    }
    const octavo::EngineStats stats = engine_->Stats();
    if (stats.preemptions == 0) return Fail("nothing was preempted: the pool is too large");
    if (stats.prefix_hits == 0) return Fail("no prefix was found in the cache");
    if (stats.free_blocks != stats.total_blocks) return Fail("blocks are missing from the pool");
    std::printf(
        "embed: %zu requests right, %llu steps, %llu preemptions, %llu of %llu prompt tokens from "
        "the prefix cache\n",
        requests_.size(), static_cast<unsigned long long>(stats.steps),
        static_cast<unsigned long long>(stats.preemptions),
        static_cast<unsigned long long>(stats.prefix_hits),
        static_cast<unsigned long long>(stats.prefix_queries));
    return true;
  }

  std::unique_ptr<octavo::Engine> engine_;
  HashExecutor executor_;
  std::vector<Request> requests_;
  std::map<uint64_t, size_t> of_id_;  // what runs, by the engine's id
  size_t next_ = 0;                   // the first request not submitted yet
  size_t aborted_ = static_cast<size_t>(-1);
};

}  // namespace

int main() {
  const octavo::EngineConfig config = MakeConfig();
  auto engine = octavo::Engine::Create(config);
  if (!engine.ok()) {
    std::fprintf(stderr, "embed: %s\n", engine.status().message().c_str());
    return 1;
  }
  Driver driver(std::move(*engine), MakeRequests(config));
  return driver.Run() ? 0 : 1;
}
