// One group of full attention under random lives.
#include "engine/simulation.h"

#include "doctest/doctest.h"

namespace octavo::engine {
namespace {

TEST_CASE("requests in a crowd get the tokens that they get alone") { RunMany({}, 1, 60); }

TEST_CASE("requests in a crowd get their own tokens with a step in flight") {
  RunMany({.lag = 1}, 1001, 60);
}

TEST_CASE("requests get their own tokens when steps run long after they were planned") {
  RunMany({.lag = 0, .late = true}, 2001, 30);
  RunMany({.lag = 1, .late = true}, 2501, 60);
}

TEST_CASE("failed rows end their own request and spoil no other") {
  RunMany({.lag = 0, .fail_one_in = 30}, 3001, 30);
  RunMany({.lag = 1, .fail_one_in = 30}, 3501, 30);
}

TEST_CASE("failed steps leave nothing in the cache that was never written") {
  RunMany({.lag = 0, .late = true, .fail_steps = true}, 4001, 30);
  RunMany({.lag = 1, .late = true, .fail_steps = true}, 4501, 30);
}

}  // namespace
}  // namespace octavo::engine
