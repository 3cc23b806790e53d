#include "sched/trace.h"

#include <algorithm>
#include <filesystem>

#include "doctest/doctest.h"

namespace octavo::sched {
namespace {

TEST_CASE("the scheduler does what the traces say") {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(OCTAVO_TEST_DATA)) {
    if (entry.path().extension() == ".trace") files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  REQUIRE(!files.empty());
  for (const std::string& file : files) {
    TraceRunner runner;
    for (const std::string& wrong : runner.RunFile(file)) FAIL_CHECK(wrong);
    CHECK_MESSAGE(runner.cases() > 0, file << " has no case");
  }
}

}  // namespace
}  // namespace octavo::sched
