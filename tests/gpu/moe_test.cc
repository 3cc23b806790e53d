// The ops of a mixture of experts on CUDA beside the CPU's. Without a device every case is skipped.
#include <array>
#include <numeric>

#include "device_copy.h"
#include "octavo/cuda_layers.h"

namespace octavo::cuda {
namespace {

using cpu::Tensor;

TensorView Table(std::vector<int32_t>& v, int64_t rows, int64_t columns) {
  return TensorView::Dense(v.data(), DType::kI32, {rows, columns});
}

struct RouteCase {
  int64_t tokens, experts, k;
  bool sigmoid, renormalize;
  int64_t groups = 1, top_groups = 1, group_best = 1;
  bool bias = false;
  float scale = 1.0f;
};

TEST_CASE("CUDA routing picks the CPU's experts and weights" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(31);
  for (const RouteCase& c :
       {RouteCase{1, 8, 2, false, true}, RouteCase{37, 128, 8, false, true},
        RouteCase{5, 33, 33, false, false}, RouteCase{9, 16, 1, true, false},
        RouteCase{6, 64, 6, false, false, 8, 3, 1, false, 16.0f}, RouteCase{3, 1, 1, false, true},
        RouteCase{7, 256, 8, true, true, 8, 4, 2, true, 2.5f},
        RouteCase{4, 1000, 10, false, true, 1, 1, 1, true}}) {
    CAPTURE(c.experts);
    Tensor logits(DType::kF32, {c.tokens, c.experts}, 3), bias(DType::kF32, {c.experts});
    Tensor weights(DType::kF32, {c.tokens, c.k}, 2), want = weights;
    logits.Randomize(rng);
    bias.Randomize(rng);
    // Equal logits: the lower id is first.
    if (c.experts > 2) logits.Set({0, c.experts - 1}, logits.At({0, 1}));
    if (c.tokens > 2) logits.Set({2, 0}, cpu::kNan);
    std::vector<int32_t> ids(size_t(c.tokens * c.k), -7), want_ids = ids;
    DeviceCopy dl(logits), db(bias), dw(weights), di(ids, c.tokens, c.k);
    MoeRouteArgs a{Table(want_ids, c.tokens, c.k), want.view(), logits.view(), c.sigmoid,
                   c.renormalize};
    if (c.bias) a.bias = bias.view();
    a.groups = c.groups;
    a.top_groups = c.top_groups;
    a.group_best = c.group_best;
    a.scale = c.scale;
    RequireOk(cpu::MoeRoute(a));
    a.ids = di.view();
    a.weights = dw.view();
    a.logits = dl.view();
    if (c.bias) a.bias = db.view();
    RequireOk(MoeRoute(a, nullptr));
    di.Fetch();
    dw.Fetch();
    CHECK(ids == want_ids);
    for (int64_t n = 0; n < c.tokens; ++n) {
      for (int64_t j = 0; j < c.k; ++j) {
        const double got = weights.At({n, j}), expected = want.At({n, j});
        CHECK(std::isnan(got) == std::isnan(expected));
        if (!std::isnan(got)) CHECK(got == doctest::Approx(expected).epsilon(1e-5));
      }
      CHECK(std::isnan(weights.Get(weights.Offset({n, c.k - 1}) + 1)));  // the gap
    }
  }
}

TEST_CASE("a bias of NaN leaves CUDA routing experts that exist" * doctest::skip(!HasDevice())) {
  Tensor logits(DType::kF32, {1, 4}), bias(DType::kF32, {4}), weights(DType::kF32, {1, 3});
  std::mt19937_64 rng(32);
  logits.Randomize(rng);
  for (int64_t e = 0; e < 4; ++e) bias.Set({e}, e < 2 ? cpu::kNan : 0.0);
  std::vector<int32_t> ids(3, -7);
  DeviceCopy dl(logits), db(bias), dw(weights), di(ids, 1, 3);
  MoeRouteArgs a{di.view(), dw.view(), dl.view(), true, false};
  a.bias = db.view();
  RequireOk(MoeRoute(a, nullptr));
  di.Fetch();
  for (const int32_t id : ids) CHECK((id >= 0 && id < 4));
}

struct Groups {
  Groups(int64_t n, int64_t k, int64_t experts)
      : tokens(n),
        per_token(k),
        ids(size_t(n * k)),
        place(size_t(n * k), -7),
        token(size_t(n * k), -7),
        start(size_t(experts + 1), -7) {}

