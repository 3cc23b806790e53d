// Several groups of unequal blocks over one pool under random lives.
#include "doctest/doctest.h"
#include "engine/simulation.h"

namespace octavo::engine {
namespace {

using Groups = std::vector<GroupSpec>;

int32_t BlockSize(std::mt19937& random) { return 1 << Below(random, 5); }

GroupSpec Full(std::mt19937& random) { return {.block_size = BlockSize(random)}; }

GroupSpec Sliding(std::mt19937& random) {
  return {.kind = GroupKind::kSlidingWindow,
          .block_size = BlockSize(random),
          .window = 1 + Below(random, 30),
          .sink = Below(random, 3) ? 0 : Below(random, 10)};
}

GroupSpec Chunked(std::mt19937& random) {
  return {.kind = GroupKind::kChunkedLocal,
          .block_size = BlockSize(random),
          .window = 1 + Below(random, 30),
          .sink = 1 + Below(random, 10)};
}

GroupSpec State(std::mt19937& random) {
  return {.kind = GroupKind::kState, .block_size = BlockSize(random)};
}

// Equal blocks in one run of three, unequal ones otherwise.
Groups Split(std::mt19937& random, Groups groups) {
  const int32_t splits[] = {1, 2, 3, 4, 5, 11};
  if (Below(random, 3) == 0) return groups;
  for (GroupSpec& g : groups) g.split = splits[Below(random, 6)];
  return groups;
}

Groups FullAlone(std::mt19937& random) { return Split(random, {Full(random)}); }
Groups FullSliding(std::mt19937& random) { return Split(random, {Full(random), Sliding(random)}); }
Groups FullChunked(std::mt19937& random) { return Split(random, {Full(random), Chunked(random)}); }
Groups FullState(std::mt19937& random) { return Split(random, {Full(random), State(random)}); }
Groups SlidingAlone(std::mt19937& random) { return Split(random, {Sliding(random)}); }
Groups StateAlone(std::mt19937& random) { return Split(random, {State(random)}); }
Groups Mixed(std::mt19937& random) {
  return Split(random, {Sliding(random), Sliding(random), Full(random)});
}
Groups Everything(std::mt19937& random) {
  return Split(random, {State(random), Chunked(random), Full(random), Sliding(random)});
}

// Every kind of trouble, with a step in flight and without.
void RunAll(Groups (*groups)(std::mt19937&), uint32_t seed, uint32_t count) {
  RunMany({.groups = groups}, seed, count);
  RunMany({.lag = 1, .groups = groups}, seed + 100, count);
  RunMany({.lag = 1, .late = true, .groups = groups}, seed + 200, count);
  RunMany({.lag = 0, .fail_one_in = 30, .groups = groups}, seed + 300, count);
  RunMany({.lag = 1, .late = true, .fail_one_in = 30, .groups = groups}, seed + 400, count);
  RunMany({.lag = 0, .late = true, .fail_steps = true, .groups = groups}, seed + 500, count);
  RunMany({.lag = 1, .late = true, .fail_steps = true, .groups = groups}, seed + 600, count);
  RunMany({.lag = 2, .late = true, .groups = groups}, seed + 700, count);
}

// With guesses besides, which recurrent states do not take.
void RunDrafts(Groups (*groups)(std::mt19937&), uint32_t seed, uint32_t count) {
  RunMany({.drafts = true, .groups = groups}, seed, count);
  RunMany({.lag = 1, .late = true, .drafts = true, .groups = groups}, seed + 100, count);
  RunMany({.lag = 2, .fail_one_in = 60, .drafts = true, .groups = groups}, seed + 200, count);
}

constexpr uint32_t kRuns = 10;

TEST_CASE("own tokens: full attention cut into parts of parents") {
  RunAll(FullAlone, 10'000, kRuns);
}
TEST_CASE("own tokens: full attention and a sliding window") { RunAll(FullSliding, 11'000, kRuns); }
TEST_CASE("own tokens: full attention and chunks with a sink") {
  RunAll(FullChunked, 12'000, kRuns);
}
TEST_CASE("own tokens: full attention and recurrent states") { RunAll(FullState, 13'000, kRuns); }
TEST_CASE("own tokens: two sliding windows and full attention") { RunAll(Mixed, 14'000, kRuns); }
TEST_CASE("own tokens: a sliding window alone") { RunAll(SlidingAlone, 15'000, kRuns); }
TEST_CASE("own tokens: states alone") { RunAll(StateAlone, 16'000, kRuns); }
TEST_CASE("own tokens: every kind of group") { RunAll(Everything, 17'000, kRuns); }
TEST_CASE("own tokens with guesses: groups of windows, chunks and all tokens") {
  RunDrafts(FullAlone, 18'000, kRuns);
  RunDrafts(FullSliding, 18'300, kRuns);
  RunDrafts(FullChunked, 18'600, kRuns);
  RunDrafts(Mixed, 18'900, kRuns);
  RunDrafts(SlidingAlone, 19'200, kRuns);
}

}  // namespace
}  // namespace octavo::engine
