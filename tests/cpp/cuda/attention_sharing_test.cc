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

// A shape of 8 KV heads on an H200, whose prefill kernel takes 128 keys at a time.
PlanShape Shape(size_t rows) {
  PlanShape s;
  s.rows = static_cast<int32_t>(rows);
  s.kv_heads = 8;
  s.group = 4;
  s.columns = 8;
  s.shared_keys = 128;
  s.multiprocessors = 132;
  return s;
}

// The runs of rows that have `common` tokens in common with the row before each, in groups of
// `group` rows; only those that are worth it, if there are any decode tiles. Checks that a row is
// in a run if and only if it shares tiles.
std::vector<Run> FindRuns(std::vector<int32_t> common, int32_t group, int64_t decode_tiles = 0) {
  PlanShape s = Shape(common.size());
  s.share_all = decode_tiles == 0 ? 1 : 0;
  std::vector<int32_t> run(common.size(), -1);
  int32_t found = 0;
  const SharedRows rows{common.data(), run.data(), &found};
  for (int32_t begin = 0; begin < s.rows; begin += group) {
    found += rows.FindRuns(begin, Min(begin + group, s.rows));
  }
  CHECK(found == std::count_if(run.begin(), run.end(), [](int32_t n) { return n > 0; }));
  for (int32_t r = 0; r < s.rows; ++r) rows.Judge(s, r, decode_tiles);
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

TEST_CASE("a run is taken whose tiles end before everybody's share of decode") {
  const auto taken = [](int32_t rows, int32_t shared, int32_t own) {
    const int64_t tiles = int64_t{rows} * 8 * ((shared + own) / kTileTokens);
    return !FindRuns(Rows({{rows - 1, shared}}), 32, tiles).empty();
  };
  CHECK(taken(256, 2048, 128));
  CHECK(taken(64, 2048, 128));
  CHECK(taken(16, 8192, 128));
  CHECK(taken(16, 2048, 128));
  CHECK_FALSE(taken(4, 2048, 128));
  CHECK(taken(4, 2048, 4096));
  CHECK_FALSE(taken(16, 256, 16));
  PlanShape s = Shape(9);
  const int64_t least = (kSharedKeysCost * 16 + kSharedTileCost) * 132;
  CHECK(WorthSharing(s, 256, least));
  CHECK_FALSE(WorthSharing(s, 256, least - 1));
  s.share_all = 1;
  CHECK(WorthSharing(s, 256, 0));
}

TEST_CASE("runs are cut into parts until every multiprocessor has a tile") {
  const PlanShape s = Shape(64);
  CHECK(MostParts(s, 1) == 16);
  CHECK(MostParts(s, 2) == 8);
  CHECK(MostParts(s, 8) == 2);
  CHECK(MostParts(s, 9) == 1);
  CHECK(MostParts(s, 900) == 1);
  CHECK(MostParts(Shape(257), 1) == 3);  // memory
  CHECK(MostParts(Shape(4000), 1) == 1);
  for (int32_t tokens = 256; tokens < 9000; tokens += 176) {
    for (const int32_t keys : {80, 128}) {
      for (int32_t most = 1; most <= kMostParts; ++most) {
        PlanShape shape = s;
        shape.shared_keys = keys;
        const int32_t part = PartTokens(shape, tokens, most), parts = CeilDiv(tokens, part);
        CHECK(part % keys == 0);
        CHECK(parts <= most);
        CHECK((parts == 1 || tokens >= parts * kLeastPartTokens));
        CHECK((part - keys) * Min(most, tokens / kLeastPartTokens) < tokens);
      }
    }
  }
}

TEST_CASE("tiles of parts that fill the device fit beside those of rows") {
  for (int32_t runs = 1; runs < 140; ++runs) {
    const int32_t parts = MostParts(Shape(4 * 140), runs);
    CHECK((parts == 1 || parts * runs * 8 <= 132));
    CHECK(parts * 4 * 140 <= SharedStates(Shape(4 * 140)));
  }
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
  const PlanShape s = Shape(1);
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
  for (const int32_t state : {0, 7, 65000}) {
    tile.position = -1 - state;
    tile.length = 2048;
    CHECK(tile.shared());
    CHECK(tile.first_state() == state);
    CHECK(tile.PositionOf(0) == 2047);
    CHECK(tile.PositionOf(39) == 2047);
  }
}

TEST_CASE("a segment says which row shares how many parts") {
  Segment g{};
  for (const int32_t row : {0, 5, kMaxPlanRows - 1}) {
    for (const int32_t parts : {1, kMostParts}) {
      g.shared = Segment::Shared(row, parts);
      CHECK(g.shared >= 0);
      CHECK(g.shared_row() == row);
      CHECK(g.shared_parts() == parts);
    }
  }
}

}  // namespace
}  // namespace octavo::cuda