  int64_t tokens, per_token;
  std::vector<int32_t> ids, place, token, start;

  void OnCpu() {
    RequireOk(cpu::MoeGroup({Table(place, tokens, per_token), cpu::Column(token),
                             cpu::Column(start), Table(ids, tokens, per_token)}));
  }
  void OnCuda() {
    DeviceCopy di(ids, tokens, per_token), dp(place, tokens, per_token), dt(token), ds(start);
    RequireOk(MoeGroup({dp.view(), dt.view(), ds.view(), di.view()}, nullptr));
    for (DeviceCopy* d : {&dp, &dt, &ds}) d->Fetch();
  }
};

TEST_CASE("CUDA grouping sorts as the CPU does" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(33);
  for (const auto& [n, k, experts] : {std::array<int64_t, 3>{1, 2, 8},
                                      {1, 1, 1},
                                      {300, 4, 5},
                                      {64, 8, 40},
                                      {700, 2, 3},
                                      {31, 3, 2},
                                      {0, 2, 4}}) {
    for (const bool one : {false, true}) {
      CAPTURE(n);
      Groups g(n, k, experts);
      for (int32_t& id : g.ids)
        id = one ? int32_t(experts) - 1 : int32_t(rng() % uint64_t(experts));
      Groups want = g;
      want.OnCpu();
      g.OnCuda();
      CHECK(g.start == want.start);
      CHECK(g.place == want.place);
      CHECK(g.token == want.token);
    }
  }
}

TEST_CASE("CUDA grouping drops pairs whose expert does not exist" * doctest::skip(!HasDevice())) {
  Groups g(3, 2, 4);
  g.ids = {1, 4, INT32_MIN, 1, INT32_MAX, 0};
  g.OnCuda();
  CHECK(g.start == std::vector<int32_t>{0, 1, 3, 3, 3});
  CHECK(g.place == std::vector<int32_t>{1, -1, -1, 2, -1, 0});
  CHECK(g.token == std::vector<int32_t>{2, 0, 1, 0, 0, 0});
}

struct ProductCase {
  std::vector<int32_t> counts;  // rows of each expert
  int64_t m, k, gap;
  bool bias;
};

struct Product {
  Product(DType dtype, const ProductCase& c, std::mt19937_64& rng, int64_t spare = 0)
      : start{0},
        x(dtype, {Sum(c) + spare, c.k}, c.gap),
        weight(dtype, {int64_t(c.counts.size()), c.m, c.k}, c.gap),
        bias(dtype, {int64_t(c.counts.size()), c.m}, 1),
        out(dtype, {Sum(c) + spare, c.m}, 3),
        with_bias(c.bias) {
    for (const int32_t count : c.counts) start.push_back(start.back() + count);
    for (Tensor* t : {&x, &weight, &bias}) t->Randomize(rng);
  }
  static int64_t Sum(const ProductCase& c) {
    return std::accumulate(c.counts.begin(), c.counts.end(), int64_t{0});
  }
  void OnCuda() {
    DeviceCopy dx(x), dw(weight), db(bias), dout(out), ds(start);
    GroupedLinearArgs a{dout.view(), dx.view(), dw.view(), ds.view(), std::nullopt};
    if (with_bias) a.bias = db.view();
    RequireOk(GroupedLinear(a, nullptr));
    dout.Fetch();
  }
  void OnCpu() {
    GroupedLinearArgs a{out.view(), x.view(), weight.view(), cpu::Column(start), std::nullopt};
    if (with_bias) a.bias = bias.view();
    RequireOk(cpu::GroupedLinear(a));
  }

