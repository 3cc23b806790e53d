// Paged attention of decode rows that share a prefix, beside float64 and beside the same rows
// apart. Needs a CUDA device with the wgmma prefill kernel; elsewhere nothing is shared.
#include <map>
#include <tuple>

#include "attention/sharing.h"
#include "attention_problem.h"
#include "backend.h"

namespace octavo::cuda {
namespace {

template <typename T>
T OneOf(std::mt19937_64& rng, std::initializer_list<T> values) {
  return values.begin()[rng() % values.size()];
}

using Run = std::tuple<int32_t, int32_t, int32_t>;  // first row, rows, tokens

// What rows r - 1 and r have in common by the host's table.
int32_t CommonTokens(const Instance& x, size_t r) {
  const Problem& p = x.problem;
  const auto queries = [&](size_t row) { return x.query_start[row + 1] - x.query_start[row]; };
  const int32_t shorter = std::min(x.seq_len[r - 1], x.seq_len[r]);
  if (shorter == 0 || queries(r - 1) != 1 || queries(r) != 1) return 0;
  int32_t common = 0;
  while (common < shorter - 1) {
    const auto block = static_cast<int32_t>(common / p.block_size);
    const auto id = [&](size_t row) {
      return x.table[size_t(x.row_slot[row] * x.max_blocks + block)];
    };
    if (id(r - 1) != id(r)) break;
    ++common;
  }
  return common / kTileTokens * kTileTokens;
}

// What the rows of an instance share, whatever it is worth.
struct Expected {
  explicit Expected(const Instance& x)
      : shape(x.Resolve().shape), tiles(x.seq_len.size(), 0), run(tiles) {
    for (size_t r = 1; r < tiles.size(); ++r) tiles[r] = CommonTokens(x, r);
    for (int32_t begin = 0; begin < shape.rows; begin += shape.prefill_tokens) {
      runs += rows().FindRuns(begin, std::min(begin + shape.prefill_tokens, shape.rows));
    }
  }
  SharedRows rows() { return {tiles.data(), run.data(), &runs}; }
  std::vector<Run> Runs() const {
    std::vector<Run> found;
    for (size_t r = 0; r < run.size(); ++r) {
      if (run[r] > 0) found.emplace_back(int32_t(r), run[r], tiles[r] * kTileTokens);
    }
    return found;
  }

