#include "sim/fuzz/op.h"

#include <string>

#include "doctest/doctest.h"
#include "sim/fuzz/generate.h"

namespace octavo::sim {
namespace {

TEST_CASE("a scenario reads back as it was written") {
  const Scenario scenario = MakeScenario(7);
  const auto again = ScenarioFromText(ToText(scenario));
  REQUIRE(again.ok());
  CHECK(again->config_seed == scenario.config_seed);
  CHECK(again->ops == scenario.ops);
}

TEST_CASE("what is no scenario is refused with the line that is wrong") {
  const auto message = [](const std::string& text) {
    const auto scenario = ScenarioFromText(text);
    return scenario.ok() ? std::string("read") : scenario.status().message();
  };
  CHECK(message("") == "the first line is not \"octavo-sim 1\"");
  CHECK(message("octavo-sim 1\nconfig 3\n# a note\n\nbegin 0\n") == "read");
  CHECK(message("octavo-sim 1\nconfig 3\nfinnish 0\n").find("line 3 is \"finnish 0\"") == 0);
  CHECK(message("octavo-sim 1\nbegin\n").find("line 2 is \"begin\"") == 0);
  CHECK(message("octavo-sim 1\nbegin 1x\n").find("line 2 is \"begin 1x\"") == 0);
  CHECK(message("octavo-sim 1\nbegin -1\n").find("line 2 is \"begin -1\"") == 0);
  CHECK(message("octavo-sim 1\ntick 4294967295\n") == "read");
  CHECK(message("octavo-sim 1\ntick 4294967296\n").find("line 2") == 0);
  // What happens by itself cannot be asked for.
  CHECK(message("octavo-sim 1\nqueue_full 0\n").find("line 2") == 0);
  CHECK(message("octavo-sim 1\n" + std::string(10'000, 'x')).size() < 200);
}

TEST_CASE("every kind has a name of its own") {
  for (size_t i = 0; i < kNumOps; ++i) {
    CHECK_FALSE(Name(OpKind(i)).empty());
    for (size_t j = 0; j < i; ++j) CHECK(Name(OpKind(i)) != Name(OpKind(j)));
  }
}

}  // namespace
}  // namespace octavo::sim
