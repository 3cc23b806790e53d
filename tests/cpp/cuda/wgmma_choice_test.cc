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
      }
    }
  }
}

TEST_CASE(
    "k is cut where tiles leave multiprocessors idle, and tiles are small where rows are few") {
  const auto choose = [](int64_t m, int64_t n, int64_t k) {
    return ChooseWide({m, n, k}, kH200, kShared90);
  };
  CHECK(choose(32, 1024, 3072).splits > 1);
  CHECK(choose(32, 6144, 1024).splits == 1);
  CHECK(choose(32, 4096, 1024).tokens == 32);
  CHECK(choose(64, 28672, 4096).rows > choose(64, 4096, 1024).rows);
}

}  // namespace
}  // namespace octavo::cuda
