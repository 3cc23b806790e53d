// How products of some rows are cut for wgmma.
#include "linear/wgmma_choice.h"

#include <algorithm>
#include <iterator>

#include "doctest/doctest.h"

namespace octavo::cuda {
namespace {

constexpr int kH200 = 132, kShared90 = 227 * 1024;

TEST_CASE("a wide product is cut into a tile that is compiled, and shared memory holds its ring") {
  for (const int64_t n : {16, 1024, 4096, 6144, 28672, 151936}) {
    for (const int64_t k : {64, 128, 192, 1024, 3072, 4096, 14336}) {
      for (int64_t m = 17; m <= kMaxWideTokens; m += 15) {
        const WideChoice c = ChooseWide({m, n, k}, kH200, kShared90);
        CAPTURE(n);
        CAPTURE(k);
        CAPTURE(m);
        CHECK(std::any_of(std::begin(kWideTiles), std::end(kWideTiles), [&](const WideTile& t) {
          return t.rows == c.rows && t.tokens == c.tokens;
        }));
        CHECK(c.splits >= 1);
        CHECK(c.splits <= WideUnits(c, k));  // a CTA without a unit would leave no sums
        CHECK(c.splits <= kMaxWideCluster);
        CHECK(c.stages >= 1);
        CHECK(c.stages <= kMaxWideStages);
        CHECK(WideSharedBytes(c) <= kShared90);
        const int64_t tiles = WideTiles(c, {m, n, k});
        CHECK(c.clusters >= 1);
        CHECK(c.clusters <= (c.splits > 1 ? tiles : std::min<int64_t>(tiles, kH200)));
      }
    }
  }
}

WideChoice Choose(int64_t m, int64_t n, int64_t k, bool gated = false) {
  return ChooseWide({m, n, k, gated}, kH200, kShared90);
}

TEST_CASE(
    "k is cut where tiles leave multiprocessors idle, and tiles are small where rows are few") {
  CHECK(Choose(32, 1024, 3072).splits > 1);
  CHECK(Choose(32, 6144, 1024).splits == 1);
  CHECK(Choose(32, 4096, 1024).tokens == 32);
  CHECK(Choose(64, 28672, 4096).rows > Choose(64, 4096, 1024).rows);
}

TEST_CASE(
    "all multiprocessors have CTAs while memory is slow, and CTAs as many tiles where it is not") {
  // 17 rows of Qwen3-14B's gate and up take 90.8 us with 132 CTAs of this tile, 102.3 with 91.
  CHECK(Choose(17, 34816, 5120, true).clusters == kH200);
  // 192 rows of it take 120 us with 91 CTAs of up to three tiles of 128 x 192, 138 with 132.
  CHECK(Choose(192, 34816, 5120, true).clusters == 91);
}

TEST_CASE("tiles take as many rows of x as each other, and each has one") {
  CHECK(WideTileTokens(17, 32) == 24);
  CHECK(WideTileTokens(192, 128) == 96);
  CHECK(WideTileTokens(512, 256) == 256);
  for (const WideTile& tile : kWideTiles) {
    for (int64_t m = 1; m <= kMaxWideTokens; ++m) {
      const int64_t taken = WideTileTokens(m, tile.tokens), tiles = CeilDiv(m, tile.tokens);
      CAPTURE(m);
      CAPTURE(tile.tokens);
      CHECK(taken <= tile.tokens);
      CHECK(taken % 8 == 0);
      CHECK(taken * tiles >= m);
      CHECK(taken * (tiles - 1) < m);
    }
  }
}

TEST_CASE("clusters that would have to wait for others cost a second round") {
  // 14B o: 192 rows in tiles of 128 x 192 take 38 us in 40 clusters of three, 26 in 40 of two.
  const WideProblem o{192, 5120, 5120};
  CHECK(WideCost({128, 192, 3, 5, 40}, o, kH200) > 1.3 * WideCost({128, 192, 2, 5, 40}, o, kH200));
  CHECK(WideClustersAtOnce(3, kH200) == 38);
  CHECK(WideClustersAtOnce(4, kH200) == 28);
}

}  // namespace
}  // namespace octavo::cuda
