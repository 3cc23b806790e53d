// The ops between a step's columns on CUDA beside the CPU's, and the bad indices that only the
// device meets.
#include "backend.h"
#include "cpu/tensor.h"
#include "device.h"
#include "octavo/cuda_ops.h"
#include "octavo/ops_tables.h"

namespace octavo::cuda {
namespace {

using cpu::Column;

TensorView Table(TensorView column, int64_t rows, int64_t columns) {
  return TensorView::Dense(column.data, column.dtype, {rows, columns});
}

struct Step {
  std::vector<int32_t> start{0}, line, position;
};

// Rows of random lengths, some empty as padding rows are, and tokens behind them that nobody owns.
Step RandomStep(std::mt19937_64& rng, int rows, int lines, int longest, int spare) {
  Step s;
  for (int r = 0; r < rows; ++r) {
    const int32_t tokens = rng() % 4 == 0 ? 0 : static_cast<int32_t>(rng() % 40);
    const auto first = static_cast<int32_t>(rng() % static_cast<uint64_t>(longest - tokens));
    for (int32_t i = 0; i < tokens; ++i) s.position.push_back(first + i);
    s.start.push_back(s.start.back() + tokens);
    s.line.push_back(static_cast<int32_t>(rng() % static_cast<uint64_t>(lines)));
  }
  for (int i = 0; i < spare; ++i) s.position.push_back(0);
  return s;
}

std::vector<int32_t> RandomColumn(std::mt19937_64& rng, size_t n, uint32_t bound) {
  std::vector<int32_t> v(n);
  for (int32_t& x : v) x = static_cast<int32_t>(rng() % bound);
  return v;
}

TEST_CASE("CUDA slots of tokens are the CPU's" * doctest::skip(!HasDevice())) {
  constexpr int kLines = 6, kEntries = 8, kBlockSize = 16;
  for (uint64_t seed = 1; seed <= Size(50u, 20u); ++seed) {
    CAPTURE(seed);
    std::mt19937_64 rng(seed);
    Step s = RandomStep(rng, 1 + static_cast<int>(rng() % 30), kLines, kEntries * kBlockSize, 3);
    std::vector<int32_t> table = RandomColumn(rng, kLines * kEntries, 1000);
    std::vector<int64_t> want(s.position.size(), -7);
    const OnDevice start(s.start), line(s.line), position(s.position), dtable(table), got(want);
    CheckDone(SlotMapping({got.view(), position.view(), start.view(), line.view(),
                           Table(dtable.view(), kLines, kEntries), kBlockSize},
                          nullptr));
    REQUIRE(cpu::SlotMapping({Column(want), Column(s.position), Column(s.start), Column(s.line),
                              Table(Column(table), kLines, kEntries), kBlockSize})
                .ok());
    CHECK(got.Column<int64_t>() == want);
  }
}

TEST_CASE("a CUDA slot of a token with a bad index is none" * doctest::skip(!HasDevice())) {
  std::vector<int32_t> start = {0, 1, 2, 3, 4, 5}, line = {0, 9, -1, 1, 0};
  std::vector<int32_t> position = {32, 0, 0, 0, -1}, table = {3, 4, -1, 5};
  std::vector<int64_t> slot(5, -7);
  const OnDevice dstart(start), dline(line), dposition(position), dtable(table), got(slot);
  CheckDone(SlotMapping(
      {got.view(), dposition.view(), dstart.view(), dline.view(), Table(dtable.view(), 2, 2), 16},
      nullptr));
  CHECK(got.Column<int64_t>() == std::vector<int64_t>(5, -1));
}

TEST_CASE("CUDA fills in and keeps tokens as the CPU does" * doctest::skip(!HasDevice())) {
  constexpr int kLines = 9;
  for (uint64_t seed = 1; seed <= Size(50u, 20u); ++seed) {
    CAPTURE(seed);
    std::mt19937_64 rng(seed);
    Step s = RandomStep(rng, kLines, kLines, 64, 0);
    for (int i = 0; i < kLines; ++i) s.line[static_cast<size_t>(i)] = (i * 4 + 3) % kLines;
    std::vector<int32_t> token = RandomColumn(rng, s.position.size(), 500);
    for (int32_t& t : token) t = t % 2 == 0 ? -1 : t;
    std::vector<int32_t> last = RandomColumn(rng, kLines, 500);
    last[4] = -1;
    std::vector<int32_t> sampled = RandomColumn(rng, 4, 500), row = {0, 5, 2, 8};
    const OnDevice start(s.start), line(s.line), dtoken(token), dlast(last);
    const OnDevice dsampled(sampled), drow(row);
    CheckDone(FillTokens({dtoken.view(), start.view(), line.view(), dlast.view()}, nullptr));
    CheckDone(KeepTokens({dlast.view(), dsampled.view(), drow.view(), line.view()}, nullptr));
    REQUIRE(cpu::FillTokens({Column(token), Column(s.start), Column(s.line), Column(last)}).ok());
    REQUIRE(cpu::KeepTokens({Column(last), Column(sampled), Column(row), Column(s.line)}).ok());
    CHECK(dtoken.Column<int32_t>() == token);
    CHECK(dlast.Column<int32_t>() == last);
  }
}

TEST_CASE("CUDA gives padding a token and keeps none for a row that is not there" *
          doctest::skip(!HasDevice())) {
  std::vector<int32_t> start = {0, 1, 1}, line = {7, 0}, token = {-1, -1, 5}, last = {40, 41};
  std::vector<int32_t> sampled = {1, 2, 3}, row = {-1, 2, 0};
  const OnDevice dstart(start), dline(line), dtoken(token), dlast(last), dsampled(sampled),
      drow(row);
  CheckDone(FillTokens({dtoken.view(), dstart.view(), dline.view(), dlast.view()}, nullptr));
  CheckDone(KeepTokens({dlast.view(), dsampled.view(), drow.view(), dline.view()}, nullptr));
  CHECK(dtoken.Column<int32_t>() == std::vector<int32_t>{0, 0, 5});
  CHECK(dlast.Column<int32_t>() == last);
}

TEST_CASE("CUDA tokens land where a number in memory says, all of them or none" *
          doctest::skip(!HasDevice())) {
  constexpr int kSamples = 700;  // of rows that are not there, too
  std::mt19937_64 rng(5);
  std::vector<int32_t> token = RandomColumn(rng, kSamples, 500);
  std::vector<int32_t> row = RandomColumn(rng, kSamples, 4), line = {0, 9, -1}, last(1, 3);
  std::vector<int32_t> landed(kSamples + 1, -7);
  const OnDevice dtoken(token), drow(row), dline(line), dlast(last), dlanded(landed);
  for (const bool somewhere : {false, true}) {
    std::vector<int64_t> to = {somewhere ? reinterpret_cast<int64_t>(dlanded.view().data) : 0};
    const OnDevice landing(to);
    CheckDone(KeepTokens({dlast.view(), dtoken.view(), drow.view(), dline.view(), landing.view()},
                         nullptr));
    if (somewhere) std::copy(token.begin(), token.end(), landed.begin());
    CHECK(dlanded.Column<int32_t>() == landed);
  }
}

TEST_CASE("CUDA fetches the entries that a row's tokens reach and no others" *
          doctest::skip(!HasDevice())) {
  constexpr int kLines = 7, kEntries = 300, kStride = 290, kBlockSize = 16;
  std::mt19937_64 rng(3);
  std::vector<int32_t> source = RandomColumn(rng, kLines * kStride, 100000);
  std::vector<int32_t> table(kLines * kEntries, -7);
  std::vector<int32_t> line = {3, 0, 6, 2, 5}, length = {1, kStride * kBlockSize, 0, 16, 2049};
  const OnDevice dsource(source), dtable(table), dline(line), dlength(length);
  FetchBlocksArgs a;
  a.table = Table(dtable.view(), kLines, kEntries);
  a.row_slot = dline.view();
  a.seq_len = dlength.view();
  a.source = static_cast<int64_t>(reinterpret_cast<uintptr_t>(dsource.view().data));
  a.source_slots = kLines;
  a.source_stride = kStride;
  a.block_size = kBlockSize;
  CheckDone(FetchBlocks(a, nullptr));
  FetchBlocksArgs host = a;
  host.table = Table(Column(table), kLines, kEntries);
  host.row_slot = Column(line);
  host.seq_len = Column(length);
  host.source = static_cast<int64_t>(reinterpret_cast<uintptr_t>(source.data()));
  REQUIRE(cpu::FetchBlocks(host).ok());
  CHECK(dtable.Column<int32_t>() == table);

  std::vector<int32_t> bad_line = {-1, kLines, INT32_MAX}, bad_length = {16, 16, 16};
  const OnDevice dbad(bad_line), dbad_length(bad_length);
  a.row_slot = dbad.view();
  a.seq_len = dbad_length.view();
  CheckDone(FetchBlocks(a, nullptr));
  CHECK(dtable.Column<int32_t>() == table);
}

}  // namespace
}  // namespace octavo::cuda
