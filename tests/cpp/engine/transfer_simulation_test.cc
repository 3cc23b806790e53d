// Random lives beside a connector: whatever it loads late, wrongly or never, each request gets the
// tokens that it gets alone.
#include "doctest/doctest.h"
#include "engine/simulation.h"

namespace octavo::engine {
namespace {

using Groups = std::vector<GroupSpec>;

Groups One(std::mt19937& random) { return {{.block_size = 1 << Below(random, 4)}}; }

Groups Window(std::mt19937& random) {
  return {{.block_size = 1 << Below(random, 4), .split = 1 + Below(random, 3)},
          {.kind = GroupKind::kSlidingWindow,
           .block_size = 1 << Below(random, 4),
           .window = 1 + Below(random, 30),
           .sink = Below(random, 3) ? 0 : Below(random, 10),
           .split = 1 + Below(random, 3)}};
}

Groups States(std::mt19937& random) {
  return {{.block_size = 1 << Below(random, 4)},
          {.kind = GroupKind::kState, .block_size = 1 << Below(random, 4), .split = 2}};
}

Groups Everything(std::mt19937& random) {
  Groups groups = Window(random);
  groups.push_back({.kind = GroupKind::kChunkedLocal,
                    .block_size = 1 << Below(random, 4),
                    .window = 1 + Below(random, 30)});
  groups.push_back({.kind = GroupKind::kState, .block_size = 1 << Below(random, 4)});
  return groups;
}

void RunTiers(bool slow_copies, uint32_t seed, uint32_t count) {
  for (auto groups : {One, Window, States, Everything}) {
    SimulationOptions options{.groups = groups, .host_blocks = 20, .slow_copies = slow_copies};
    RunMany(options, seed, count);
    options.lag = 1;
    options.late = slow_copies;
    RunMany(options, seed + 100, count);
    seed += 1000;
  }
}

void RunAll(const Trouble& trouble, uint32_t seed, uint32_t count) {
  for (auto groups : {One, Window, States, Everything}) {
    SimulationOptions options{.groups = groups, .connector = true, .trouble = trouble};
    RunMany(options, seed, count);
    options.lag = 1;
    RunMany(options, seed + 100, count);
    options.late = true;
    RunMany(options, seed + 200, count);
    seed += 1000;
  }
}

TEST_CASE("requests get their own tokens while prefixes are loaded and saved") {
  RunAll({}, 50'000, 8);
}
TEST_CASE("a load that failed spoils nobody's tokens") { RunAll({.failures = true}, 60'000, 8); }
TEST_CASE("reports that never come keep nobody waiting for ever") {
  RunAll({.failures = true, .losses = true}, 70'000, 8);
}
TEST_CASE("the engine outlives its connector") {
  RunAll({.failures = true, .losses = true, .death = true}, 80'000, 8);
}
TEST_CASE("requests get their own tokens from a host tier") { RunTiers(false, 95'000, 10); }
TEST_CASE("requests get their own tokens from a host tier that copies late") {
  RunTiers(true, 99'000, 10);
}
TEST_CASE("failed steps and rows leave nothing wrong with a connector") {
  SimulationOptions options{.lag = 1, .late = true, .fail_steps = true, .groups = Window};
  options.connector = true;
  options.trouble.failures = true;
  RunMany(options, 90'000, 10);
  options.fail_steps = false;
  options.fail_one_in = 30;
  RunMany(options, 90'100, 10);
}

}  // namespace
}  // namespace octavo::engine
