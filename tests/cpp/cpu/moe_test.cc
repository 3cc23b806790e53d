// Routing, grouping, the grouped product and the sum, against float64 or counted by hand.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/tensor.h"
#include "doctest/doctest.h"
#include "octavo/ops_moe.h"

namespace octavo::cpu {
namespace {

// A dense int32 table as a view.
TensorView Table(std::vector<int32_t>& v, int64_t rows, int64_t columns) {
  return TensorView::Dense(v.empty() ? nullptr : v.data(), DType::kI32, {rows, columns});
}

struct Grouped {
  std::vector<int32_t> place, token, start;
};

Grouped Group(std::vector<int32_t> ids, int64_t k, int64_t experts) {
  const int64_t n = static_cast<int64_t>(ids.size()) / k;
  Grouped g{std::vector<int32_t>(ids.size(), -1), std::vector<int32_t>(ids.size(), -1),
            std::vector<int32_t>(experts + 1, -1)};
  REQUIRE(
      MoeGroup({Table(g.place, n, k), Column(g.token), Column(g.start), Table(ids, n, k)}).ok());
  return g;
}

TEST_CASE("routing keeps the largest logits, the lower id first among equals") {
  std::vector<int32_t> ids(3, -1);
  Tensor logits(DType::kF32, {1, 6}), weights(DType::kF32, {1, 3});
  const double values[] = {1.0, 3.0, 2.0, 3.0, -4.0, 2.0};
  for (int64_t e = 0; e < 6; ++e) logits.Set({0, e}, values[e]);
  REQUIRE(MoeRoute({Table(ids, 1, 3), weights.view(), logits.view(), false, true}).ok());
  CHECK(ids == std::vector<int32_t>{1, 3, 2});
  const double sum = 2.0 + std::exp(-1.0);
  CHECK(weights.At({0, 0}) == doctest::Approx(1 / sum));
  CHECK(weights.At({0, 2}) == doctest::Approx(std::exp(-1.0) / sum));
}

TEST_CASE("routing weighs by softmax over all experts, over those kept, or by sigmoid") {
  std::mt19937_64 rng(21);
  for (const bool sigmoid : {false, true}) {
    for (const bool renormalize : {false, true}) {
      for (const int64_t k : {1, 4, 16}) {
        Tensor logits(DType::kF32, {5, 16}, 2), weights(DType::kF32, {5, k}, 1);
        logits.Randomize(rng);
        std::vector<int32_t> ids(5 * k, -1);
        REQUIRE(
            MoeRoute({Table(ids, 5, k), weights.view(), logits.view(), sigmoid, renormalize}).ok());
        for (int64_t n = 0; n < 5; ++n) {
          double all = 0, kept = 0;
          const auto weight = [&](int64_t e) {
            const double x = logits.At({n, e});
            return sigmoid ? 1 / (1 + std::exp(-x)) : std::exp(x);
          };
          for (int64_t e = 0; e < 16; ++e) all += weight(e);
          for (int64_t j = 0; j < k; ++j) kept += weight(ids[n * k + j]);
          const double by = renormalize ? kept : sigmoid ? 1.0 : all;
          for (int64_t j = 0; j < k; ++j) {
            CHECK(weights.At({n, j}) == doctest::Approx(weight(ids[n * k + j]) / by).epsilon(1e-6));
          }
        }
      }
    }
  }
}

TEST_CASE("experts are chosen within the best groups, by scores that a bias may shift") {
  // Sigmoids rise with the logits. Groups of two: sums of both are largest in the last and the
  // first, the largest score stands in the second.
  const double values[] = {1.0, 0.9, 3.0, -9.0, -1.0, -1.0, 1.2, 1.0};
  Tensor logits(DType::kF32, {1, 8}), weights(DType::kF32, {1, 3});
  for (int64_t e = 0; e < 8; ++e) logits.Set({0, e}, values[e]);
  std::vector<int32_t> ids(3, -1);
  std::vector<float> bias(8, 0.0f);
  MoeRouteArgs a{Table(ids, 1, 3), weights.view(), logits.view(), true, false};
  a.groups = 4;
  a.top_groups = 2;
  a.group_best = 2;
  a.scale = 2.5f;
  REQUIRE(MoeRoute(a).ok());
  CHECK(ids == std::vector<int32_t>{6, 0, 7});
  CHECK(weights.At({0, 1}) == doctest::Approx(2.5 / (1 + std::exp(-1.0))));
  a.group_best = 1;
  REQUIRE(MoeRoute(a).ok());
  CHECK(ids == std::vector<int32_t>{2, 6, 7});
  // The bias lifts the third group in; weights are scores without it.
  bias[4] = 2.0f;
  a.bias = Column(bias);
  REQUIRE(MoeRoute(a).ok());
  CHECK(ids == std::vector<int32_t>{4, 2, 5});
  CHECK(weights.At({0, 0}) == doctest::Approx(2.5 / (1 + std::exp(1.0))));
  a.renormalize = true;
  REQUIRE(MoeRoute(a).ok());
  CHECK(weights.At({0, 0}) + weights.At({0, 1}) + weights.At({0, 2}) == doctest::Approx(2.5));
  a.groups = 3;
  CHECK(Refused(MoeRoute(a), "moe_route: groups is 3"));
  a.groups = 8;
  CHECK(Refused(MoeRoute(a), "as many chosen as hold the 3 of a token"));
  bias.resize(7);
  a.groups = 4;
  a.bias = Column(bias);
  CHECK(Refused(MoeRoute(a), "moe_route: bias"));
}

TEST_CASE("a token whose router says NaN gets NaN weights and experts that exist") {
  std::vector<int32_t> ids(4, -1);
  Tensor logits(DType::kF32, {2, 5}), weights(DType::kF32, {2, 2});
  for (int64_t n = 0; n < 2; ++n) {
    for (int64_t e = 0; e < 5; ++e) logits.Set({n, e}, n == 0 && e == 3 ? kNan : double(e));
  }
  REQUIRE(MoeRoute({Table(ids, 2, 2), weights.view(), logits.view(), false, true}).ok());
  CHECK(ids == std::vector<int32_t>{0, 1, 4, 3});
  CHECK(std::isnan(weights.At({0, 0})));
  CHECK(weights.At({1, 0}) + weights.At({1, 1}) == doctest::Approx(1.0));
}

TEST_CASE("grouping sorts pairs by expert and keeps the order of tokens") {
  const Grouped g = Group({2, 0, 2, 3, 0, 2}, 2, 5);
  CHECK(g.start == std::vector<int32_t>{0, 2, 2, 5, 6, 6});
  CHECK(g.token == std::vector<int32_t>{0, 2, 0, 1, 2, 1});
  CHECK(g.place == std::vector<int32_t>{2, 0, 3, 5, 1, 4});
  const Grouped none = Group({}, 2, 3);
  CHECK(none.start == std::vector<int32_t>{0, 0, 0, 0});
}

TEST_CASE("the grouped product is that of each expert with its own rows, bit for bit") {
  std::mt19937_64 rng(22);
  ForEachIsa([&] {
    for (const DType dtype : kFloatTypes) {
      for (const int64_t m : {1, 7, 130}) {
        Tensor x(dtype, {6, 40}, 3), weight(dtype, {5, m, 40}), bias(dtype, {5, m});
        Tensor out(dtype, {6, m}, 2), alone(dtype, {6, m}, 2);
        x.Randomize(rng);
        weight.Randomize(rng);
        bias.Randomize(rng);
        std::vector<int32_t> start{0, 1, 1, 5, 6, 6};
        const GroupedLinearArgs args{out.view(), x.view(), weight.view(), Column(start),
                                     bias.view()};
        REQUIRE(GroupedLinear(args).ok());
        for (int64_t e = 0; e < 5; ++e) {
          const int64_t rows = start[e + 1] - start[e];
          if (rows == 0) continue;
          const auto part = [&](const Tensor& t, int64_t first, int64_t count) {
            TensorView v = t.view();
            v.data = static_cast<char*>(v.data) + first * v.stride[0] * DTypeSize(dtype);
            v.shape[0] = count;
            return v;
          };
          TensorView w = part(weight, e, 1), b = part(bias, e, 1);
          w.rank = 2;
          w.shape[0] = m;
          w.shape[1] = 40;
          w.stride[0] = w.stride[1];
          w.stride[1] = 1;
          b.rank = 1;
          b.shape[0] = m;
          b.stride[0] = 1;
          REQUIRE(Linear({part(alone, start[e], rows), part(x, start[e], rows), w, b}).ok());
        }
        for (int64_t p = 0; p < 6; ++p) {
          for (int64_t i = 0; i < m; ++i) CHECK(out.At({p, i}) == alone.At({p, i}));
          CHECK(std::isnan(out.At({p, m})));
        }
      }
    }
  });
}

TEST_CASE("combining sums a token's rows by weight") {
  std::mt19937_64 rng(23);
  ForEachIsa([&] {
    for (const DType dtype : kFloatTypes) {
      for (const int64_t h : {1, 16, 37}) {
        Tensor rows(dtype, {6, h}, 1), weights(DType::kF32, {3, 2}), out(dtype, {3, h}, 2);
        rows.Randomize(rng);
        weights.Randomize(rng);
        std::vector<int32_t> place{4, 0, 5, 1, 2, 3};
        REQUIRE(MoeCombine({out.view(), rows.view(), Table(place, 3, 2), weights.view()}).ok());
        for (int64_t n = 0; n < 3; ++n) {
          for (int64_t i = 0; i < h; ++i) {
            double want = 0, size = 0;
            for (int64_t j = 0; j < 2; ++j) {
              want += weights.At({n, j}) * rows.At({place[n * 2 + j], i});
              size += std::fabs(weights.At({n, j}) * rows.At({place[n * 2 + j], i}));
            }
            const double store = dtype == DType::kF32 ? 0.0 : std::fabs(want) / 256;
            CHECK(std::fabs(out.At({n, i}) - want) <= size * 1e-6 + store);
          }
          CHECK(std::isnan(out.At({n, h})));
        }
      }
    }
  });
}

TEST_CASE("indices that would leave an op's memory are refused by name") {
  Tensor x(DType::kF32, {4, 8}), weight(DType::kF32, {2, 3, 8}), out(DType::kF32, {4, 3});
  for (std::vector<int32_t> start : {std::vector<int32_t>{0, 3, 5}, {0, 5, 4}, {1, 2, 4}}) {
    const Status s =
        GroupedLinear({out.view(), x.view(), weight.view(), Column(start), std::nullopt});
    CHECK(s.message().find("grouped_linear: start must begin at 0") != std::string::npos);
  }
  std::vector<int32_t> ids{0, 2}, place(2), token(2), start(3);
  Status s = MoeGroup({Table(place, 1, 2), Column(token), Column(start), Table(ids, 1, 2)});
  CHECK(s.message().find("ids[0, 1] is 2, need 0 to 1") != std::string::npos);
  Tensor weights(DType::kF32, {1, 2}), sum(DType::kF32, {1, 8});
  place = {0, -1};
  s = MoeCombine({sum.view(), x.view(), Table(place, 1, 2), weights.view()});
  CHECK(s.message().find("place[0, 1] is -1") != std::string::npos);
}

}  // namespace
}  // namespace octavo::cpu