  std::vector<int32_t> start;
  Tensor x, weight, bias, out;
  bool with_bias;
};

TEST_CASE("the CUDA grouped product is the CPU's" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(34);
  // Few, some and many rows an expert; none; all with one expert; widths that fill no tile.
  for (const ProductCase& c :
       {ProductCase{{1, 0, 2, 0, 17, 5}, 136, 192, 0, true},
        ProductCase{{0, 0, 3}, 64, 64, 8, false}, ProductCase{{40, 0, 70}, 130, 72, 0, true},
        ProductCase{{0, 129}, 136, 136, 16, false}, ProductCase{{3, 2}, 7, 20, 1, true},
        ProductCase{{5}, 33, 8, 0, true}, ProductCase{{0, 300, 1}, 40, 200, 0, true}}) {
    for (const DType dtype : cpu::kFloatTypes) {
      CAPTURE(c.m);
      CAPTURE(c.k);
      CAPTURE(static_cast<int>(dtype));
      Product got(dtype, c, rng), want = got;
      got.OnCuda();
      want.OnCpu();
      for (int64_t p = 0; p < got.out.dim(0); ++p) {
        for (int64_t i = 0; i < c.m; ++i) {
          const double value = got.out.At({p, i}), expected = want.out.At({p, i});
          CAPTURE(p);
          CAPTURE(i);
          CAPTURE(value);
          CAPTURE(expected);
          REQUIRE(Alike(dtype, value, expected, 2.0 * std::sqrt(double(c.k))));
        }
        REQUIRE(std::isnan(got.out.Get(got.out.Offset({p, c.m - 1}) + 1)));
      }
    }
  }
}

TEST_CASE("a row of the CUDA grouped product is the same bits in any company" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(35);
  const ProductCase many{{150, 2}, 72, 200, 0, true};
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    Product all(dtype, many, rng);
    all.OnCuda();
    Product few = all;
    few.start = {149, 150, 152};  // what comes before belongs to nobody
    few.OnCuda();
    for (const int64_t p : {149, 150, 151}) {
      for (int64_t i = 0; i < many.m; ++i) REQUIRE(few.out.At({p, i}) == all.out.At({p, i}));
    }
    Product alone(dtype, ProductCase{{1, 2}, 72, 200, 0, true}, rng);
    alone.weight = all.weight;
    alone.bias = all.bias;
    for (int64_t p = 0; p < 3; ++p) {
      for (int64_t k = 0; k < many.k; ++k) alone.x.Set({p, k}, all.x.At({149 + p, k}));
    }
    alone.OnCuda();
    for (int64_t p = 0; p < 3; ++p) {
      for (int64_t i = 0; i < many.m; ++i) {
        REQUIRE(alone.out.At({p, i}) == all.out.At({149 + p, i}));
      }
    }
  }
}

TEST_CASE("the CUDA grouped product leaves alone what no expert owns, and follows no bad range" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(36);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Product p(dtype, ProductCase{{2, 1}, 24, 64, 0, false}, rng, /*spare=*/3);
    p.OnCuda();
    CHECK_FALSE(std::isnan(p.out.At({2, 23})));
    for (int64_t row = 3; row < 6; ++row) {
      for (int64_t i = 0; i < 24; ++i) REQUIRE(std::isnan(p.out.At({row, i})));
    }
    for (const std::vector<int32_t>& start :
         {std::vector<int32_t>{-5, 1, 1 << 30}, {4, 2, 1}, {INT32_MIN, INT32_MAX, -1}}) {
      p.start = start;
      p.OnCuda();
    }
  }
}

