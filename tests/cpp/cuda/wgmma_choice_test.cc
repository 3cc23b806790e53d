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

}  // namespace
}  // namespace octavo::cuda
