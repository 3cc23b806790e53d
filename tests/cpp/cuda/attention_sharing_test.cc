// What decode rows share (cuda/attention/sharing.h), without a GPU.
#include <algorithm>
#include <random>
#include <vector>

#include "attention/sharing.h"
#include "doctest/doctest.h"

namespace octavo::cuda {
namespace {

struct Run {
  int32_t first, rows, tokens;
  bool operator==(const Run&) const = default;
};

// The runs of rows that have `common` tokens in common with the row before each, in groups of
// `group` rows. Checks that a row is in a run if and only if it shares tiles.
std::vector<Run> FindRuns(std::vector<int32_t> common, int32_t group, int32_t multiprocessors = 0,
                          int64_t decode_tiles = 0) {
  PlanShape s;
  s.rows = static_cast<int32_t>(common.size());
  s.multiprocessors = multiprocessors;
  std::vector<int32_t> run(common.size(), -1);
  for (int32_t begin = 0; begin < s.rows; begin += group) {
    SharedRows{common.data(), run.data()}.TakeGroup(s, begin, Min(begin + group, s.rows),
                                                    decode_tiles);
  }
  std::vector<Run> runs;
  std::vector<int32_t> tiles(common.size(), 0);
  for (int32_t r = 0; r < s.rows; ++r) {
    const auto at = static_cast<size_t>(r);
    CHECK(run[at] >= 0);
    if (run[at] == 0) continue;
    REQUIRE(r + run[at] <= s.rows);
    runs.push_back({r, run[at], common[at] * kTileTokens});
    std::fill_n(tiles.begin() + r, run[at], common[at]);
  }
  CHECK(tiles == common);
  return runs;
}

// A row that shares nothing, then `rows` that share `tokens` with the row before.
std::vector<int32_t> Rows(std::initializer_list<std::pair<int, int32_t>> parts) {
  std::vector<int32_t> common;
  for (const auto& [rows, tokens] : parts) {
    common.push_back(0);
    common.insert(common.end(), static_cast<size_t>(rows), tokens);
  }
  return common;
}

TEST_CASE("rows that have enough in common form runs") {
  CHECK(FindRuns({}, 32).empty());
  CHECK(FindRuns(Rows({{2, 2048}}), 32).empty());
  CHECK(FindRuns(Rows({{3, 2048}}), 32) == std::vector<Run>{{0, 4, 2048}});
  CHECK(FindRuns(Rows({{3, 255}}), 32).empty());
  CHECK(FindRuns(Rows({{3, 300}}), 32) == std::vector<Run>{{0, 4, 288}});
  CHECK(FindRuns(Rows({{9, 512}, {1, 600}, {4, 256}}), 32) ==
        std::vector<Run>{{0, 10, 512}, {12, 5, 256}});
}

TEST_CASE("a run stays within a group, whose first row does not look back") {
  CHECK(FindRuns(Rows({{70, 320}}), 32) ==
        std::vector<Run>{{0, 32, 320}, {32, 32, 320}, {64, 7, 320}});
  CHECK(FindRuns(Rows({{33, 320}}), 32) == std::vector<Run>{{0, 32, 320}});
}

TEST_CASE("a row that would halve what a run shares begins another") {
  CHECK(FindRuns({0, 1024, 1024, 1024, 512, 512}, 32) == std::vector<Run>{{0, 6, 512}});
  CHECK(FindRuns({0, 1024, 1024, 1024, 496, 496, 496, 496}, 32) ==
        std::vector<Run>{{0, 4, 1024}, {4, 4, 496}});
}

TEST_CASE("runs of random rows share what all of their rows have") {
  for (uint64_t seed = 1; seed <= 500; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 rng(seed);
    const auto group = static_cast<int32_t>(1 + rng() % 40);
    std::vector<int32_t> common;
    for (uint64_t i = rng() % 200; i > 0; --i) {
      common.push_back(rng() % 5 == 0 ? 0 : static_cast<int32_t>(200 + rng() % 700));
    }
    int32_t end = 0;
    for (const Run& run : FindRuns(common, group)) {
      CHECK(run.first >= end);
      end = run.first + run.rows;
      CHECK(run.first / group == (end - 1) / group);
      CHECK(run.rows >= kLeastSharingRows);
      const auto first = common.begin() + run.first + 1;
      const int32_t least = *std::min_element(first, common.begin() + end);
      CHECK(run.tokens == least / kTileTokens * kTileTokens);
      CHECK(run.tokens >= kLeastSharedTokens);
    }
  }
}

TEST_CASE("a tile is taken that ends before everybody's share of decode") {
  const auto taken = [](int32_t rows, int32_t shared, int32_t own) {
    const int64_t tiles = int64_t{rows} * 8 * ((shared + own) / kTileTokens);
    return !FindRuns(Rows({{rows - 1, shared}}), 32, 132, tiles).empty();
  };
  CHECK(taken(256, 2048, 128));
  CHECK(taken(64, 2048, 128));
  CHECK_FALSE(taken(4, 2048, 128));
  CHECK_FALSE(taken(16, 8192, 128));
  CHECK(taken(16, 8192, 17000));
  PlanShape s;
  s.multiprocessors = 10;
  CHECK(WorthSharing(s, 256, kSharedKeysCost * 16 * 10));
  CHECK_FALSE(WorthSharing(s, 256, kSharedKeysCost * 16 * 10 - 1));
}

TEST_CASE("a row keeps a tile of its own, and its others are not its work") {
  CHECK(MostShared(1) == 0);
  CHECK(MostShared(16) == 0);
  CHECK(MostShared(17) == 16);
  CHECK(MostShared(2049) == 2048);
  CHECK(MayShare(1, 1));
  CHECK_FALSE(MayShare(1, 0));
  CHECK_FALSE(MayShare(0, 5));
  CHECK_FALSE(MayShare(2, 5));
  PlanShape s;
  s.kv_heads = 8;
  s.group = 4;
  s.columns = 8;
  for (const int32_t length : {257, 272, 273, 5000}) {
    const RowWork alone = PlanRow(s, 1, length), shares = PlanRow(s, 1, length, 16);
    CHECK(shares.first_tile == 16);
    CHECK(shares.tiles == alone.tiles - 16);
    CHECK(shares.tiles > 0);
    CHECK(shares.items == alone.items);
    CHECK(shares.cost() == alone.cost() - 16 * 8);
  }
}

TEST_CASE("every query of a shared tile sees all of its keys") {
  PrefillTile tile{};
  tile.tokens = 40;
  tile.position = 100;
  tile.length = 140;
  CHECK_FALSE(tile.shared());
  CHECK(tile.PositionOf(0) == 100);
  CHECK(tile.PositionOf(39) == 139);
  CHECK(tile.PositionOf(90) == 139);
  for (const int32_t row : {0, 7, 4095}) {
    tile.position = -1 - row;
    tile.length = 2048;
    CHECK(tile.shared());
    CHECK(tile.first_row() == row);
    CHECK(tile.PositionOf(0) == 2047);
    CHECK(tile.PositionOf(39) == 2047);
  }
}

}  // namespace
}  // namespace octavo::cuda
