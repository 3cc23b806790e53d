// How products of few rows are cut into tiles.
#include "doctest/doctest.h"
#include "linear/choice.h"

namespace octavo::cuda {
namespace {

constexpr int kH200 = 132, kShared90 = 227 * 1024, kShared80 = 163 * 1024;

TEST_CASE("tiles cover all rows of the weight, and shared memory holds the rings") {
  for (const int shared : {kShared80, kShared90}) {
    for (const int64_t n : {1, 7, 8, 33, 1000, 4096, 6144, 28672, 151936}) {
      for (const int64_t units : {1, 2, 16, 64, 224}) {
        for (const int64_t tokens : {1, 8, 9, 16}) {
          const LinearChoice c = ChooseLinear(tokens, n, units, kH200, shared);
          CAPTURE(n);
          CAPTURE(units);
          CHECK(int64_t{c.tiles} * c.groups * 8 >= n);
          CHECK(int64_t{c.tiles - 1} * c.groups * 8 < n);
          CHECK(c.ctas <= kH200);
          CHECK(c.ctas <= c.tiles);
          CHECK(c.token_tiles * 8 >= tokens);
          CHECK(LinearSharedBytes(c) <= shared);
          CHECK(c.warps >= 1);
          CHECK(c.warps < 2 * units);
        }
      }
    }
  }
}

TEST_CASE("the rows of x change nothing that a sum depends on") {
  for (const int64_t n : {64, 1024, 4096, 6144, 151936}) {
    const LinearChoice one = ChooseLinear(1, n, 64, kH200, kShared90);
    const LinearChoice many = ChooseLinear(16, n, 64, kH200, kShared90);
    CHECK(one.groups == many.groups);
    CHECK(one.warps == many.warps);
    CHECK(one.ctas == many.ctas);
  }
}

TEST_CASE("lower tiles are taken where they leave fewer multiprocessors idle") {
  CHECK(ChooseLinear(1, 4096, 64, kH200, kShared90).groups == 4);  // 128 tiles, one round
  CHECK(ChooseLinear(1, 6144, 64, kH200, kShared90).groups == 2);  // 384 in three, not 192 in two
  CHECK(ChooseLinear(1, 1024, 32, kH200, kShared90).groups == 1);  // 128 tiles, not 32
  CHECK(ChooseLinear(1, 151936, 16, kH200, kShared90).groups == 4);
}

}  // namespace
}  // namespace octavo::cuda
