// The attention schedule (cuda/attention/schedule.h) against brute force, without a GPU: what the
// plan kernel does in parallel, done here in order with the same functions.
#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "attention/sharing.h"
#include "doctest/doctest.h"

namespace octavo::cuda {
namespace {

struct Rows {
  std::vector<int32_t> queries, length;
  std::vector<int32_t> shared = {};  // tiles in front of a row's own; none: 0 each
};

// The plan of one step: the line of cuts and what the rows begin with.
struct Plan {
  PlanShape shape;
  Rows rows;
  std::vector<int64_t> cost = {0};
  std::vector<int32_t> units = {0};
  std::vector<int32_t> unit, tile, interior;
  CutLine line{};
  LineCuts cuts{};

  RowWork Work(size_t r) const {
    const int32_t shared = rows.shared.empty() ? 0 : rows.shared[r];
    return PlanRow(shape, rows.queries[r], rows.length[r], shared);
  }
};

Plan MakePlan(const PlanShape& shape, const Rows& rows) {
  Plan p;
  p.shape = shape;
  p.rows = rows;
  p.shape.rows = static_cast<int32_t>(rows.length.size());
  for (size_t r = 0; r < rows.length.size(); ++r) {
    p.cost.push_back(p.cost.back() + p.Work(r).cost());
    p.units.push_back(p.units.back() + p.Work(r).units());
  }
  const int64_t cost = p.cost.back();
  int32_t longest = 0;
  for (size_t r = 0; r < rows.length.size(); ++r) {
    longest = std::max(longest, p.Work(r).split_tiles);
  }
  p.cuts = ChooseCuts(p.shape, cost, p.units.back(), longest);
  const int32_t used = p.cuts.used;
  for (int32_t c = 0; c <= shape.ctas; ++c) {
    Cut cut{p.units.back(), 0};
    if (p.cuts.dealt > 0 && c < shape.ctas) {
      cut.unit = c;
    } else if (c < used && p.units.back() > 0) {
      const int64_t position = cost * c / used;
      const int32_t row = FindOwner(p.cost.data(), p.shape.rows, position);
      cut = CutRow(p.shape, p.Work(static_cast<size_t>(row)),
                   position - p.cost[static_cast<size_t>(row)], CutGrain(p.shape, cost / used),
                   p.cuts.whole);
      cut.unit += p.units[static_cast<size_t>(row)];
    }
    p.unit.push_back(cut.unit);
    p.tile.push_back(cut.tile);
  }
  p.interior.assign(p.unit.size(), 0);
  p.line = {p.unit.data(), p.tile.data(), p.interior.data(), shape.ctas};
  for (int32_t c = 1; c <= shape.ctas; ++c) {
    p.interior[static_cast<size_t>(c)] =
        p.interior[static_cast<size_t>(c) - 1] + (p.line.opens(c) ? 1 : 0);
  }
  return p;
}

// Every tile of every unit once, in order, by the CTA that owns the segment; slots without clashes.
void CheckPlan(const Plan& p) {
  const int32_t segments = p.line.segment(p.shape.ctas);
  std::vector<int32_t> done(static_cast<size_t>(p.units.back()), 0);
  std::map<int32_t, int32_t> arrived, expected;
  std::set<int32_t> slots;
  bool good = p.unit.front() == 0 && p.tile.front() == 0;
  int32_t cta = 0;
  for (int32_t i = 0; i < segments; ++i) {
    const SegmentPart part = FindSegment(p.line, i);
    good = good && part.cta >= cta && p.line.segment(part.cta) <= i &&
           i < p.line.segment(part.cta + 1);
    cta = part.cta;
    const int32_t row = FindOwner(p.units.data(), p.shape.rows, part.unit);
    const RowWork work = p.Work(static_cast<size_t>(row));
    const int32_t split = (part.unit - p.units[static_cast<size_t>(row)]) % work.splits;
    const int32_t end = part.end < 0 ? work.unit_tiles(split) : part.end;
    good = good && part.begin == done[static_cast<size_t>(part.unit)] && end > part.begin;
    done[static_cast<size_t>(part.unit)] = end;
    good = good && (part.splits > 1) == (part.slot >= 0);
    if (p.cuts.whole) good = good && part.splits == 1;
    if (p.cuts.dealt > 0) good = good && part.unit == i;
    if (part.slot < 0) continue;
    good = good && part.slot == part.group_slot + arrived[part.group_slot]++;
    good = good && part.slot < 2 * p.shape.ctas && slots.insert(part.slot).second;
    expected[part.group_slot] = part.splits;
  }
  CHECK(good);
  CHECK(arrived == expected);
  for (int32_t r = 0; r < p.shape.rows; ++r) {
    const RowWork work = p.Work(static_cast<size_t>(r));
    for (int32_t u = 0; u < work.units(); ++u) {
      const auto unit = static_cast<size_t>(p.units[static_cast<size_t>(r)] + u);
      good = good && done[unit] == work.unit_tiles(u % work.splits);
    }
  }
  CHECK(good);
}

PlanShape Shape(int32_t ctas, int32_t warps) {
  PlanShape s;
  s.kv_heads = 8;
  s.group = 4;
  s.columns = 8;
  s.ctas = ctas;
  s.warps = warps;
  s.deals = 1;
  return s;
}

// The longest share of a CTA, in tiles.
int32_t LongestShare(const Plan& p) {
  std::vector<int32_t> tiles(static_cast<size_t>(p.shape.ctas), 0);
  for (int32_t i = 0; i < p.line.segment(p.shape.ctas); ++i) {
    const SegmentPart part = FindSegment(p.line, i);
    const RowWork work =
        p.Work(static_cast<size_t>(FindOwner(p.units.data(), p.shape.rows, part.unit)));
    tiles[static_cast<size_t>(part.cta)] +=
        (part.end < 0 ? work.unit_tiles(0) : part.end) - part.begin;
  }
  return *std::max_element(tiles.begin(), tiles.end());
}

TEST_CASE("every tile of random rows is in one segment, and slots do not clash") {
  for (uint64_t seed = 1; seed <= 600; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 rng(seed);
    PlanShape s = Shape(1 + static_cast<int32_t>(rng() % 264), rng() % 2 == 0 ? 4 : 8);
    s.kv_heads = 1 + static_cast<int32_t>(rng() % 8);
    s.group = 1 + static_cast<int32_t>(rng() % 20);
    s.columns = rng() % 2 == 0 ? 8 : 16;
    s.decode_queries = 1 + static_cast<int32_t>(rng() % 4);
    s.window = rng() % 3 == 0 ? static_cast<int32_t>(rng() % 999) - 499 : 0;
    s.fixed_split = rng() % 3 == 0 ? 1 : 0;
    s.prefill_tokens = 32;
    s.deals = static_cast<int32_t>(seed % 4 != 0);
    Rows rows;
    const uint64_t longest = rng() % 3 == 0 ? 40 : 6000;
    for (uint64_t i = 1 + rng() % 40; i > 0; --i) {
      rows.length.push_back(rng() % 6 == 0 ? 0 : 1 + static_cast<int32_t>(rng() % longest));
      rows.queries.push_back(static_cast<int32_t>(rng() % 6));
      const bool shares = seed % 2 == 0 && s.window == 0 && s.fixed_split == 0 && rng() % 2 == 0 &&
                          MayShare(rows.queries.back(), rows.length.back());
      rows.shared.push_back(shares ? MostShared(rows.length.back()) / kTileTokens : 0);
    }
    CheckPlan(MakePlan(s, rows));
  }
}

TEST_CASE("many units of much the same length are dealt, a few of them stay whole") {
  const auto cuts_of = [](const Rows& rows, int32_t ctas = 264) {
    const Plan p = MakePlan(Shape(ctas, 4), rows);
    CheckPlan(p);
    return p.cuts;
  };
  const auto ones = [](size_t n) { return std::vector<int32_t>(n, 1); };
  const auto rows_of = [&](size_t n, int32_t length) {
    return Rows{ones(n), std::vector<int32_t>(n, length)};
  };
  CHECK(cuts_of(rows_of(256, 576)).dealt == 256 * 8 - 264);
  CHECK(cuts_of(rows_of(83, 576)).dealt == 83 * 8 - 264);
  CHECK(cuts_of(rows_of(256, 512)).dealt == 256 * 8 - 264);
  CHECK(cuts_of(rows_of(256, 496)).dealt == 0);
  CHECK(cuts_of(rows_of(256, 496)).whole);
  CHECK(cuts_of(rows_of(82, 576)).dealt == 0);
  CHECK(cuts_of(rows_of(82, 576)).whole);
  CHECK(cuts_of(rows_of(21, 576)).whole);
  CHECK_FALSE(cuts_of(rows_of(20, 576)).whole);
  CHECK_FALSE(cuts_of(rows_of(65, 1040)).whole);
  // A row whose units are much longer than a share has to be cut.
  Rows skewed = rows_of(255, 500);
  skewed.queries.push_back(1);
  skewed.length.push_back(32768);
  const LineCuts cut = cuts_of(skewed);
  CHECK(cut.dealt == 0);
  CHECK_FALSE(cut.whole);
}

TEST_CASE("rows of equal length share the CTAs evenly") {
  for (const int32_t rows : {1, 8}) {
    for (const int32_t length : {8192, 32768}) {
      CAPTURE(rows);
      CAPTURE(length);
      const auto n = static_cast<size_t>(rows);
      const Plan p =
          MakePlan(Shape(132, 8), {std::vector<int32_t>(n, 1), std::vector<int32_t>(n, length)});
      CheckPlan(p);
      const int32_t even = rows * 8 * (length / kTileTokens) / 132;
      CHECK(LongestShare(p) <= even + std::max(8, even / 16));
    }
  }
}

TEST_CASE("a short row is cut into whole rounds") {
  const Plan p = MakePlan(Shape(132, 8), {{1}, {1024}});
  CheckPlan(p);
  CHECK(LongestShare(p) == 8);
  CHECK(p.line.segment(132) == 64);
}

TEST_CASE("a step without rows of its kind has no segments") {
  PlanShape s = Shape(132, 8);
  s.prefill_tokens = 32;
  const Plan p = MakePlan(s, {{0, 7, 1, 1}, {5, 70, 0, 0}});
  CHECK(p.line.segment(132) == 0);
  CHECK(p.Work(1).prefill_tiles == 1);
  CHECK(p.Work(2).prefill_tiles == 0);
}

TEST_CASE("fixed splits depend on the row alone") {
  PlanShape s = Shape(132, 4);
  s.fixed_split = 1;
  const RowWork alone = PlanRow(s, 1, 5000);
  s.ctas = 264;
  s.rows = 256;
  const RowWork crowd = PlanRow(s, 1, 5000);
  CHECK(alone.splits == 5);
  CHECK(alone.split_tiles == kFixedSplitTiles);
  CHECK(crowd.splits == alone.splits);
  CHECK(PlanRow(s, 1, 1 << 20).splits == kMaxFixedSplits);
}

TEST_CASE("a window or a chunk leaves out the tiles that no query sees") {
  PlanShape s = Shape(132, 8);
  s.decode_queries = 4;
  for (const int32_t length : {1, 20, 500, 4096}) {
    for (const int32_t queries : {1, 3}) {
      for (const int32_t window : {1, 16, 17, 100, 5000, -1, -16, -17, -100, -5000}) {
        if (queries > length) continue;
        s.window = window;
        const RowWork r = PlanRow(s, queries, length);
        for (int32_t t = 0; t * kTileTokens < length; ++t) {
          bool seen = false;
          for (int32_t q = length - queries; q < length; ++q) {
            for (int32_t k = t * kTileTokens; k < (t + 1) * kTileTokens; ++k) {
              seen = seen || Sees(q, k, window);
            }
          }
          CHECK(seen == (t >= r.first_tile && t < r.first_tile + r.tiles));
        }
      }
    }
  }
}

TEST_CASE("a query sees what its window or its chunk holds up to itself") {
  CHECK(FirstSeen(0, 0) == 0);
  CHECK(FirstSeen(70, 0) == 0);
  CHECK(FirstSeen(3, 4) == 0);
  CHECK(FirstSeen(4, 4) == 1);
  CHECK(FirstSeen(7, -8) == 0);
  CHECK(FirstSeen(8, -8) == 8);
  CHECK(FirstSeen(23, -8) == 16);
  CHECK_FALSE(Sees(8, 7, -8));
  CHECK(Sees(8, 8, -8));
}

TEST_CASE("tiles without a mask are those that every query sees whole") {
  for (const int32_t window : {0, 1, 20, 64, -1, -20, -32}) {
    for (int32_t first = 0; first < 90; first += 7) {
      for (int32_t key = 0; key < 96; key += 16) {
        bool whole = true;
        for (int32_t q = first; q < first + 4; ++q) {
          for (int32_t k = key; k < key + 16; ++k) whole = whole && Sees(q, k, window);
        }
        CHECK(NeedsMask(first, first + 3, key, 16, window) == !whole);
      }
    }
  }
}

}  // namespace
}  // namespace octavo::cuda