TEST_CASE("CUDA combining is the CPU's bit for bit, and a bad place adds nothing" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(37);
  for (const DType dtype : cpu::kFloatTypes) {
    for (const auto& [h, gap] : {std::pair<int64_t, int64_t>{64, 8}, {37, 1}, {8, 0}}) {
      Tensor rows(dtype, {9, h}, gap), weights(DType::kF32, {4, 2}, 1), out(dtype, {4, h}, gap);
      rows.Randomize(rng);
      weights.Randomize(rng);
      Tensor want = out;
      std::vector<int32_t> place{4, 0, 5, 1, 8, 3, 7, 7};
      RequireOk(cpu::MoeCombine({want.view(), rows.view(), Table(place, 4, 2), weights.view()}));
      DeviceCopy dr(rows), dw(weights), dout(out), dp(place, 4, 2);
      RequireOk(MoeCombine({dout.view(), dr.view(), dp.view(), dw.view()}, nullptr));
      dout.Fetch();
      CHECK(out.bytes() == want.bytes());
      place = {-1, 9, INT32_MIN, 1, INT32_MAX, -1, 3, -9};
      DeviceCopy bad(place, 4, 2);
      RequireOk(MoeCombine({dout.view(), dr.view(), bad.view(), dw.view()}, nullptr));
      dout.Fetch();
      CHECK(out.At({0, h - 1}) == 0.0);
      const double once = double(float(weights.At({1, 1}) * rows.At({1, 0})));
      CHECK(out.At({1, 0}) == out.Rounded(once));
    }
  }
}

TEST_CASE("CUDA's clamped gate is the CPU's" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(38);
  for (const DType dtype : cpu::kFloatTypes) {
    for (const auto& [n, gap] : {std::pair<int64_t, int64_t>{64, 0}, {45, 3}}) {
      Tensor gate_up(dtype, {5, 2 * n}, gap), out(dtype, {5, n}, gap);
      gate_up.Randomize(rng, 6.0);
      gate_up.Set({1, 3}, cpu::kNan);
      gate_up.Set({2, n + 4}, cpu::kNan);
      Tensor want = out;
      RequireOk(cpu::ClampedSwiglu({want.view(), gate_up.view(), 1.702f, 7.0f}));
      DeviceCopy dg(gate_up), dout(out);
      RequireOk(ClampedSwiglu({dout.view(), dg.view(), 1.702f, 7.0f}, nullptr));
      dout.Fetch();
      for (int64_t i = 0; i < 5; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          const double got = out.At({i, j}), expected = want.At({i, j});
          REQUIRE(std::isnan(got) == std::isnan(expected));
          if (!std::isnan(got)) REQUIRE(Alike(dtype, got, expected, 8.0));
        }
      }
    }
  }
}

TEST_CASE("the CUDA ops of experts refuse what the CPU's refuse, and too many experts") {
  Tensor logits(DType::kF32, {1, 2000}), weights(DType::kF32, {1, 2});
  std::vector<int32_t> ids(2), place(2), token(2), start(2001);
  MoeRouteArgs a{Table(ids, 1, 2), weights.view(), logits.view(), false, true};
  CHECK(cpu::Refused(MoeRoute(a, nullptr), "at most 1024 experts on CUDA"));
  a.scale = INFINITY;
  CHECK(cpu::Refused(MoeRoute(a, nullptr), "moe_route: scale is inf"));
  Tensor x(DType::kBF16, {2, 8}), weight(DType::kBF16, {2000, 1, 8}), out(DType::kBF16, {2, 1});
  GroupedLinearArgs g{out.view(), x.view(), weight.view(), cpu::Column(start), std::nullopt};
  CHECK(cpu::Refused(GroupedLinear(g, nullptr), "2000 experts, need at most 1024 on CUDA"));
  g.x = logits.view();
  CHECK(cpu::Refused(GroupedLinear(g, nullptr), "grouped_linear: out"));
}

}  // namespace
}  // namespace octavo::cuda
