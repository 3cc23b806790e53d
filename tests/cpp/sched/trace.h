// Traces: scheduler behaviour as data. A file of tests/data holds cases; a case submits requests,
// steps, and says what each step must plan. tests/data/README.md describes the language.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/harness.h"

namespace octavo::sched {

// Runs the cases of one file, line by line.
class TraceRunner {
 public:
  // What went wrong, each with file and line; empty: everything is as written.
  std::vector<std::string> RunFile(const std::string& path);
  int cases() const { return cases_; }

 private:
  using Words = std::vector<std::string>;
  struct Named {
    RequestId id{};
    std::vector<int32_t> prompt;
  };

  void StartCase();
  // One function a verb; each returns what is wrong, or nothing.
  std::string Run(const Words& words);
  std::string Configure(const Words& words);
  std::string Submit(const Words& words);
  std::string Plan(const Words& words);
  std::string Finish(const Words& words);
  std::string SetDrafts(const Words& words);
  std::string Expect(const Words& words);
  std::string ExpectOf(const std::string& name, const std::string& field, const std::string& want);
  std::string End(const Words& words);

  engine::Harness& harness();
  std::vector<int32_t> TokensLike(const std::string& what);
  std::string NameOf(uint64_t request) const;
  std::string Describe(const StepPlan& plan);

  EngineConfig config_;
  std::unique_ptr<engine::Harness> harness_;
  std::map<std::string, Named> named_;
  std::vector<StepPlan> open_;
  int cases_ = 0;
};

}  // namespace octavo::sched
