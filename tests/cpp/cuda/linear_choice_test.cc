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
          const LinearChoice c = ChooseLinear({tokens, n, units}, kH200, shared);
          CAPTURE(n);
          CAPTURE(units);
          CHECK(int64_t{c.tiles} * c.groups * 8 >= n);
          CHECK(int64_t{c.tiles - 1} * c.groups * 8 < n);
          CHECK(c.ctas <= kH200);
          CHECK(c.ctas <= c.tiles);
          CHECK(c.token_tiles * 8 >= tokens);
          CHECK(c.shared_bytes() <= shared);
          CHECK(c.warps % c.team_warps == 0);
          CHECK(c.warps / c.team_warps < 16);  // a named barrier each, and there are 15
          CHECK((c.team_warps == 1 || c.team_warps <= units));
        }
      }
    }
  }
}

TEST_CASE("the rows of x change nothing that a sum depends on") {
  for (const int64_t n : {64, 1024, 4096, 6144, 151936}) {
    const LinearChoice one = ChooseLinear({1, n, 64}, kH200, kShared90);
    const LinearChoice many = ChooseLinear({16, n, 64}, kH200, kShared90);
    CHECK(one.groups == many.groups);
    CHECK(one.warps == many.warps);
    CHECK(one.team_warps == many.team_warps);
    CHECK(one.ctas == many.ctas);
  }
}

TEST_CASE("tiles are as high as keeps the multiprocessors busy, and teams many where k is short") {
  const auto choose = [](int64_t n, int64_t k) {
    return ChooseLinear({1, n, k / 64}, kH200, kShared90);
  };
  CHECK(choose(4096, 4096).groups == 4);  // 128 tiles, one round
  CHECK(choose(6144, 4096).groups == 2);  // 384 in three rounds, not 192 in two
  CHECK(choose(1024, 3072).groups == 1);  // 128 tiles, not 32
  CHECK(choose(151936, 1024).groups == 4);
  CHECK(choose(151936, 1024).team_warps < choose(4096, 14336).team_warps);
}

// What Qwen3-0.6B multiplies by, in the order of a step: each product leaves the next one room.
TEST_CASE("rings hold what their warps read, and no more") {
  struct Product {
    int64_t n, k;
    bool normed, gated;
  };
  const int kept = 1024;  // of shared memory, for each CTA
  const Product products[] = {{4096, 1024, true, false},
                              {1024, 2048, false, false},
                              {3072, 1024, true, true},
                              {1024, 3072, false, false}};
  int before = 0;
  for (const Product& p : products) {
    const LinearProblem problem{1, p.n, p.k / 64, p.normed, p.gated};
    const LinearChoice c = ChooseLinear(problem, kH200, kShared90);
    CHECK(before + c.shared_bytes() + 2 * kept <= 228 * 1024);
    before = c.shared_bytes();
    CHECK(c.stages * c.team_warps * kLinearUnit >= p.k);
    LinearProblem many = problem;
    many.m = 8;
    CHECK(ChooseLinear(many, kH200, kShared90).stages == c.stages);
    many.m = 9;
    CHECK(ChooseLinear(many, kH200, kShared90).shared_bytes() > c.shared_bytes());
  }
  CHECK(ChooseLinear({1, 4096, 224}, kH200, kShared90).stages == LinearStages(4, 1));
}

TEST_CASE("a gate has its own rows in every tile, and a norm its memory") {
  for (const int shared : {kShared80, kShared90}) {
    for (const int64_t n : {1, 8, 17, 3072, 14336}) {
      for (const int64_t units : {1, 16, 64, 128}) {
        for (const bool normed : {false, true}) {
          const LinearChoice c = ChooseLinear({16, n, units, normed, true}, kH200, shared);
          CAPTURE(n);
          CAPTURE(units);
          CHECK(c.groups % 2 == 0);
          CHECK(int64_t{c.tiles} * c.groups * 4 >= n);
          CHECK(int64_t{c.tiles - 1} * c.groups * 4 < n);
          CHECK(c.shared_bytes() <= shared);
          const LinearChoice one = ChooseLinear({1, n, units, normed, true}, kH200, shared);
          CHECK(one.warps == c.warps);
          CHECK(one.team_warps == c.team_warps);
        }
      }
    }
  }
  const LinearChoice plain = ChooseLinear({1, 4096, 64}, kH200, kShared90);
  LinearChoice normed = plain;
  normed.norm_units = 64;
  CHECK(normed.shared_bytes() - plain.shared_bytes() == 64 * 128 + plain.warps * 32);
}

}  // namespace
}  // namespace octavo::cuda
