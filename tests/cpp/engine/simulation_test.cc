// One group of full attention under random lives.
#include "engine/simulation.h"

#include "doctest/doctest.h"

namespace octavo::engine {
namespace {

TEST_CASE("requests in a crowd get the tokens that they get alone") { RunMany({}, 1, 60); }

TEST_CASE("requests in a crowd get their own tokens with steps in flight") {
  RunMany({.lag = 1}, 1001, 60);
  RunMany({.lag = 2}, 1501, 60);
}

TEST_CASE("requests get their own tokens when steps run long after they were planned") {
  RunMany({.lag = 0, .late = true}, 2001, 30);
  RunMany({.lag = 1, .late = true}, 2501, 60);
  RunMany({.lag = 2, .late = true}, 2801, 30);
}

TEST_CASE("failed rows end their own request and spoil no other") {
  RunMany({.lag = 0, .fail_one_in = 30}, 3001, 30);
  RunMany({.lag = 1, .fail_one_in = 30}, 3501, 30);
  RunMany({.lag = 2, .fail_one_in = 30}, 3801, 30);
}

TEST_CASE("failed steps leave nothing in the cache that was never written") {
  RunMany({.lag = 0, .late = true, .fail_steps = true}, 4001, 30);
  RunMany({.lag = 1, .late = true, .fail_steps = true}, 4501, 30);
  RunMany({.lag = 2, .late = true, .fail_steps = true}, 4801, 30);
}

TEST_CASE("guesses, right or wrong, change no request's tokens") {
  RunMany({.lag = 0, .drafts = true}, 5001, 60);
  RunMany({.lag = 1, .drafts = true}, 5201, 60);
  RunMany({.lag = 2, .late = true, .drafts = true}, 5401, 60);
}

TEST_CASE("failed samples and steps spoil nothing when rows carry guesses") {
  RunMany({.lag = 0, .fail_one_in = 60, .drafts = true}, 5601, 30);
  RunMany({.lag = 1, .fail_one_in = 60, .drafts = true}, 5701, 30);
  RunMany({.lag = 2, .late = true, .fail_steps = true, .drafts = true}, 5801, 30);
}

}  // namespace
}  // namespace octavo::engine