  PlanShape shape;
  std::vector<int32_t> tiles, run;
  int32_t runs = 0;
};

// The runs of the device's plan of the last run, whose parts have to be those of sharing.h.
std::vector<Run> PlannedRuns(const Instance& x) {
  Expected expected(x);
  const PlanShape& s = expected.shape;
  std::map<int32_t, std::vector<PrefillTile>> parts;  // by first row
  for (const PrefillTile& tile : x.SharedTiles())
    parts[tile.first_state() % s.rows].push_back(tile);
  std::vector<Run> runs;
  for (auto& [row, tiles] : parts) {
    std::sort(tiles.begin(), tiles.end(), [](const PrefillTile& a, const PrefillTile& b) {
      return a.first_state() < b.first_state();
    });
    int32_t end = 0;
    for (size_t i = 0; i < tiles.size(); ++i) {
      CHECK(tiles[i].first_state() / s.rows == int32_t(i));
      CHECK(tiles[i].first_token == x.query_start[size_t(row)]);
      CHECK(tiles[i].row_slot == x.row_slot[size_t(row)]);
      CHECK(tiles[i].tokens == tiles[0].tokens);
      CHECK(tiles[i].first_keys * s.shared_keys == end);
      CHECK(tiles[i].length > end);
      end = tiles[i].length;
    }
    CHECK(int32_t(tiles.size()) == expected.rows().PartsOf(s, row));
    runs.emplace_back(row, tiles[0].tokens, end);
  }
  return runs;
}

// Runs a problem with and without sharing; returns the runs that were shared.
std::vector<Run> Check(const Problem& p) {
  CAPTURE(p.seed);
  CAPTURE(p.head_dim);
  CAPTURE(p.group);
  CAPTURE(p.block_size);
  CAPTURE(p.rows.size());
  CAPTURE(static_cast<int>(p.dtype));
  Instance instance(p);
  instance.Run();
  instance.CheckOut(instance.Answer(), Tolerance(p.dtype));
  const std::vector<Run> planned = PlannedRuns(instance);
  CHECK(planned == Expected(instance).Runs());
  Problem apart_problem = p;
  apart_problem.options.share_prefixes = false;
  Instance apart(apart_problem);
  apart.Run();
  CHECK(apart.SharedTiles().empty());
  std::vector<double> without;
  for (int64_t i = 0; i < p.tokens() * p.kv_heads * p.group; ++i) {
    const int64_t heads = p.kv_heads * p.group, at = apart.out.Offset({i / heads, i % heads, 0});
    for (int64_t d = 0; d < p.head_dim; ++d) without.push_back(apart.out.Get(at + d));
  }
  instance.CheckOut(without, Tolerance(p.dtype));
  return planned;
}

Problem Sharing(uint64_t seed) {
  Problem p;
  p.seed = seed;
  p.options.share_prefixes = true;
  p.prefill = PrefillKernel::kWgmma;
  p.sharing = PrefixSharing::kAll;
  return p;
}

// Appends rows of a family that share about `tokens`, some of them more, and a few that are shorter
// than that.
void AddFamily(std::mt19937_64& rng, int32_t family, int32_t rows, int32_t tokens, Problem* p) {
  const auto blocks = static_cast<int32_t>(tokens / p->block_size);
  for (int32_t i = 0; i < rows; ++i) {
    Row r{1, 0, family, blocks};
    if (rng() % 4 == 0) r.family_blocks += static_cast<int32_t>(rng() % 4);
    if (rng() % 8 == 0) r.family_blocks /= 2;
    const auto shared = static_cast<int32_t>(r.family_blocks * p->block_size);
    r.length = shared + OneOf<int32_t>(rng, {1, 2, 15, 16, 17, 40, 100, 1 + int32_t(rng() % 300)});
    if (rng() % 12 == 0) r.length = 1 + static_cast<int32_t>(rng() % uint64_t(r.length));
    p->rows.push_back(r);
  }
}

Problem RandomSharing(uint64_t seed) {
  Problem p = Sharing(seed);
  std::mt19937_64 rng(seed * 17 + 9);
  p.dtype = OneOf(rng, {DType::kBF16, DType::kF16});
  p.head_dim = OneOf<int64_t>(rng, {64, 128, 256});
  p.kv_heads = OneOf<int64_t>(rng, {1, 2});
  p.group = OneOf<int64_t>(rng, {1, 2, 3, 4, 8, 8, 12, 16});
  p.block_size = OneOf<int64_t>(rng, {16, 32, 48});
  p.soft_cap = OneOf(rng, {0.0f, 0.0f, 20.0f});
  p.sinks = rng() % 3 == 0;
  p.gap = OneOf<int64_t>(rng, {0, 8});
  p.options.decode_queries = OneOf<int64_t>(rng, {1, 1, 3});
  for (int32_t family = 1; family <= 3; ++family) {
    const auto rows = static_cast<int32_t>(3 + rng() % Size(40u, 14u));
    const auto tokens = static_cast<int32_t>(200 + rng() % Size(1200u, 420u));
    AddFamily(rng, family, rows, tokens, &p);
    switch (rng() % 4) {
      case 0:
        p.rows.push_back({30, 250});
        break;
      case 1:
        p.rows.push_back({2, 270, family, 10});
        break;
      case 2:
        p.rows.push_back({static_cast<int32_t>(rng() % 2), 0});
        break;
      default:
        break;
    }
  }
  if (rng() % 4 == 0) std::shuffle(p.rows.begin(), p.rows.end(), rng);
  p.spare_tokens = static_cast<int64_t>(rng() % 3);
  return p;
}

TEST_CASE("rows that share a prefix attend as float64 does" * doctest::skip(!HasWgmma())) {
  size_t runs = 0;
  const uint64_t seeds = Size(60u, 16u);
  for (uint64_t seed = 1; seed <= seeds; ++seed) runs += Check(RandomSharing(seed)).size();
  CHECK(runs > seeds);
}

// Every head dim and group with a run that fills a tile, one that spills into the next group of
// rows, and a number of shared keys at the edges of key tiles (128, or 80 at head dim 256).
TEST_CASE("shared prefixes meet the edges of tiles" * doctest::skip(!HasWgmma())) {
  for (const int64_t head_dim : {64, 128, 256}) {
    for (const int64_t group : {4, 8}) {
      for (const int32_t shared : {256, 272, 320, 384, 400}) {
        Problem p = Sharing(700 + static_cast<uint64_t>(shared));
        p.head_dim = head_dim;
        p.group = group;
        p.kv_heads = 1;
        p.dtype = shared % 128 == 0 ? DType::kF16 : DType::kBF16;
        p.sinks = group == 8;
        p.soft_cap = shared == 320 ? 20.0f : 0.0f;
        const auto tile = static_cast<int32_t>(128 / group);
        for (int32_t r = 0; r < tile + 4; ++r) {
          p.rows.push_back({1, shared + 1 + r % 33, 1, shared / 16});
        }
        const std::vector<Run> runs = Check(p);
        CHECK(runs == std::vector<Run>{{0, tile, shared}, {tile, 4, shared}});
      }
    }
  }
}

// One query head a KV head: a tile of 128 rows. Few of them have tokens of their own to be cut.
TEST_CASE("a tile of shared keys takes 128 rows" * doctest::skip(!HasWgmma())) {
  Problem p = Sharing(31);
  p.head_dim = 64;
  p.kv_heads = 1;
  p.group = 1;
  for (int32_t r = 0; r < 131; ++r) {
    const int32_t own = r % 40 == 3 ? Size(3000, 700) : 1 + r % 20;
    p.rows.push_back({1, 304 + own, 1, 19});
  }
  CHECK(Check(p) == std::vector<Run>{{0, 128, 304}});
}

TEST_CASE("rows that are cut into splits merge what they share" * doctest::skip(!HasWgmma())) {
  for (const int64_t head_dim : {64, 128, 256}) {
    for (const bool sinks : {false, true}) {
      Problem p = Sharing(41);
      p.head_dim = head_dim;
      p.kv_heads = 1;
      p.group = 8;
      p.sinks = sinks;
      for (int32_t r = 0; r < 4; ++r) p.rows.push_back({1, 320 + Size(6000, 900), 1, 20});
      CHECK(Check(p) == std::vector<Run>{{0, 4, 320}});
    }
  }
}

// One run, whose keys are cut into as many parts as there are multiprocessors for.
TEST_CASE("parts of a long prefix are merged" * doctest::skip(!HasWgmma())) {
  for (const int64_t head_dim : {64, 128, 256}) {
    for (const int32_t shared : {256, 640, 1040, 1312}) {
      Problem p = Sharing(61);
      p.head_dim = head_dim;
      p.kv_heads = 1;
      p.group = 8;
      p.sinks = shared == 640;
      p.soft_cap = shared == 1040 ? 20.0f : 0.0f;
      for (int32_t r = 0; r < 5; ++r) {
        p.rows.push_back({1, shared + 1 + r * Size(300, 30), 1, shared / 16});
      }
      p.rows.push_back({9, 40});
      CHECK(Check(p) == std::vector<Run>{{0, 5, shared}});
      Instance instance(p);
      instance.Run();
      CHECK((instance.SharedTiles().size() > 1) == (shared >= 2 * kLeastPartTokens));
    }
  }
}

// Through the public calls: sharing is worth it where a tile takes less time than all decode.
TEST_CASE("prefixes are shared where it is worth it" * doctest::skip(!HasWgmma())) {
  for (const bool few : {false, true}) {
    Problem p;
    p.options.share_prefixes = true;
    p.head_dim = 64;
    p.kv_heads = 8;
    p.group = 1;
    const Result<DeviceFacts> facts = CurrentDeviceFacts();
    REQUIRE(facts.ok());
    const int64_t tiles = (kSharedKeysCost * 16 + kSharedTileCost) * facts.value().multiprocessors;
    const auto rows = static_cast<int32_t>(std::max<int64_t>(tiles / (17 * 8) + 1, 4));
    for (int32_t r = 0; r < (few ? 3 : rows); ++r) p.rows.push_back({1, 260, 1, 16});
    if (few) p.rows.push_back({4, 300});
    Instance instance(p);
    instance.Run();
    instance.CheckOut(instance.Answer(), Tolerance(p.dtype));
    CHECK(PlannedRuns(instance) == (few ? std::vector<Run>{} : std::vector<Run>{{0, rows, 256}}));
  }
}

TEST_CASE("a plan that cannot share is the plan that was not asked to" *
          doctest::skip(!HasDevice())) {
  std::vector<Problem> problems(5);
  problems[0].window = 64;
  problems[1].options.fixed_split = true;
  problems[2].options.max_queries = 1;
  problems[3].fp8 = true;
  problems[4].options.decode_queries = 0;
  if (!HasWgmma()) problems.emplace_back();
  for (Problem& p : problems) {
    CAPTURE(&p - problems.data());
    for (int32_t r = 0; r < 6; ++r) p.rows.push_back({1, 270 + r, 1, 16});
    Instance apart(p);
    apart.Run();
    p.options.share_prefixes = true;
    Instance asked(p);
    asked.Run();
    CHECK(asked.DeviceOut() == apart.DeviceOut());
    CHECK(asked.plan.bytes == apart.plan.bytes);
    CHECK(asked.SharedTiles().empty());
  }
}

// Block tables and lengths change on the device, so that sharing starts, moves and stops.
TEST_CASE("a captured step shares what its rows have in common" * doctest::skip(!HasWgmma())) {
  Problem p = Sharing(51);
  p.head_dim = 64;
  p.group = 8;
  for (int32_t r = 0; r < 9; ++r) p.rows.push_back({1, 330 + 7 * r, 1, 20});
  p.rows.push_back({20, 90});
  Instance instance(p);
  instance.Run();
  const CapturedStep step(instance);
  const std::vector<int32_t> table = instance.table;
  // Rows 0 to 8 read a block of their own, the last of theirs, instead of block `at` of the family.
  const auto part_from = [&](size_t row, size_t at) {
    const size_t line = size_t(instance.row_slot[row] * instance.max_blocks);
    instance.table[line + at] = table[line + 20];
  };
  const auto shorten = [&](int32_t length) {
    for (size_t r = 0; r < 9; ++r) {
      instance.seq_len[r] = length + 3 * int32_t(r);
      instance.problem.rows[r].length = instance.seq_len[r];
    }
  };
  using Runs = std::vector<Run>;
  for (int phase = 0; phase < 5; ++phase) {
    CAPTURE(phase);
    if (phase == 1) shorten(200);  // too little in common
    if (phase == 2) shorten(322);
    if (phase == 3) part_from(4, 17);  // row 4 leaves the others a block earlier
    if (phase == 4) part_from(4, 0);
    instance.device_seq_len.Copy(instance.seq_len.data(), int64_t(instance.seq_len.size() * 4));
    instance.device_table.Copy(instance.table.data(), int64_t(instance.table.size() * 4));
    instance.Run();
    const std::vector<unsigned char> eager = instance.DeviceOut();
    instance.CheckOut(instance.Answer(), Tolerance(p.dtype));
    const Runs apart = {{0, 4, 320}, {5, 4, 320}};
    CHECK(PlannedRuns(instance) == (phase == 1   ? Runs{}
                                    : phase == 3 ? Runs{{0, 9, 272}}
                                    : phase == 4 ? apart
                                                 : Runs{{0, 9, 320}}));
    step.CheckReplays(&instance, eager);
  }
}

}  // namespace
}  // namespace octavo::cuda
